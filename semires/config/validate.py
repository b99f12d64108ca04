"""Read YAML, and validate a mapping of parameters with one message per error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semires.config.checks import check
from semires.config.messages import explain
from semires.config.schema import Params
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
        lines = [explain(e, Params) for e in error.errors()]
        lines[8:] = [f"and {len(lines) - 8} more"] * (len(lines) > 8)
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None
    try:
        check(params)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return params
