"""A data set with `images_of` trains on the proposals of the data set that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.small_study import small_params

from semires.data.prepare import prepare
from semires.data.refscenes import generate
from semires.data.splits import make_split
from semires.errors import ConfigError
from semires.files import read_json
from semires.proposals.propose import propose
from semires.runs.key import RunKey
from semires.runs.record import RunRecord
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual
from semires.tuning.counts import counts_of

DATASET = "refscenes-g"


def test_a_relative_of_refscenes_uses_its_proposals(
    small_study: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    params = small_params()
    generate(params, DATASET)
    prepare(params, DATASET)
    make_split(params, DATASET, 25)
    with pytest.raises(ConfigError, match=r"run `semires propose --dataset refscenes`"):
        propose(params, DATASET, "felzenszwalb")
    supervised, key = (RunKey(DATASET, 25, method, 0) for method in ("supervised", "cpi-u"))
    burn_in(params, supervised)
    mutual(params, key)
    manifest = read_json(Path("proposals/refscenes/felzenszwalb/manifest.json"))
    record = RunRecord.read(key.folder)
    assert record.fingerprints["proposals"] == manifest["fingerprint"]
    assert set(record.metrics) - {"pseudo", "val_shuffled"} == {"val", "test"}
    assert len(counts_of(params, supervised).shapes) > 0  # for `labels` and `tune`
    assert [path.name for path in Path("proposals").iterdir()] == ["refscenes"]
    assert [path.name for path in Path("data/raw/images").iterdir()] == ["refscenes"]
