"""`dvc exp run --queue` and `--temp` on a data set of the user's own, with a real queue.

DVC runs both in a copy of the repository that has no ignored files. The annotations are in DVC
(`dvc add`); images and lists are read from the workspace.
"""

from __future__ import annotations

import json
import time

import pytest
from helpers import dvc_study
from helpers.refer_fixture import write_refer
from PIL import Image

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SPLIT = "split@mine-25"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dvc_study.Study:
    """A study of 20 grey images, up to its split, committed."""
    made = dvc_study.Study(tmp_path_factory.mktemp("own"))
    raw = made.folder / "data/raw"
    write_refer(raw, images=20, objects=20, expressions=20)
    images = raw / "images/mine"
    images.mkdir(parents=True)
    for entry in json.loads((raw / "refcoco/instances.json").read_text())["images"]:
        Image.new("RGB", (640, 480), (90, 90, 90)).save(images / entry["file_name"])
    (raw / "list.json").write_text(json.dumps([67, 96]))
    made.params["datasets"] = {"mine": {
        "root": "data/raw", "dataset": "refcoco", "split_by": "unc", "splits": ["train", "val"],
        "images": "data/raw/images/mine", "labelled_lists": {"25": "data/raw/list.json"},
    }}  # fmt: skip
    block = {"datasets": ["mine"], "fractions": [25], "methods": ["cpi-u"], "seeds": [0]}
    made.params["study"] = {"generated": [], "runs": [block], "tune": []}
    made.write_params()
    made.run("git", "config", "user.name", "test")
    made.run("git", "config", "user.email", "test@example.org")
    made.run("dvc", "add", "--quiet", "data/raw/refcoco")
    assert made.repro(SPLIT) == ["prepare@mine", SPLIT]
    made.commit()
    assert "data/raw/refcoco.dvc" in made.run("git", "ls-files").splitlines()
    return made


def test_a_queued_experiment_reads_the_raw_data_of_the_workspace(study: dvc_study.Study):
    changes = ("-S", "datasets.mine.splits=[val,train]", "-S", "split.seed=1")
    study.run("dvc", "exp", "run", "--queue", "--name", "queued", *changes, SPLIT)
    study.run("dvc", "queue", "start", "--jobs", "1")
    deadline, status = time.monotonic() + 300, ""
    while not any(end in status for end in ("Success", "Failed")) and time.monotonic() < deadline:
        time.sleep(0.5)
        status = study.run("dvc", "queue", "status")
    said = study.run("dvc", "queue", "logs", "queued")
    assert "Success" in status, said
    assert "Running stage 'prepare@mine'" in said
    assert "2 of 18 train images are labelled" in said
    # The temporary copy was removed, and what its links led to was not.
    assert len(list((study.folder / "data/raw/images/mine").iterdir())) == 20
    assert (study.folder / "data/raw/list.json").is_file()


def test_an_experiment_with_another_study_is_refused_in_one_line(study: dvc_study.Study):
    said = study.failed("dvc", "exp", "run", "--temp", "-S", "study.runs.0.seeds=[0,1]",
                        "-S", "split.seed=3", SPLIT)  # fmt: skip
    assert "semires: experiments/grid.yaml: does not match `study`" in said
    assert "Traceback" not in said
