"""What can go wrong through no fault of the code: one line each, exit code 2, no traceback."""

from __future__ import annotations


class SemiresError(Exception):
    """Bad input or a bad environment. Its text is one line: what, where, how to mend."""

    exit_code = 2


class ConfigError(SemiresError):
    """A wrong, missing or unknown parameter; the text names the key's path."""


class DataError(SemiresError):
    """A data set that is missing, damaged or contradicts itself; the text names the file."""


class WeightsError(SemiresError):
    """A checkpoint that is missing, damaged, of another shape or unsafe to read."""


class CorruptCacheError(SemiresError):
    """Bytes of our own making that no longer are what was written (checksum or format)."""


class BusyError(SemiresError):
    """Another process holds the lock of the same work."""


class NonFiniteLossError(SemiresError):
    """The loss became NaN or infinite; the text names the step and where the state was saved."""


class Interrupted(SemiresError):
    """SIGINT or SIGTERM arrived and the state was saved; the exit code is 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
