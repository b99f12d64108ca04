"""A tenth of RefCOCO's size through `prepare` and `split`, and damage found on the way."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.refer_fixture import write_refer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semires.data.prepare import PUBLISHED, compare
from semires.data.refer import read_refer
from semires.errors import DataError
from semires.files import read_json, read_parquet

STAGES = """
import sys
from pathlib import Path
from semires.config.load import load_params
from semires.data.prepare import prepare
from semires.data.splits import make_split
params = load_params(sys.argv[1])
place = params.datasets["refscenes"].model_copy(
    update={"root": ".", "dataset": "refcoco", "images": "none", "splits": ["train", "val"]}
)
params = params.model_copy(update={"datasets": {"refcoco": place}})
prepare(params, "refcoco", check_images=False)
make_split(params, "refcoco", 1)
# not ru_maxrss, which a child inherits from the test runner across exec
status = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))
"""


def test_a_tenth_of_the_full_size(tmp_path: Path):
    write_refer(tmp_path, images=2_000, objects=5_000, expressions=14_200)
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(ROOT / "experiments/demo.yaml")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    prepared = tmp_path / "data/prepared/refcoco"
    refs, images = (read_parquet(prepared / f"{name}.parquet") for name in ("refs", "images"))
    assert len(images) == 2_000
    assert refs["sentences"].map(len).sum() == 14_200
    assert refs["ref_id"].tolist() == list(range(5_000)), "the pickle's order"
    summary = read_json(prepared / "summary.json")
    assert sum(row["refs"] for row in summary["counts"].values()) == 5_000
    split = read_json(tmp_path / "data/splits/refcoco/1.json")
    assert split["n_labelled"] == 18
    train = set(images.loc[images["split"] == "train", "image_id"])
    assert train.issuperset(split["labelled_images"])
    peak_mb = int(done.stdout.splitlines()[-1])
    assert peak_mb < 500, "a tenth of the data within the libraries' own size and some"


def test_the_published_counts_agree_with_each_other():
    published = PUBLISHED["refcoco", "unc"]
    counts = {split: dict(row) for split, row in published.items()}
    text = compare(counts, published)
    assert text.count("as published") == 5
    assert "DIFFERS" not in text
    total = counts.pop("all")
    for name in ("refs", "expressions"):
        assert sum(row[name] for row in counts.values()) == total[name]
    counts["val"]["expressions"] -= 1
    text = compare(counts, published)
    assert "DIFFERS: published 3,811 refs on 1,500 images, 10,834 expressions" in text


def test_the_total_is_compared_where_the_paper_states_it():
    row = {"refs": 5, "images": 2, "expressions": 9}
    assert "as published" in compare({"all": row}, {"all": dict(row)})
    assert "DIFFERS: published 6 refs" in compare({"all": row}, {"all": {**row, "refs": 6}})
    for published in ({}, {"train": row}):
        total = compare({"all": row}, published).splitlines()[1]
        assert total.split() == ["all", "5", "2", "9"]


VALUES = st.sampled_from(
    [None, True, -1, 0, 10**30, 1e308, float("inf"), float("nan"), "", "x", b"y", [], [[]], {}, [3]]
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_wrong_value_anywhere_is_one_line(tmp_path: Path, data: st.DataObject):
    write_refer(tmp_path, images=2, objects=2, expressions=2)
    folder = tmp_path / "refcoco"
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())  # of our own making
    content = json.loads((folder / "instances.json").read_text())
    part = data.draw(st.sampled_from(["refs", "sentences", "images", "annotations", "categories"]))
    if part in ("refs", "sentences"):
        record: dict[str, Any] = refs[0] if part == "refs" else refs[0]["sentences"][0]
        record[data.draw(st.sampled_from(sorted(record)))] = data.draw(VALUES)
        (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    else:
        record = content[part][0]
        value = data.draw(VALUES.filter(lambda v: not isinstance(v, bytes)))
        record[data.draw(st.sampled_from(sorted({*record, "sha256"})))] = value
        (folder / "instances.json").write_text(json.dumps(content))
    with contextlib.suppress(DataError):  # anything else is a traceback
        read_refer(tmp_path, "refcoco", "unc")


def test_text_that_would_never_end_is_refused(tmp_path: Path):
    write_refer(tmp_path, images=2, objects=2, expressions=2)
    path = tmp_path / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    shared: Any = []
    for _ in range(100):
        shared = [shared, shared]  # str() of it takes 2**100 steps
    for key in ("ref_id", "ann_id", "image_id", "category_id", "split", "sentences"):
        path.write_bytes(pickle.dumps([{**refs[0], key: shared}], 2))
        with pytest.raises(DataError):
            read_refer(tmp_path, "refcoco", "unc")
