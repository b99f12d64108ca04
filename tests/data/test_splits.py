"""The draw of labelled images, and explicit lists."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semires.config.load import load_params
from semires.data.splits import labelled_images, make_split, read_labelled_list
from semires.data.tables import write_tables
from semires.errors import ConfigError, DataError
from semires.files import read_json

PUBLISHED = Path(__file__).resolve().parents[3] / "shared/refcoco/refcoco_1pct_image.json"


def test_the_published_rule():
    ids = [5, 3, 5, 9, 3, 11, 2, 40, 41, 42, 43, 44]
    unique = [5, 3, 9, 11, 2, 40, 41, 42, 43, 44]
    assert labelled_images(ids, 0.3) == random.Random(0).sample(unique, 3)


@given(st.integers(1, 20_000), st.integers(1, 1000))
def test_the_number_is_the_exact_floor(count: int, thousandths: int):
    drawn = labelled_images(range(count), thousandths / 1000)
    assert len(drawn) == len(set(drawn)) == count * thousandths // 1000


@pytest.mark.parametrize(("percent", "images"), [("0.001", 16), ("0.01", 169), ("0.05", 849)])
def test_refcocos_numbers(percent: str, images: int):
    assert len(labelled_images(range(16_994), percent)) == images


def test_a_fraction_is_a_fraction():
    with pytest.raises(ValueError, match="between 0 and 1"):
        labelled_images([1, 2], 5)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    refs = pd.DataFrame({"image_id": [1, 1, 2, 3, 4, 9], "split": ["train"] * 5 + ["val"]})
    write_tables("refscenes", refs, refs)
    return tmp_path


def test_a_split_is_written_with_its_counts(project: Path):
    make_split(load_params_at(project), "refscenes", 50)
    split = read_json("data/splits/refscenes/50.json")
    assert split["n_images"] == 4
    assert split["n_labelled"] == len(split["labelled_images"]) == 2
    assert 9 not in split["labelled_images"]


def load_params_at(folder: Path, **lists: str):
    params = load_params(Path(__file__).resolve().parents[2] / "experiments/demo.yaml")
    place = params.datasets["refscenes"].model_copy(update={"labelled_lists": lists})
    return params.model_copy(update={"datasets": {"refscenes": place}})


def test_a_fraction_of_no_image_is_refused(project: Path):
    with pytest.raises(
        ConfigError, match=r"1 % of the 4 train images of refscenes is less than one image"
    ):
        make_split(load_params_at(project), "refscenes", 1)


def test_an_explicit_list_replaces_the_draw(project: Path):
    Path("list.json").write_text("[4, 1]")
    make_split(load_params_at(project, **{"1": "list.json"}), "refscenes", 1)
    assert read_json("data/splits/refscenes/1.json")["labelled_images"] == [4, 1]
    Path("list.json").write_text("[4, 77]")
    with pytest.raises(DataError, match="77 the first"):
        make_split(load_params_at(project, **{"1": "list.json"}), "refscenes", 1)


NO_LISTS = ["{}", '{"train": [{"x": 1}]}', "[]", '["a"]', "[1.5]", "nonsense", '"123"']


@pytest.mark.parametrize("content", [*NO_LISTS, '["' + "[" * 10**5 + '"]'], ids=range(8))
def test_a_list_of_something_else_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(Exception, match=r"list\.json"):
        read_labelled_list(path)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published split is not here")
def test_the_published_semires_file():
    assert len(read_labelled_list(PUBLISHED)) == 169
    content = json.loads(PUBLISHED.read_text())
    assert {k: len(v) for k, v in content.items()} == {
        "train": 432, "val": 10_834, "testA": 5_657, "testB": 5_095,
    }  # fmt: skip
    assert sum(len(entry["refs"]) for entry in content["train"]) == 1_222
