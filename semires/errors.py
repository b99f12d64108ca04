"""Expected user and environment errors: one line each, exit code 2, no traceback."""

from __future__ import annotations


class SemiresError(Exception):
    """Invalid input or environment. The text is one line: what is wrong, where, how to fix it."""

    exit_code = 2


class ConfigError(SemiresError):
    """A wrong, missing or unknown parameter; the text names the key's path."""


class DataError(SemiresError):
    """A data set is missing, damaged or inconsistent; the text names the file."""


class WeightsError(SemiresError):
    """A checkpoint is missing, damaged or unsafe to load, or does not fit the model."""


class CorruptCacheError(SemiresError):
    """A file that semires wrote is damaged (wrong checksum or format)."""


class BusyError(SemiresError):
    """Another process is doing the same work and holds its lock."""


class NonFiniteLossError(SemiresError):
    """The loss became NaN or infinite; the text gives the step and the path of the saved state."""


class Interrupted(SemiresError):
    """The process stopped on SIGINT or SIGTERM after saving its state; exit code 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
