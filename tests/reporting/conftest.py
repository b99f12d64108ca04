"""A workspace with fake runs of a small study, shared by the report's tests (read-only)."""

import shutil

import pytest
from helpers import ROOT, fake_runs
from helpers.report_study import small_study

from semires.runs.key import RunKey


@pytest.fixture(scope="session")
def small_params():
    return small_study()


@pytest.fixture(scope="session")
def made_workspace(tmp_path_factory, small_params):
    root = tmp_path_factory.mktemp("workspace")
    fake_runs.write_study(root, small_params, seeds=(0, 1))
    fake_runs.write_labels(RunKey("refscenes", 10, "supervised", 0), root)
    shutil.copytree(ROOT / "experiments/tables", root / "experiments/tables")
    shutil.copy(ROOT / "experiments/claims.yaml", root / "experiments")
    return root


@pytest.fixture
def workspace(made_workspace, monkeypatch):
    """The shared workspace as current folder: tests must not change its runs."""
    monkeypatch.chdir(made_workspace)
    return made_workspace


@pytest.fixture
def own_workspace(made_workspace, tmp_path, monkeypatch):
    """A copy that a test may damage."""
    root = tmp_path / "workspace"
    shutil.copytree(made_workspace, root, ignore=shutil.ignore_patterns("reports"))
    monkeypatch.chdir(root)
    return root
