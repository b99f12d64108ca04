"""A project with a migrated store, for the tests of tracking."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.tracked import ROOT

from semires import tracking
from semires.config.load import load_params
from semires.config.schema import Params
from semires.mlflow_store import Store


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: creating one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def no_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `sync` writes to the store, in this process, which has imported mlflow already."""

    def ends_at_once(*_: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(["true"], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(tracking, "_start_sender", ends_at_once)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "experiments/demo.yaml")
