"""Published GRES checkpoints: every size from the tensors, and faults in one line."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.published import to_gres, to_published
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semires.errors import WeightsError
from semires.models import LAVT, ReLA, load_official, load_official_rela
from semires.models.weights import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden/rela_tiny.pth"
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LANGUAGE = "sem_seg_head.predictor.lang_weight"


@pytest.mark.golden
def test_our_names_back_to_the_published_file_exactly():
    content, back = read_checkpoint(GOLDEN)["model"], to_gres(load_official_rela(GOLDEN))["model"]
    assert set(back) == set(content)
    for name, value in content.items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize(
    "change",
    [
        {"swin__window_size": 12, "swin__depths": [2, 1, 3, 1], "regions": 25, "num_heads": 2},
        {"swin__absolute_embeddings": True, "swin__mlp_ratio": 3.0, "region_layers": 1},
        {"width": 96, "num_heads": 3, "pixel_layers": 1, "mask_width": 8, "swin__embed_dim": 16},
        {"pixel_width": 64, "region_feedforward": 7, "regions": 11, "region_layers": 7},
        {"project_levels": True, "swin__patch_size": 2, "num_heads": 1, "pixel_feedforward": 9},
        {"bert__hidden_size": 64, "bert__num_heads": 1, "bert__num_layers": 3},
    ],
)
def test_sizes_are_read_off_shapes(
    new_rela: Any,
    tmp_path: Path,
    rela_settings: Any,
    inputs: Inputs,
    randomise: Any,
    change: dict[str, Any],
):
    model = new_rela(rela_settings(fusion_heads=[1, 1, 1, 1], **change)).eval()
    randomise(model)
    state = {f"module.{name}": value for name, value in to_gres(model)["model"].items()}
    state |= {"module.pixel_mean": torch.zeros(3, 1, 1), "module.criterion.weight": torch.ones(2)}
    state["module.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": state, "iteration": 3, "optimizer": {"lr": [1e-5]}}, tmp_path / "x.pth")
    for load in (load_official_rela, load_official):
        loaded = load(tmp_path / "x.pth")
        assert isinstance(loaded, ReLA)
        with torch.no_grad():
            assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.settings.regions == model.settings.regions


def test_the_early_name_of_the_regions_features(tmp_path: Path, rela: ReLA, inputs: Inputs):
    state = {
        name.replace(".query_feat.", ".static_query."): value
        for name, value in to_gres(rela)["model"].items()
    }
    assert "sem_seg_head.predictor.static_query.weight" in state
    torch.save({"model": state}, tmp_path / "early.pth")
    loaded = load_official_rela(tmp_path / "early.pth", fusion_heads=[1, 1, 2, 2])
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), rela(*inputs))


def test_heads_come_from_a_section_of_the_same_widths(
    new_rela: Any, rela_settings: Any, randomise: Any, inputs: Inputs, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    section = rela_settings(fusion_heads=[1, 2, 1, 2], bert__num_heads=2)
    model = new_rela(section).eval()
    randomise(model)
    torch.save(to_gres(model), tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.equal(load_official(tmp_path / "x.pth", like=section)(*inputs), model(*inputs))
    assert capsys.readouterr().err == ""
    other = rela_settings(bert__hidden_size=32, bert__num_heads=2)
    loaded = load_official(tmp_path / "x.pth", like=other)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "x.pth: BERT's number of heads is not in the file and is guessed: 4 for 16" in said
    assert loaded.bert.config.num_attention_heads == 4
    assert [fusion.attention.heads for fusion in loaded.fusions] == [1, 1, 1, 1]


def test_heads_of_a_published_width_are_the_published_ones(
    rela_settings: Any, capsys: pytest.CaptureFixture[str]
):
    section = rela_settings(bert__hidden_size=64, bert__num_heads=4)
    loaded = load_official(GOLDEN, like=section)  # 64 channels, 1 head
    assert loaded.bert.config.num_attention_heads == 1
    assert capsys.readouterr().err == ""


def test_what_shapes_do_not_tell_is_given(tmp_path: Path, rela: ReLA, inputs: Inputs):
    torch.save(to_gres(rela), tmp_path / "x.pth")
    right = load_official_rela(tmp_path / "x.pth", fusion_heads=[1, 1, 2, 2])
    wrong = load_official_rela(tmp_path / "x.pth")
    other = load_official_rela(tmp_path / "x.pth", fusion_heads=[1, 1, 2, 2], text_heads=2)
    with torch.no_grad():
        assert torch.equal(right(*inputs), rela(*inputs))
        assert not torch.equal(wrong(*inputs), rela(*inputs))
        assert not torch.equal(other(*inputs), rela(*inputs))


def test_without_a_text_encoder(tmp_path: Path, rela: ReLA, inputs: Inputs):
    pixels, ids, mask = inputs
    state = {n: v for n, v in to_gres(rela)["model"].items() if not n.startswith("text_encoder.")}
    torch.save({"model": state}, tmp_path / "x.pth")
    alone = load_official_rela(tmp_path / "x.pth", fusion_heads=[1, 1, 2, 2])
    with pytest.raises(WeightsError, match="no text encoder"):
        alone(pixels, ids, mask)
    with torch.no_grad():
        text = rela.encode_text(ids, mask)
        assert torch.equal(alone.segment(pixels, text, mask), rela(pixels, ids, mask))
    alone.bert = rela.bert
    with torch.no_grad():
        assert torch.equal(alone(*inputs), rela(*inputs))


def test_the_weight_of_the_language_part_is_loaded():
    assert load_official_rela(GOLDEN).regions.language_weight.item() == pytest.approx(0.7)


def test_names_say_which_model_a_file_holds(tmp_path: Path, lavt: LAVT):
    torch.save(to_published(lavt), tmp_path / "lavt.pth")
    assert isinstance(load_official(tmp_path / "lavt.pth"), LAVT)
    torch.save({"model": {"encoder.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"neither a LAVT .* nor a GRES .* holds encoder\.weig"):
        load_official(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no published GRES checkpoint"):
        load_official_rela(tmp_path / "lavt.pth")


PREDICTOR, PIXEL = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
OFFSETS = f"{PIXEL}transformer.encoder.layers.0.self_attn.sampling_offsets.weight"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (f"{PREDICTOR}decoder_norm.bias", None, "missing: regions.norm.bias"),
        (f"{PREDICTOR}query_feat.weight", None, "it lacks 'sem_seg_head.predictor.query_feat"),
        (f"{PREDICTOR}surplus", torch.zeros(1), "unknown name sem_seg_head.predictor.surplus"),
        (f"{PREDICTOR}level_embed.weight", torch.zeros(4, 64), "wrong shape: regions.level_embed"),
        (OFFSETS, torch.zeros(20, 64), "num_heads"),
        (OFFSETS, torch.zeros(96, 40), "width: 40 is no multiple of 32"),
        (LANGUAGE, torch.tensor(float("nan")), "NaN or infinite"),
    ],
)
def test_weights_that_make_no_rela(tmp_path: Path, name: str, value: Any, says: str):
    state = dict(read_checkpoint(GOLDEN)["model"])
    state.pop(name, None)
    if value is not None:
        state[name] = value
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=re.escape(says)) as caught:
        load_official_rela(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    good = GOLDEN.read_bytes()
    start = data.draw(st.integers(0, len(good) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    path = tmp_path_factory.mktemp("damaged") / "x.pth"
    path.write_bytes(good[:start] + noise + good[start + len(noise) :])
    with contextlib.suppress(WeightsError):  # another exception fails the test
        load_official_rela(path)
