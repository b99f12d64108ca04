"""Read YAML, and validate a mapping of parameters with one message per error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semires.config.checks import check
from semires.config.schema import Params
from semires.config.sources import KINDS
from semires.errors import ConfigError


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 with the safe loader; `1e-4` is a number, as in DVC."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file.

    Raises:
        ConfigError: the file is missing or not valid YAML.
    """
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; run this in a clone of the repository, or give --params FILE"
        )
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, TypeError, LookupError, OSError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def validate(values: Any, where: str = "params") -> Params:
    """Check a mapping against :class:`Params`; `where` is its origin, for messages.

    Raises:
        ConfigError: the mapping is invalid; one line lists the errors.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: does not contain a mapping of parameters")
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        lines = [explain(each, values) for each in error.errors()]
        lines[8:] = [f"and {len(lines) - 8} more"] * (len(lines) > 8)
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None
    try:
        check(params)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None
    return params


def explain(error: Any, values: Any) -> str:
    """Return one line for one item of ``ValidationError.errors()`` about ``values``."""
    kind, location = error["type"], error["loc"]
    key = ".".join(_path(location, values, ends_outside=kind == "missing"))
    if kind == "missing":
        return f"{key}: missing"
    if location[-1:] == ("[key]",) and kind == "string_type":
        return f'{key}: a key must be text; write "{location[-2]}" in quotes'
    message = error["msg"].removeprefix("Value error, ")
    if kind.startswith("union_tag"):
        message = f"needs a `kind` of {', '.join(KINDS)}"
    given = None if kind == "value_error" else error.get("input")
    shown = f", not {_shown(given)}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{shown}" if key else message


def _path(location: tuple[int | str, ...], values: Any, ends_outside: bool) -> list[str]:
    """Return the path of a key as spelled in the file, without steps that pydantic adds.

    Such a step is the tag of a union. ``ends_outside``: the key itself does not exist.
    """
    parts = []
    for place, part in enumerate(location, start=1):
        inside = isinstance(values, dict) and part in values
        if inside or (isinstance(values, list) and isinstance(part, int)):
            parts.append(str(part))
            values = values[part]
        elif location[place:] == ("[key]",) or (ends_outside and place == len(location)):
            parts.append(str(part))
    return parts


def _shown(value: Any) -> str:
    """Return the beginning of a value, or the size of a number that is too long to print."""
    try:
        return repr(value)[:80]
    except ValueError:
        return f"a number of {value.bit_length()} bits"
