"""Safe loading of untrusted pickles: containers, strings and numbers only; no code runs."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from semires.errors import DataError

MAX_BYTES = 2**30
# First bytes of files that are sometimes renamed to `.p`.
OTHER_FORMATS = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip file", b"{": "JSON"}
OTHER_FORMATS |= {
    b"[": "JSON",
    b"\xef\xbb\xbf": "JSON",
    b"version https://git-lfs": "a Git LFS pointer",
}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that rejects every class; plain values need none."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(f"refused: it names the class {module}.{name}"[:150])


def read_plain_pickle(path: str | Path) -> Any:
    """Load a pickle that contains only containers, strings, bytes, numbers, booleans and None.

    Byte strings of Python 2 are decoded as latin-1, as REFER does.

    Raises:
        DataError: the file is missing, damaged or of another format, or it names a class. No class
            is loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: larger than 1 GiB; annotation files are smaller")
    data = path.read_bytes()
    for start, name in OTHER_FORMATS.items():
        if data.startswith(start):
            raise DataError(f"{path}: is {name}, not a pickle; unpack or convert it first")
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}; only containers, strings and numbers are read") from None
    except Exception as error:  # a damaged pickle can raise any exception
        reason = " ".join([type(error).__name__, *str(error).split()])[:120]
        raise DataError(f"{path}: damaged pickle ({reason})") from None
