"""The counter behind docs/paper.md's hours."""

import importlib
from types import ModuleType

import pytest
import torch
from helpers import ROOT

from semires.config import load_params
from semires.data.prepare import TOTALS


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("operations")


def test_products_and_convolutions_count_twice_their_multiplications(operations):
    linear = torch.nn.Linear(3, 5)
    assert operations.count(lambda: linear(torch.empty(7, 3))) == 2 * 7 * 3 * 5
    conv = torch.nn.Conv2d(4, 6, 3, padding=1)
    assert operations.count(lambda: conv(torch.empty(2, 4, 8, 9))) == 2 * 2 * 6 * 8 * 9 * 4 * 9


def test_the_rows_of_a_small_study(operations, monkeypatch):
    """A student step is three forward passes for each sample, the teacher's one more."""
    small = operations.Network(10.0, 1)
    monkeypatch.setattr(operations, "lavt", lambda _: small)
    monkeypatch.setattr(operations, "sam_vit_h", lambda *_: (operations.Network(2.0, 1), 3.0))
    rows = [each[-1] for each in operations.rows(load_params(ROOT / "experiments/refcoco.yaml"))]
    images = TOTALS["refcoco", "unc"]["images"]
    assert rows[:2] == [2.0 * images, 3.0 * images]
    assert rows[2] == 3 * 1206 * 10.0
    assert rows[3] == (120_624 - 1206) * 7 * 10.0
    assert rows[4] == 40 * rows[3]
