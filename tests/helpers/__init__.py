"""What tests of several folders share, on the path by `pythonpath` in pyproject.toml."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
