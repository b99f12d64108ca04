"""Safe loading of untrusted pickles: lists, dicts, strings and numbers only; no code runs.

The instructions of the pickle are checked before any of them is executed. Instructions that name a
class, call a function, or can claim memory or time out of proportion to the file are refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from semires.errors import DataError

MAX_BYTES = 2**30
# First bytes of files that are sometimes renamed to `.p`.
OTHER_FORMATS = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"{": "JSON"}
OTHER_FORMATS |= {b"[": "JSON", b"\xef\xbb\xbf": "JSON", b"version https:": "a Git LFS pointer"}
ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
}
OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class, although the check before has refused every name of one."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"refused: it names the class {module}.{name}"[:150])


def read_plain_pickle(path: str | Path) -> Any:
    """Lists, dicts, strings, bytes, numbers, booleans and None of a pickle file.

    Python 2's pickles are read with latin-1, as numpy and REFER do.

    Raises:
        DataError: missing, damaged, of another format, or with anything else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: larger than 1 GiB, which no annotation file is")
    data = path.read_bytes()
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            raise DataError(f"{path}: is {name}, not a pickle; unpack or convert it first")
    try:
        _check_instructions(data)
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}; only lists, dicts, text and numbers are read") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join([type(error).__name__, *str(error).split()])[:120]
        raise DataError(f"{path}: damaged pickle ({reason})") from None


def _check_instructions(data: bytes) -> None:
    """Refuse a pickle by its instructions, without executing them.

    Tuples and sets are refused: hashing nested ones can overflow the stack or never end.

    Raises:
        DataError: an instruction that is not allowed; the text names it, or the class it names.
        ValueError: the pickle is damaged.
    """
    names: deque[str] = deque(maxlen=2)  # the latest strings: STACK_GLOBAL takes its name from them
    for count, (opcode, argument) in enumerate(_instructions(data)):
        if opcode.name in ALLOWED:
            if isinstance(argument, str):
                names.append(argument)
            if opcode.name in MEMO_WRITES and int(argument or 0) > count:  # reserves memory
                raise DataError(f"refused: it has a memo entry {argument}")
        elif opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            name = ".".join(names) if argument is None else str(argument).replace(" ", ".", 1)
            name = " ".join(name.split())[:100]
            raise DataError(f"refused: it names the class {name}")
        else:
            raise DataError(f"refused: it holds the instruction {opcode.name}")


def _instructions(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """The instructions of a pickle with their arguments, up to the end of the pickle.

    Like `pickletools.genops`, which cannot read Python 2's strings that are not ASCII.

    Raises:
        ValueError: an unknown instruction, or an argument that is cut off.
    """
    file = io.BytesIO(data)
    while True:
        code = file.read(1)
        opcode = OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"unknown instruction {code!r}")
        if opcode.arg is None:
            yield opcode, None
        elif opcode.name == "STRING":
            yield opcode, file.readline().decode("latin-1").strip()
        else:
            yield opcode, opcode.arg.reader(file)
        if opcode.name == "STOP":
            return
