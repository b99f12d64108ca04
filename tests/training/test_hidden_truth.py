"""The ground truth of the unlabelled part changes no weight: only metrics are computed from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.small_study import small_params

from semires.data.tables import Tables
from semires.files import read_json
from semires.runs.key import RunKey
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual

SHUFFLED_PART = {"labelled": 0, "unlabelled": 1}


@pytest.fixture(scope="module")
def burned(small_study: Path) -> None:
    os.environ["SEMIRES_TRACKING"] = "off"
    burn_in(small_params(), RunKey("refscenes", 25, "supervised", 0))


def train(method: str) -> dict[str, Any]:
    """Mutual learning; the run's files, read."""
    key = RunKey("refscenes", 25, method, 0)
    mutual(small_params(), key)
    return {
        "weights": (key.folder / "model.safetensors").read_bytes(),
        "predictions": (key.folder / "predictions.parquet").read_bytes(),
        "corrections": pd.read_parquet(key.folder / "corrections.parquet"),
        "history": pd.read_csv(key.folder / "history.csv"),
        "metrics": read_json(key.folder / "metrics.json"),
    }


def shuffle_masks(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Give every reference of a part the ground truth of another one."""
    original = Tables.labelled_and_unlabelled

    def split(tables: Tables, dataset: str, fraction: float) -> tuple[pd.DataFrame, ...]:
        parts = [*original(tables, dataset, fraction)]
        assert len(tables.images[["height", "width"]].drop_duplicates()) == 1, "masks fit all"
        refs = parts[SHUFFLED_PART[part]]
        others = np.roll(refs["mask"].to_numpy(), len(refs) // 2)
        assert (others != refs["mask"]).all()
        parts[SHUFFLED_PART[part]] = refs.assign(mask=others)
        return tuple(parts)

    monkeypatch.setattr(Tables, "labelled_and_unlabelled", split)


@pytest.mark.parametrize("method", ["cpi-u", "baseline-95"])
def test_hidden_truth_changes_only_logged_metrics(
    burned: None, monkeypatch: pytest.MonkeyPatch, method: str
):
    plain = train(method)
    shuffle_masks(monkeypatch, "unlabelled")
    shuffled = train(method)
    assert shuffled["weights"] == plain["weights"]
    assert shuffled["predictions"] == plain["predictions"]
    for name in ("ref_id", "image_id", "matched"):
        assert (shuffled["corrections"][name] == plain["corrections"][name]).all()
    differing = {
        name
        for name in plain["history"]
        if shuffled["history"][name].tolist() != plain["history"][name].tolist()
    }
    assert differing == {"pseudo/raw_oIoU", "pseudo/refined_oIoU"}
    before, after = plain["metrics"].pop("pseudo"), shuffled["metrics"].pop("pseudo")
    assert before["raw_oIoU"] != after["raw_oIoU"]
    assert shuffled["metrics"] == plain["metrics"]


def test_the_same_shuffle_of_labelled_masks_changes_the_weights(
    burned: None, monkeypatch: pytest.MonkeyPatch
):
    """The test above can fail: the shuffled masks reach the training."""
    plain = train("cpi-u")
    shuffle_masks(monkeypatch, "labelled")
    assert train("cpi-u")["weights"] != plain["weights"]
