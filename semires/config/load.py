"""Loading params.yaml: parse, validate, then check what only a whole file can get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semires.config.checks import misspelt_fractions
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file.

    Raises:
        ConfigError: the file is missing, no YAML, or a key is unknown or wrong; one line a fault.
    """
    return validate_file(read_yaml(path), str(path))


def validate_file(values: Any, where: str) -> Params:
    """:func:`validate` for a file: fractions as DVC spells them, overrides that each method can."""
    from semires.config.resolve import check_overrides

    params = validate(values, where)
    if lines := misspelt_fractions(values["study"]):
        raise ConfigError(f"{where}: {lines[0]}")
    check_overrides(params)
    return params
