import argparse
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.published import to_published
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semires.errors import WeightsError
from semires.models import LAVT, load_official, load_official_lavt
from semires.models.weights import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "lavt_w7.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.golden
def test_golden_logits_and_text_states(golden):
    model = load_official_lavt(GOLDEN / "lavt_w7.pth")
    assert not model.training
    text, mask = golden["text_states"], golden["attention_mask"]
    with torch.no_grad():
        states = model.encode_text(golden["input_ids"], mask)
        logits = model.segment(golden["pixel_values"], text, mask)
        whole = model(golden["pixel_values"], golden["input_ids"], mask)
    assert relative(states, text) < 1e-5
    assert relative(logits, golden["logits"]) < 1e-4
    assert relative(whole, golden["logits"]) < 1e-4


@pytest.mark.golden
def test_our_names_back_to_the_published_file_exactly():
    content = read_checkpoint(GOLDEN / "lavt_w7.pth")
    back = to_published(load_official_lavt(GOLDEN / "lavt_w7.pth"))
    for part in ("model", "bert_model"):
        assert set(back[part]) == set(content[part])
        for name, value in content[part].items():
            assert torch.equal(back[part][name], value), name


@pytest.mark.parametrize(
    ("change", "ddp"),
    [
        ({"swin__window_size": 12, "swin__depths": [2, 2, 3, 1]}, True),
        ({"swin__window_size": 7, "swin__absolute_embeddings": True, "decoder_width": 10}, False),
        ({"swin__window_size": 2, "swin__patch_size": 2, "swin__depths": [1, 1, 1, 3]}, True),
    ],
)
def test_sizes_are_read_off_shapes(tmp_path, settings, inputs, randomise, change, ddp):
    model = LAVT.from_config(settings(fusion_heads=[1, 2, 1, 4], **change), 50).eval()
    randomise(model)
    content = to_published(model)
    if ddp:
        content = {
            part: {f"module.{name}": value for name, value in state.items()}
            for part, state in content.items()
        }
    args = argparse.Namespace(mha="1-2-1-4", lr=5e-5, splits=["val"])
    torch.save({**content, "args": args, "epoch": 3}, tmp_path / "x.pth")
    loaded = load_official_lavt(tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.swin.config.depths == model.swin.config.depths
    assert loaded.swin.config.window_size == model.swin.config.window_size


def test_without_bert_model_the_text_encoder_is_given(tmp_path, lavt, inputs):
    pixels, ids, mask = inputs
    torch.save({"model": to_published(lavt)["model"]}, tmp_path / "x.pth")
    heads = [1, 1, 2, 2]
    alone = load_official_lavt(tmp_path / "x.pth", fusion_heads=heads)
    with pytest.raises(WeightsError, match="no text encoder"):
        alone(pixels, ids, mask)
    text = lavt.encode_text(ids, mask)
    assert torch.equal(alone.segment(pixels, text, mask), lavt(pixels, ids, mask))
    given_one = load_official_lavt(tmp_path / "x.pth", fusion_heads=heads)
    given_one.bert = lavt.bert
    assert torch.equal(given_one(pixels, ids, mask), lavt(pixels, ids, mask))


def test_text_encoder_among_the_models_weights(tmp_path, lavt, inputs):
    """`lavt_one` checkpoints."""
    content = to_published(lavt)
    inside = {f"text_encoder.{name}": value for name, value in content["bert_model"].items()}
    torch.save({"model": content["model"] | inside}, tmp_path / "one.pth")
    loaded = load_official_lavt(tmp_path / "one.pth", fusion_heads=[1, 1, 2, 2])
    assert torch.equal(loaded(*inputs), lavt(*inputs))


@pytest.mark.parametrize("wrap", [lambda a: a, vars, lambda a: dict(vars(a), epochs=40)])
def test_heads_are_read_from_a_namespace_or_a_mapping(tmp_path, lavt, inputs, wrap):
    for heads, mha in (([1, 2, 1, 4], "1-2-1-4"), ([1, 1, 1, 1], ""), ([1, 1, 1, 1], None)):
        torch.save(
            {**to_published(lavt), "args": wrap(argparse.Namespace(mha=mha))}, tmp_path / "x.pth"
        )
        loaded = load_official_lavt(tmp_path / "x.pth")
        given = load_official_lavt(tmp_path / "x.pth", fusion_heads=heads)
        assert [fusion.attention.heads for fusion in loaded.fusions] == heads
        assert torch.equal(loaded(*inputs), given(*inputs))


def test_the_files_own_heads_are_before_those_of_a_section(tmp_path, settings, lavt, inputs):
    section = settings(fusion_heads=[1, 1, 2, 2], bert__num_heads=4)
    other = section.model_copy(update={"fusion_heads": [1, 2, 1, 1]})
    args = argparse.Namespace(mha="1-1-2-2")
    torch.save({**to_published(lavt), "args": args}, tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.equal(load_official(tmp_path / "x.pth", like=other)(*inputs), lavt(*inputs))
    torch.save(to_published(lavt), tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.equal(load_official(tmp_path / "x.pth", like=section)(*inputs), lavt(*inputs))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"mha": "rubbish"}, "`mha` in `args` is 'rubbish'"),
        ({"mha": [1, 1, 1, 1]}, "`mha` in `args` is [1, 1, 1, 1]"),
        ({"mha": 4}, "`mha` in `args` is 4"),
        ({"mha": "1-1-1"}, "`mha`"),
        ({"mha": "0-1-1-1"}, "`mha`"),
        ({"mha": "3-1-1-1"}, "fusion_heads: 3 heads do not divide"),
        (argparse.Namespace(mha=True), "`mha` in `args` is True"),
        ({"mha": np.str_("1-1-1-1")}, "`mha`"),
        (["--mha", "1-1-1-1"], "`args` is a list"),
        ("--mha 1-1-1-1", "`args` is a str"),
    ],
)
def test_training_arguments_that_cannot_be_read(tmp_path, lavt, args, says):
    torch.save({**to_published(lavt), "args": args}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=re.escape(says)) as caught:
        load_official_lavt(tmp_path / "x.pth")
    one_line(caught.value, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda c: {"state_dict": c["model"]}, "it has no `model` weights, but state_dict"),
        (lambda c: c["model"], "it has no `model` weights, but backbone."),
        (lambda c: [c], "it has no `model` weights"),
        (lambda c: {"model": c}, "'model' is a dict, not a tensor"),
        (lambda c: {**c, "bert_model": [1]}, "weights are a list, not a mapping"),
        (
            lambda c: {"model": {f"net.{k}": v for k, v in c["model"].items()}},
            "it lacks 'backbone.",
        ),
    ],
)
def test_other_wrappings_are_named(tmp_path, lavt, wrap, says):
    torch.save(wrap(to_published(lavt)), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=re.escape(says)) as caught:
        load_official_lavt(tmp_path / "x.pth")
    one_line(caught.value, tmp_path / "x.pth")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_hostile_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": {}, "args": Evil(marker)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: refused: it would run \w+\.system"):
        load_official_lavt(tmp_path / "evil.pth")
    assert not marker.exists()


