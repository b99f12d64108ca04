"""Pickles from strangers: containers, strings and numbers are read, nothing is ever run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from semires.errors import DataError

MAX_BYTES = 2**30


class _Refusing(pickle.Unpickler):
    """Plain values need no class, so every class a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"names the class {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("holds a persistent reference")


def read_plain_pickle(path: str | Path) -> Any:
    """Lists, dicts, tuples, sets, strings, bytes, numbers, booleans and None of a pickle file.

    Python 2's pickles are read with latin-1, as numpy and REFER do.

    Raises:
        DataError: missing, damaged, or naming any class (which is not loaded).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: larger than 1 GiB, which no annotation file is")
    try:
        return _Refusing(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
    except DataError as error:
        raise DataError(
            f"{path}: refused: it {error}; only containers, strings and numbers are read"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [""])[0][:120]
        raise DataError(f"{path}: damaged pickle ({type(error).__name__} {reason})") from None
