"""`semires evaluate` on published checkpoints, over data in REFER's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.refer_fixture import WORDS, write_refer
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import BertConfig

from semires.config.load import load_params
from semires.config.schema import Params
from semires.config.validate import validate
from semires.data.prepare import prepare
from semires.errors import WeightsError
from semires.evaluation.checkpoint import evaluate_checkpoint, open_checkpoint
from semires.files import JSON_SEAL, sha256_file
from semires.models import ReLA, build_model
from semires.models.text import Tokenizer
from semires.models.weights import read_checkpoint
from semires.runs.key import RunKey
from semires.runs.record import RunRecord
from semires.training.record import save_model

PUBLISHED = ROOT / "tests/golden/lavt_w7.pth"
GRES = ROOT / "tests/golden/rela_tiny.pth"
TOKENS = 120  # of the golden checkpoints


def parameters(**bert: Any) -> Params:
    tree = load_params(ROOT / "experiments/demo.yaml").model_dump()
    place = {**tree["datasets"]["refscenes"], "root": ".", "dataset": "refcoco", "split_by": "unc"}
    tree["datasets"] = {"refscenes": place | {"images": "images", "splits": ["train", "val"]}}
    tree["model"]["bert"] |= {"pretrained": None, "vocabulary": "vocab.txt", **bert}
    tree["data"] |= {"image_size": 64, "max_tokens": 12}
    tree["runtime"]["workers"] = 0
    return validate(tree)


@pytest.fixture
def refcoco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """20 prepared images with noise in them, 2 in val, and a vocabulary of 120 tokens."""
    monkeypatch.chdir(tmp_path)
    write_refer(tmp_path, 20, 30, 80)
    Path("images").mkdir()
    for entry in json.loads(Path("refcoco/instances.json").read_text())["images"]:
        noise = np.random.default_rng(entry["id"]).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"images/{entry['file_name']}")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"word{i}" for i in range(TOKENS - len(words))]
    Path("vocab.txt").write_text("\n".join(words) + "\n")
    params = parameters()
    prepare(params, "refscenes")
    return params


def test_a_published_checkpoint_is_evaluated(refcoco: Params):
    metrics, table = evaluate_checkpoint(refcoco, PUBLISHED, "refscenes", "val")
    refs = table["ref_id"].nunique()
    assert len(table) > refs == 4
    assert metrics["oIoU"] == 100 * table["intersection"].sum() / table["union"].sum()
    one = refcoco.model_copy(
        update={"evaluation": refcoco.evaluation.model_copy(update={"sentences": "one"})}
    )
    assert len(evaluate_checkpoint(one, PUBLISHED, "refscenes", "val")[1]) == refs


def test_a_published_gres_checkpoint_is_evaluated(
    refcoco: Params, capsys: pytest.CaptureFixture[str]
):
    trained = open_checkpoint(GRES, refcoco)
    assert isinstance(trained.model, ReLA)
    assert "lang_weight is 0.7; GRES's own evaluation code" in capsys.readouterr().err
    metrics, table = evaluate_checkpoint(refcoco, GRES, "refscenes", "val")
    assert metrics["oIoU"] == 100 * table["intersection"].sum() / table["union"].sum()


def test_a_published_file_of_another_model_is_one_line(refcoco: Params):
    torch.save({"model": {"encoder.weight": torch.zeros(1)}}, "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth: neither a LAVT .* nor a GRES checkpoint"):
        open_checkpoint("x.pth", refcoco)


def test_another_vocabulary_is_one_line(refcoco: Params):
    Path("vocab.txt").write_text(Path("vocab.txt").read_text() + "more\n")
    with pytest.raises(WeightsError, match=r"has 120 token embeddings, and the vocabulary has 121"):
        open_checkpoint(PUBLISHED, refcoco)


def test_the_text_encoder_may_be_given(refcoco: Params):
    content = read_checkpoint(PUBLISHED)
    torch.save({"model": content["model"]}, "x.pth")
    with pytest.raises(WeightsError, match="holds no text encoder"):
        open_checkpoint("x.pth", refcoco)
    own = open_checkpoint(PUBLISHED, refcoco).model.bert
    sizes: BertConfig = own.config
    places = own.embeddings.position_embeddings  # 64 of them; BERT has 512, as ours then must
    places.weight = nn.Parameter(functional.pad(places.weight, (0, 0, 0, 512 - len(places.weight))))
    sizes.max_position_embeddings = 512
    own.save_pretrained("bert")
    given = parameters(
        pretrained="bert",
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_hidden_layers,
        num_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size,
    )
    whole, _ = evaluate_checkpoint(refcoco, PUBLISHED, "refscenes", "val")
    assert evaluate_checkpoint(given, "x.pth", "refscenes", "val")[0] == whole


def save_run(params: Params, folder: Path) -> Path:
    """A run's folder as far as it is read here: its record and random weights."""
    torch.manual_seed(len(folder.name))
    model = build_model(params.model, Tokenizer.from_config(params.model), pretrained=False)
    folder.mkdir(parents=True)
    save_model(model, folder / "model.safetensors")
    files = {"model.safetensors": sha256_file(folder / "model.safetensors")}
    values = params.model_dump()
    RunRecord(
        key=RunKey("refscenes", 1, "supervised", 0),
        params={"model": values["model"], "data": values["data"]},
        metrics={}, best_step=1, fingerprints={}, numerics={}, n_refs_labelled=1,
        n_parameters=1, truncated_expressions=0, files=files,
    ).write(folder)  # fmt: skip
    return folder


def test_only_the_weights_of_a_run_are_read_under_its_name(refcoco: Params):
    run = save_run(refcoco, Path("runs/one"))
    for path in (run, run / "model.safetensors"):
        assert open_checkpoint(path, refcoco).model
    shutil.copy(run / "model.safetensors", run / "other.safetensors")
    for name, says in (
        ("last.safetensors", "no such file or folder"),
        ("nowhere/model.safetensors", "no such file or folder"),
        ("other.safetensors", "no checkpoint: give a run folder"),
        ("run.json", "no checkpoint: give a run folder"),
        ("last.pth", "no such file"),
        ("../two", "no such file or folder"),
        ("..", "no run folder"),
    ):
        with pytest.raises(WeightsError, match=says) as caught:
            open_checkpoint(run / name, refcoco)
        assert str(run / name) in str(caught.value)


def test_the_weights_must_be_those_of_the_record(refcoco: Params):
    one, other = save_run(refcoco, Path("runs/one")), save_run(refcoco, Path("runs/other"))
    for name in ("model.safetensors", "model.safetensors.sha256"):
        shutil.copy(other / name, one / name)
    with pytest.raises(WeightsError, match=r"not the weights of this run"):
        open_checkpoint(one, refcoco)
    (one / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no such file"):
        open_checkpoint(one, refcoco)


def test_a_record_of_another_model_is_one_line(refcoco: Params):
    run = save_run(refcoco, Path("runs/one"))
    record = run / "run.json"
    for name in ("unknown", 3, None):
        value = json.loads(record.read_text())
        value["params"]["model"]["name"] = name
        record.write_text(json.dumps({k: v for k, v in value.items() if k != JSON_SEAL}))
        with pytest.raises(WeightsError, match="no record of a training") as caught:
            open_checkpoint(run, refcoco)
        assert str(caught.value).isprintable()