def one_line(error: WeightsError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x02", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n",
        b"\x00" * 99,
        "a list", {"state_dict": {}}, {"model": {}}, {"model": {"backbone.x": 3}}, {"model": [1]},
        {"model": {"backbone.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}},
    ],
)  # fmt: skip
def test_foreign_files_are_named_in_one_line(tmp_path, content):
    path = tmp_path / "foreign.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        load_official_lavt(path)
    one_line(caught.value, path)


def test_the_old_format_still_loads(tmp_path):
    path = tmp_path / "old.pth"
    content = {"model": {"x": torch.zeros(2)}, "args": argparse.Namespace(mha="1-1-1-1")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path)["model"]["x"].tolist() == [0, 0]


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_official_lavt(tmp_path / "none.pth")


def tampered(change):
    content = {
        k: dict(v) for k, v in read_checkpoint(GOLDEN / "lavt_w7.pth").items() if "model" in k
    }
    change(content["model"])
    return content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop("backbone.norm2.bias"), "missing: norms.2.bias"),
        (lambda m: m.update({"backbone.layers.9.x": torch.zeros(1)}), "backbone.layers.9.x"),
        (lambda m: m.update({"backbone.norm1.bias": torch.zeros(5)}), "wrong shape: norms.1.bias"),
        (
            lambda m: m.update({"backbone.norm1.bias": torch.full((24,), float("nan"))}),
            "NaN or infinite",
        ),
        (
            lambda m: m.update(
                {"classifier.conv1_4.weight": torch.zeros(1).expand(10**6, 10**6, 3, 3)}
            ),
            "no data",
        ),
        (lambda m: m.update({"backbone.norm1.bias": torch.zeros(24).long()}), "int64"),
        (lambda m: m.update({"backbone.norm1.bias": torch.eye(24).to_sparse()}), "norm1.bias"),
        (
            lambda m: m.update({"backbone.patch_embed.proj.weight": torch.zeros(10**5, 3, 4, 4)}),
            "wrong shape",
        ),
    ],
)
def test_weights_that_make_no_lavt(tmp_path, change, says):
    path = tmp_path / "x.pth"
    torch.save(tampered(change), path)
    with pytest.raises(WeightsError, match=re.escape(says)) as caught:
        load_official_lavt(path)
    one_line(caught.value, path)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_load(tmp_path_factory, data):
    """Cut, overwrite or splice: a WeightsError or a model, never anything else."""
    good = (GOLDEN / "lavt_w7.pth").read_bytes()
    start = data.draw(st.integers(0, len(good) - 1))
    kind = data.draw(st.sampled_from(["cut", "head", "overwrite", "tail"]))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    place = {"head": start % 2000, "tail": len(good) - 1 - start % 20_000}.get(kind, start)
    bad = good[:start] if kind == "cut" else good[:place] + noise + good[place + len(noise) :]
    path = tmp_path_factory.mktemp("damaged") / "x.pth"
    path.write_bytes(bad)
    try:
        load_official_lavt(path)
    except WeightsError as error:
        one_line(error, path)
