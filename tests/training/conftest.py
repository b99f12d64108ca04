"""A very small study, made once a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.small_study import made_study, small_params

from semires.runs.key import RunKey
from semires.training.burn_in import burn_in


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything before the trainings, as the current folder."""
    folder = tmp_path_factory.mktemp("study")
    with made_study(folder):
        yield folder


@pytest.fixture(scope="module")
def teacher(small_study: Path) -> Path:
    """The small study with its burn-in at 25 %."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIRES_TRACKING", "off")
        burn_in(small_params(), RunKey("refscenes", 25, "supervised", 0))
    return small_study
