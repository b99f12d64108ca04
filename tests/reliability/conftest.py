"""A very small study, made once a module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.small_study import made_study


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with scenes, tables, split, proposals and a burn-in, as the current folder."""
    from semires.runs.key import RunKey
    from semires.training.burn_in import burn_in

    os.environ["SEMIRES_TRACKING"] = "off"
    folder = tmp_path_factory.mktemp("study")
    with made_study(folder) as params:
        burn_in(params, RunKey("refscenes", 25, "supervised", 0))
        yield folder
