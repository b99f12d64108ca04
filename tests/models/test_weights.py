"""Every loader says in one line what is wrong with a weights file, whatever its libraries raise."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
)

from semires.errors import SemiresError, WeightsError
from semires.models import LAVT, build_model, load_official_lavt
from semires.models.text import SPECIAL, Tokenizer
from semires.models.weights import load_weights, one_line, read_checkpoint, weights_errors

VOCABULARY = "semires/weights/vocab.txt"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SWIN = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole folders ``bert`` and ``swin`` that fit `small_settings`."""
    root = tmp_path_factory.mktemp("whole")
    size = Tokenizer(VOCABULARY).vocab_size
    BertModel(BertConfig(vocab_size=size, intermediate_size=24, **BERT)).save_pretrained(
        root / "bert"
    )
    SwinModel(SwinConfig(mlp_ratio=2.0, image_size=32, **SWIN)).save_pretrained(root / "swin")
    return root


def refused(settings: Any, part: str, source: Path) -> str:
    """The message of a build with these pretrained weights."""
    with pytest.raises(WeightsError) as caught:
        build_model(settings(**{f"{part}__pretrained": str(source)}), Tokenizer(VOCABULARY))
    text = str(caught.value)
    assert text.isprintable()
    assert str(source) in text
    return text


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def spoil(name: str) -> Callable[[Path], None]:
    """NaN in one weight."""
    return lambda f: change_weights(f, lambda s: s[name].fill_(float("nan")))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (lambda f: (f / "model.safetensors").write_bytes(LFS), "Git LFS pointer"),
    "page": (lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html>"), "web page"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "it is empty"),
    "head": (lambda f: cut(f / "model.safetensors", 900), "cannot be read"),
    "tail": (lambda f: cut(f / "model.safetensors", -9), "cannot be read"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config": (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    "pointer as config": (lambda f: (f / "config.json").write_bytes(LFS), "Git LFS pointer"),
}


@pytest.mark.parametrize("part", ["bert", "swin"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folders(tmp_path: Path, folders: Path, settings: Any, part: str, kind: str):
    folder = tmp_path / part
    shutil.copytree(folders / part, folder)
    damage, says = DAMAGE[kind]
    damage(folder)
    assert says in refused(settings, part, folder)


@pytest.mark.parametrize("part", ["bert", "swin"])
def test_weights_that_transformers_would_fill_in_or_drop(
    tmp_path: Path, folders: Path, settings: Any, part: str, capfd: pytest.CaptureFixture[str]
):
    block = {"bert": "encoder.layer.1", "swin": "encoder.layers.1.blocks.1"}[part]
    name = f"{block}.{'output.dense.bias' if part == 'bert' else 'layernorm_after.weight'}"
    stored = {
        n
        for n in load_file(folders / part / "model.safetensors")
        if n.endswith(name.split(".")[-1])
    }
    name = next(n for n in sorted(stored) if n.startswith(block))
    for change, says in (
        (lambda s: s.pop(name), "missing: "),
        (lambda s: s.update({name: torch.zeros(3)}), "wrong shape: "),
        (lambda s: s.update({name: torch.full_like(s[name], float("inf"))}), "infinite"),
        (
            lambda s: s.update({"encoder.surplus.weight": torch.zeros(3)}),
            "unknown: encoder.surplus",
        ),
    ):
        folder = tmp_path / says.strip(": ").split(":")[0]
        shutil.copytree(folders / part, folder)
        change_weights(folder, change)
        assert says in refused(settings, part, folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_other_architectures(tmp_path: Path, settings: Any):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = Tokenizer(VOCABULARY).vocab_size
    roberta = RobertaConfig(vocab_size=size, intermediate_size=24, **small)
    RobertaModel(roberta).save_pretrained(tmp_path / "roberta")
    assert "roberta model, not of bert" in refused(settings, "bert", tmp_path / "roberta")
    change_config(tmp_path / "roberta", model_type=None)
    assert "RobertaModel model, not of bert" in refused(settings, "bert", tmp_path / "roberta")
    Swinv2Model(Swinv2Config(image_size=32, **SWIN)).save_pretrained(tmp_path / "v2")
    assert "swinv2 model, not of swin" in refused(settings, "swin", tmp_path / "v2")
    assert "model, not of swin" in refused(settings, "swin", tmp_path / "roberta")


def test_settings_that_leave_no_trace_in_shapes(tmp_path: Path, folders: Path, settings: Any):
    for values in ({"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}):
        folder = tmp_path / next(iter(values))
        shutil.copytree(folders / "bert", folder)
        change_config(folder, **values)
        assert f"its config.json has {next(iter(values))}" in refused(settings, "bert", folder)


def test_layers_beyond_those_of_config_are_not_dropped(tmp_path: Path, settings: Any):
    size = Tokenizer(VOCABULARY).vocab_size
    config = BertConfig(vocab_size=size, intermediate_size=24, **BERT)
    BertForMaskedLM(config).save_pretrained(tmp_path / "lm")
    wanted = settings(bert__pretrained=str(tmp_path / "lm"))
    assert build_model(wanted, Tokenizer(VOCABULARY))  # the head of the language model is ignored
    change_config(tmp_path / "lm", num_hidden_layers=1)
    assert "unknown: bert.encoder.layer.1." in refused(settings, "bert", tmp_path / "lm")


def test_damaged_swin_files(tmp_path: Path, settings: Any):
    for name, content in (
        ("a.safetensors", LFS), ("b.pth", LFS), ("c.safetensors", b"<html>"), ("d.pth", b""),
        ("e.pth", b"PK\x03\x04" + bytes(500)), ("f.safetensors", bytes(50)),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refused(settings, "swin", tmp_path / name)
    torch.save({"model": {"patch_embed.proj.weight": "no tensor"}}, tmp_path / "g.pth")
    assert "is a str, not a tensor" in refused(settings, "swin", tmp_path / "g.pth")


def test_damaged_weights_of_a_run(tmp_path: Path, lavt: LAVT):
    path = tmp_path / "model.safetensors"
    state = {k: v.contiguous() for k, v in lavt.state_dict().items()}
    name = "decoder.classifier.weight"
    for value, says in (
        (torch.full_like(state[name], float("nan")), "NaN or infinite"),
        (state[name].to(torch.int64), "is torch.int64"),
        (state[name][:1].clone(), r"wrong shape: decoder.classifier.weight is \(1,"),
    ):
        save_file(state | {name: value}, path)
        with pytest.raises(WeightsError, match=says):
            load_weights(lavt, path)
    path.write_bytes(LFS)
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_weights(lavt, path)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(61.2), np.float32(1), np.int64(3), np.bool_(True), np.str_("best"), np.zeros(3),
        np.arange(4).reshape(2, 2), Path("runs/x"), torch.device("cpu"), collections.Counter("ab"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_weights(tmp_path: Path, value: Any, zipped: bool):
    path = tmp_path / "x.pth"
    content = {"model": {"w": torch.ones(2)}, "best": value, "log": [value]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(path)["model"]["w"].tolist() == [1, 1]


def test_a_refused_checkpoint_says_the_way_on(tmp_path: Path):
    for value in (torch.nn.Linear(2, 2), collections.defaultdict(list), torch.Generator):
        torch.save({"model": {}, "more": value}, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"would run [\w.]+, .*weights_only=False") as e:
            read_checkpoint(tmp_path / "x.pth")
        assert str(e.value).isprintable()
        assert len(str(e.value)) < 600


def test_a_wrong_byte_in_the_directory_of_an_archive(tmp_path: Path):
    """It makes `zipfile.is_zipfile` itself raise."""
    data = bytearray((Path(__file__).parents[1] / "golden/lavt_w7.pth").read_bytes())
    data[-35] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=r"x\.pth: damaged"):
        load_official_lavt(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, prefix: str):
    golden = Path(__file__).parents[1] / "golden/lavt_w7.pth"
    content = {k: v for k, v in read_checkpoint(golden).items() if k in ("model", "bert_model")}
    wrapped = {k: {prefix + n: t for n, t in v.items()} for k, v in content.items()}
    torch.save(wrapped, tmp_path / "x.pth")
    ours, theirs = load_official_lavt(tmp_path / "x.pth"), load_official_lavt(golden)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("one\ntwo", "one"),
        ("Errors of Sam:\n\tMissing: \x1b[1ma\x1b[0m", "Errors of Sam: Missing: a"),
        ("\n\n a \x00\t b", "a b"),
        ("First. " + "x" * 300, "First."),
        ("y" * 300, "y" * 197 + "..."),
        ("", ""),
    ],
)  # fmt: skip
def test_one_line(text: str, wanted: str):
    assert one_line(text) == wanted


def test_any_error_becomes_one_line():
    for error in (
        MemoryError(),
        RecursionError("deep"),
        KeyError("x"),
        AssertionError(),
        OSError(),
    ):
        with (
            pytest.raises(WeightsError, match=r"^a file: cannot be read") as caught,
            weights_errors("a file"),
        ):
            raise error
        assert "()" not in str(caught.value)
    with pytest.raises(SemiresError, match=r"^own$"), weights_errors("a file"):
        raise SemiresError("own")


def saved_tokenizer(folder: Path, **options: Any) -> BertTokenizer:
    words = [*SPECIAL, "red", "cafe", "##s", "star", "Red"]
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate(words)}, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_a_tokenizer_saved_by_transformers(tmp_path: Path, options: dict[str, Any]):
    theirs = saved_tokenizer(tmp_path, **options)
    theirs.add_tokens(["[OBJ]", "zorglub"])
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        ours = Tokenizer(source)
        assert ours.vocab_size == len(theirs) == 12
        for text in ("Red stars", "café", "the zorglub [OBJ] red", ""):
            ids, mask = ours.encode([text], 20)
            assert ids[0, : int(mask.sum())].tolist() == theirs(text)["input_ids"]


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda j: j.update(model={"type": "BPE", "vocab": {"<s>": 0}, "merges": []}), "BPE"),
        (lambda j: j["model"].pop("vocab"), "lacks 'vocab'"),
        (lambda j: j["model"]["vocab"].pop("[CLS]"), r"lacks \[CLS\]"),
        (lambda j: j["model"]["vocab"].update({"red": 99}), "the ids of its tokens"),
        (lambda j: j.update(post_processor=None), r"does not add \[CLS\]"),
        (lambda j: j.update(model=[]), "no BERT tokenizer"),
    ],
)
def test_no_bert_tokenizer(tmp_path: Path, change: Any, says: str):
    saved_tokenizer(tmp_path)
    change_tokenizer(tmp_path, change)
    with pytest.raises(WeightsError, match=says) as caught:
        Tokenizer(tmp_path)
    assert str(caught.value).isprintable()
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_vocabulary_that_is_a_pointer(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(LFS)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(WeightsError, match="Git LFS pointer"):
            Tokenizer(source)
