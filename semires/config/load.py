"""Load params.yaml: parse and validate it, including the overrides of every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semires.config.resolve import check_overrides
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError

EXTENDS = "extends"  # the key of a file that has only its differences from another one


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file.

    Raises:
        ConfigError: the file is missing or not YAML, or a key is unknown or invalid; one line lists
            all errors. Or it has only its differences from another file.
    """
    values = read_yaml(path)
    if isinstance(values, dict) and EXTENDS in values:
        raise ConfigError(f"{path}: extends {values[EXTENDS]}; run `semires use {path}`")
    return validate_file(values, str(path))


def validate_file(values: Any, where: str) -> Params:
    """Validate the content of a file, including the overrides of each method."""
    params = validate(values, where)
    try:
        check_overrides(params)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return params
