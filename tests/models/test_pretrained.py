import hashlib
import socket

import pytest
import torch
from helpers.published import to_published
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, SwinConfig, SwinModel

from semires.errors import WeightsError
from semires.models import LAVT, build_model
from semires.models import swin as swin_ops
from semires.models.pretrained import fit_tables, load_swin, resize_square
from semires.models.text import Tokenizer
from semires.models.weights import load_weights

VOCABULARY = "semires/weights/vocab.txt"


@pytest.fixture
def offline(monkeypatch):
    """Cut the network off, so that the test tells the same everywhere."""

    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def swin_of(settings):
    """A whole `SwinModel` of the settings' sizes with its final norm, and random tables."""
    torch.manual_seed(4)
    swin = swin_ops.new_swin(settings.swin)
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return swin


def test_safetensors_swin(tmp_path, settings):
    wanted = settings(swin__pretrained=str(tmp_path / "swin.safetensors"))
    swin = swin_of(wanted)
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    model = build_model(wanted, Tokenizer(VOCABULARY))
    for name, value in model.swin.state_dict().items():
        assert torch.equal(value, swin.state_dict()[name])


def test_folder_swin_and_bert(tmp_path, settings):
    swin = SwinModel(
        SwinConfig(embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
                   mlp_ratio=2.0, image_size=32)
    )  # fmt: skip
    tokenizer = Tokenizer(VOCABULARY)
    bert = BertModel(
        BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=2,
                   num_attention_heads=4, intermediate_size=24)
    )  # fmt: skip
    swin.save_pretrained(tmp_path / "swin")
    bert.save_pretrained(tmp_path / "bert")
    wanted = settings(
        swin__pretrained=str(tmp_path / "swin"), bert__pretrained=str(tmp_path / "bert")
    )
    model = build_model(wanted, tokenizer)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight
    )
    name = "encoder.layers.1.blocks.1.attention.q_proj.weight"
    assert torch.equal(model.swin.state_dict()[name], swin.state_dict()[name])
    assert model.text_is_pretrained


def test_published_swin_file(tmp_path, settings):
    """Microsoft's names, window 7, into a LAVT of the same window and of window 12."""
    source = LAVT.from_config(settings(swin__window_size=7), 50)
    torch.nn.init.normal_(
        source.swin.encoder.layers[0].blocks[0].attention.relative_position_bias
        .relative_position_bias_table
    )  # fmt: skip
    ours = set(source.swin.state_dict())
    published = {
        name.removeprefix("backbone."): value
        for name, value in to_published(source)["model"].items()
        if not any(word in name for word in ("classifier", "fusion", "res_gate", "backbone.norm"))
    }
    extra = {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    extra |= {"head.weight": torch.ones(10, 64), "layers.0.blocks.1.attn_mask": torch.ones(4, 4)}
    torch.save({"model": published | extra}, tmp_path / "swin.pth")

    same = LAVT.from_config(settings(swin__window_size=7), 50)
    load_swin(same.swin, str(tmp_path / "swin.pth"))
    assert all(torch.equal(same.swin.state_dict()[n], source.swin.state_dict()[n]) for n in ours)

    wider = LAVT.from_config(settings(swin__window_size=12), 50)
    load_swin(wider.swin, str(tmp_path / "swin.pth"))
    name = "encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"
    table, resized = source.swin.state_dict()[name], wider.swin.state_dict()[name]
    assert resized.shape == (23 * 23, 1)
    expected = torch.nn.functional.interpolate(
        table.T.reshape(1, 1, 13, 13), size=(23, 23), mode="bicubic"
    )
    torch.testing.assert_close(resized, expected.reshape(1, -1).T)


def test_resize_square_keeps_linear_fields():
    rows, _ = torch.meshgrid(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7), indexing="ij")
    table = torch.stack([torch.ones(49), rows.reshape(-1)], 1)
    out = resize_square(table, 81)
    torch.testing.assert_close(out[:, 0], torch.ones(81))
    middle = out[:, 1].view(9, 9)[4]
    torch.testing.assert_close(middle, torch.zeros(9), atol=1e-6, rtol=0)


def test_fit_tables_leaves_other_shapes_for_the_error():
    state = {"a.weight": torch.zeros(2)}
    assert fit_tables(state, {"a.weight": torch.zeros(3)})["a.weight"].shape == (2,)


def test_other_sizes_are_refused(tmp_path, settings):
    path = tmp_path / "swin.safetensors"
    save_file(swin_of(settings()).state_dict(), path)
    with pytest.raises(WeightsError, match="wrong shape") as caught:
        build_model(settings(swin__embed_dim=16, swin__pretrained=str(path)), Tokenizer(VOCABULARY))
    assert str(path) in str(caught.value)
    with pytest.raises(WeightsError, match=r"missing: encoder\.layers\.0\.blocks\.1"):
        build_model(
            settings(swin__depths=[2, 2, 1, 1], swin__pretrained=str(path)), Tokenizer(VOCABULARY)
        )


@pytest.mark.usefixtures("offline")
def test_hub_id_without_network_is_one_line(settings):
    tokenizer = Tokenizer(VOCABULARY)
    for part in ("swin", "bert"):
        with pytest.raises(WeightsError, match="set model") as caught:
            build_model(settings(**{f"{part}__pretrained": "nobody/no-such-model"}), tokenizer)
        text = str(caught.value)
        assert text.startswith(f"model.{part}.pretrained: nobody/no-such-model")
        assert "\n" not in text
    with pytest.raises(WeightsError, match=r"^model\.bert\.vocabulary: nobody/none"):
        Tokenizer("nobody/none")


def test_folder_without_weights(tmp_path, settings):
    for name in ("empty", "nowhere"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(WeightsError, match=r"^model\.swin\.pretrained: .*transformers' layout"):
            build_model(settings(swin__pretrained=str(tmp_path / name)), Tokenizer(VOCABULARY))


def test_incomplete_folder_is_not_filled_with_random_weights(tmp_path, settings):
    bert = BertModel(
        BertConfig(vocab_size=Tokenizer(VOCABULARY).vocab_size, hidden_size=16,
                   num_hidden_layers=1, num_attention_heads=4, intermediate_size=24)
    )  # fmt: skip
    bert.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    )
    with pytest.raises(WeightsError, match=r"missing: encoder\.layer\.1"):
        build_model(settings(bert__pretrained=str(tmp_path)), Tokenizer(VOCABULARY))


def test_load_weights_verifies_the_digest(tmp_path, lavt, settings):
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in lavt.state_dict().items()}, path)
    digest = tmp_path / "model.safetensors.sha256"
    digest.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "  model.safetensors\n")
    other = LAVT.from_config(settings(), 50)
    load_weights(other, path)
    assert all(torch.equal(v, lavt.state_dict()[k]) for k, v in other.state_dict().items())
    data = bytearray(path.read_bytes())
    data[-3] ^= 16  # safetensors itself would not notice
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights(other, path)


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_cut_safetensors(tmp_path, lavt, cut):
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in lavt.state_dict().items()}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged"):
        load_weights(lavt, path)
