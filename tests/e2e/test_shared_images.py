"""Data sets with `images_of` through DVC: images once, proposals once, expressions by `express`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import dvc_study

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
NAMES = ["refscenes", "refscenes+", "refscenes-g"]


def test_images_and_proposals_have_one_stage(tmp_path: Path):
    study = dvc_study.Study(tmp_path)
    study.params["study"]["generated"] = NAMES
    study.params["study"]["runs"][0]["datasets"] = NAMES
    study.write_params()
    stages = study.run("dvc", "stage", "list", "--name-only").split()
    assert [name for name in stages if name.startswith(("generate", "express", "propose"))] == [
        "generate@refscenes", "express@refscenes+", "express@refscenes-g", "propose@refscenes-sam"
    ]  # fmt: skip
    assert {"mutual@refscenes+-10-cpi-u-0", "labels@refscenes-g-10-0"} < set(stages)
    ran = study.repro("prepare@refscenes+")
    assert ran == ["generate@refscenes", "express@refscenes+", "prepare@refscenes+"]
    assert [path.name for path in (tmp_path / "data/raw/images").iterdir()] == ["refscenes"]
    study.params["scenes"]["size_px"] = 72
    study.write_params()
    assert "express@refscenes+" in study.changed_stages()
