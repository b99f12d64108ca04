"""What the tests of reliability share: a very small study, and modules that lie elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parents[1]


def module_at(path: str) -> ModuleType:
    """A helper module of another folder of tests."""
    name = "reliability_" + Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with scenes, tables, split, proposals and a burn-in, as the current folder."""
    from semires.data.prepare import prepare
    from semires.data.refscenes import generate
    from semires.data.splits import make_split
    from semires.layout import Cell
    from semires.proposals.propose import propose
    from semires.training.burn_in import burn_in

    os.environ["SEMIRES_TRACKING"] = "off"
    before, folder = Path.cwd(), tmp_path_factory.mktemp("study")
    os.chdir(folder)
    try:
        params = module_at("training/conftest.py").small_params()
        generate(params, "refscenes")
        prepare(params, "refscenes")
        make_split(params, "refscenes", 25)
        propose(params, "refscenes", "felzenszwalb")
        burn_in(params, Cell("refscenes", 25, "supervised", 0))
        yield folder
    finally:
        os.chdir(before)
