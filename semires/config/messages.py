"""The parts of messages about names in params.yaml: unknown names and the nearest known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from semires.errors import ConfigError


def require(names: Iterable[Any], known: Iterable[Any], key: str, where: str) -> None:
    """Check that all names are in ``known``.

    Raises:
        ConfigError: a name is unknown; the text gives the key, the name and the nearest known name.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: {name!r} is not a key of `{where}`{nearest(name, known)}")


def nearest(name: Any, known: Iterable[Any]) -> str:
    """Return the end of a message: the most similar known name, or else all known names."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(names)}" if names else ""
