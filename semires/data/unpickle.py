"""Safe loading of untrusted pickles: plain values only. No class is imported, so no code runs."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from semires.errors import DataError

# First bytes of files that are sometimes renamed to `.p`.
OTHER_FORMATS = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"{": "JSON"}
OTHER_FORMATS |= {b"[": "JSON", b"\xef\xbb\xbf": "JSON", b"version https:": "a Git LFS pointer"}
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


class PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function by name. A pickle has no other way to get one."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Raise a DataError that names the class."""
        shown = " ".join(f"{module}.{name}".split())[:100]
        raise DataError(f"refused: it names the class {shown}; only plain values are read")


def read_plain_pickle(path: str | Path) -> Any:
    """Lists, tuples, dicts, strings, bytes, numbers, booleans and None of a pickle file.

    Python 2's pickles are read with latin-1, as numpy and REFER do.

    Raises:
        DataError: missing, damaged, of another format, or with a class in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    data = path.read_bytes()
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            raise DataError(f"{path}: is {name}, not a pickle; unpack or convert it first")
    try:
        _check_memo(data)
        return PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join([type(error).__name__, *str(error).split()])[:120]
        raise DataError(f"{path}: damaged pickle ({reason})") from None


def _check_memo(data: bytes) -> None:
    """Refuse large numbers of memo entries: a single wrong byte could make one reserve 64 GB.

    `pickletools.genops` cannot read Python 2's strings that are not ASCII.

    Raises:
        DataError: a number is larger than the pickle.
        KeyError: an unknown instruction, or no end.
        ValueError: an argument is cut off.
    """
    file = io.BytesIO(data)
    while (code := file.read(1)) != b".":
        opcode = OPCODES[code]
        if opcode.name == "STRING":
            file.readline()
        elif opcode.arg is not None:
            argument = opcode.arg.reader(file)
            if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(data):
                raise DataError(f"damaged pickle (memo entry {argument})")
