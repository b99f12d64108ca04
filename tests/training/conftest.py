"""A very small study, made once a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.small_study import made_study


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything before the trainings, as the current folder."""
    folder = tmp_path_factory.mktemp("study")
    with made_study(folder):
        yield folder
