"""Shared by all tests: no tracking store unless a test asks for one, one thread of arithmetic."""

from __future__ import annotations

import os

import pytest

from semires import numerics

numerics.select("avx2")  # as params.yaml; golden losses and byte comparisons depend on it
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Runs of the tests leave no journal and start no sender."""
    if "tracked" in request.keywords:
        monkeypatch.delenv("SEMIRES_TRACKING", raising=False)  # a module's fixture may have set it
    else:
        monkeypatch.setenv("SEMIRES_TRACKING", "off")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
