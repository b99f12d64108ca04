"""Pickles from strangers: containers, strings and numbers are read, nothing is ever run.

Python's own (not the C) unpickler is used: its memo is a dict, so that a pickle of a few bytes
cannot claim gigabytes, and dict keys can be checked before they are hashed, since hashing a tuple
nested a million deep ends the process. REFER's largest file takes it about 3 s.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from semires.errors import DataError

MAX_BYTES = 2**30
# Opcodes that call something, fetch something from outside, or reserve memory before they read.
_REFUSED: tuple[str, ...] = ("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ")
_REFUSED += ("EXT1", "EXT2", "EXT4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER")
_SCALARS = (str, bytes, int, float, type(None))


class _RefusedError(Exception):
    """What a pickle holds beside plain values; the text completes 'it ...'."""


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        if not isinstance(key, _SCALARS):
            raise _RefusedError(f"uses a {type(key).__name__} as a key")


class _Refusing(pickle._Unpickler):
    """Plain values need no class, so every class a pickle names is refused."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedError(f"names the class {module}.{name}"[:120])

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("holds a persistent reference")


def _stack(unpickler: Any) -> list[Any]:
    values: list[Any] = unpickler.stack
    return values


# What each opcode that hashes is about to hash, seen before it does.
_KEYS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "SETITEM": lambda unpickler: _stack(unpickler)[-2:-1],
    "SETITEMS": lambda unpickler: _stack(unpickler)[::2],
    "DICT": lambda unpickler: _stack(unpickler)[::2],
    "ADDITEMS": _stack,
    "FROZENSET": _stack,
}


def _checked(name: str) -> Callable[[Any], None]:
    original, keys = pickle._Unpickler.dispatch[getattr(pickle, name)[0]], _KEYS[name]

    def load(unpickler: Any) -> None:
        _check_keys(keys(unpickler))
        original(unpickler)

    return load


def _refusal(name: str) -> Callable[[Any], None]:
    def load(unpickler: Any) -> None:
        raise _RefusedError(f"holds the instruction {name}")

    return load


_Refusing.dispatch |= {getattr(pickle, name)[0]: _checked(name) for name in _KEYS}
_Refusing.dispatch |= {getattr(pickle, name)[0]: _refusal(name) for name in _REFUSED}


def read_plain_pickle(path: str | Path) -> Any:
    """Lists, dicts, tuples, sets, strings, bytes, numbers, booleans and None of a pickle file.

    Python 2's pickles are read with latin-1, as numpy and REFER do. Keys are strings, bytes,
    numbers, booleans or None.

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
    except _RefusedError as error:
        raise DataError(
            f"{path}: refused: it {error}; only containers, strings and numbers are read"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [""])[0][:120]
        raise DataError(f"{path}: damaged pickle ({type(error).__name__} {reason})") from None
