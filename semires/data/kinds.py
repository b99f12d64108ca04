"""The kinds of generated expressions, recognised by their words (data/expressions.py)."""

from __future__ import annotations

import re

#: In this order: the first pattern that an expression contains decides.
_PATTERNS = {
    "ordinal": r"^(the )?(first|second|third|fourth) .* from the (left|right)( side)?$",
    "relation": r" (left of|right of|above|below) the ",
    "location": r"^(left|right|top|bottom) | (on|at) the (left|right|top|bottom)( side)?$",
}


def kind_of(expression: str) -> str:
    """Return ``attribute``, ``location``, ``ordinal`` or ``relation``."""
    for kind, pattern in _PATTERNS.items():
        if re.search(pattern, expression):
            return kind
    return "attribute"
