"""ReLA against the published code's numbers, and as a model of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from semires.config.load import load_params
from semires.config.model import Rela
from semires.config.resolve import resolve
from semires.errors import WeightsError
from semires.models import ReLA, build_model, load_official_rela
from semires.models.encoder import new_bert
from semires.models.rela import minimap_target, weighted_cross_entropy
from semires.models.text import Tokenizer
from semires.runs.key import RunKey

GOLDEN = Path(__file__).parents[1] / "golden"
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "rela_tiny.npz") as file:
        arrays = {name: file[name] for name in file}
    names = arrays.pop("grad_names")
    return {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items()} | {"grad_names": names}


@pytest.fixture
def published() -> ReLA:
    return load_official_rela(GOLDEN / "rela_tiny.pth")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


@pytest.mark.golden
@torch.no_grad()
def test_golden_outputs(golden: dict[str, Any], published: ReLA):
    mask, text = golden["attention_mask"], golden["text_states"]
    assert not published.training
    assert relative(published.encode_text(golden["input_ids"], mask), text) < 1e-5
    heads = published.heads(golden["pixel_values"], text, mask)
    assert relative(heads["target_logits"], golden["pred_masks"]) < 1e-4
    assert relative(heads["minimap"], golden["minimap"].transpose(1, 2)) < 1e-4
    assert relative(heads["no_target"], golden["nt_label"]) < 1e-4
    for logits in (
        published.segment(golden["pixel_values"], text, mask),
        published(golden["pixel_values"], golden["input_ids"], mask),
    ):
        assert relative(logits, golden["logits"]) < 1e-4
    odd = golden["odd_pixel_values"]  # sides that are not multiples of 32
    padded = F.pad(odd, (0, 128 - odd.shape[3], 0, 96 - odd.shape[2]))
    for pixels, name in ((odd, "odd_pred_masks"), (padded, "odd_padded_pred_masks")):
        found = published.heads(pixels, text, mask)["target_logits"]
        assert relative(found, golden[name]) < 1e-4
    published.regions.language_weight.zero_()  # as the published loading code leaves it
    heads = published.heads(golden["pixel_values"], text, mask)
    assert relative(heads["target_logits"], golden["lw0_pred_masks"]) < 1e-4
    assert relative(heads["minimap"], golden["lw0_minimap"].transpose(1, 2)) < 1e-4
    assert relative(heads["no_target"], golden["lw0_nt_label"]) < 1e-4


@pytest.mark.golden
@torch.no_grad()
def test_golden_intermediates(
    golden: dict[str, Any], published: ReLA, monkeypatch: pytest.MonkeyPatch
):
    regions, masked = published.regions, []
    queries = [regions.features.weight.expand(2, -1, -1)]
    for layer in regions.layers:
        layer.register_forward_hook(lambda module, inputs, output: queries.append(output))
    original = regions.masked
    monkeypatch.setattr(
        regions, "masked", lambda *args: masked.append(original(*args)) or masked[-1]
    )
    text, mask = golden["text_states"], golden["attention_mask"]
    maps = published.stage_maps(*published.encode_image(golden["pixel_values"]), text, mask)
    for i, found in enumerate(maps):
        assert relative(found, golden[f"backbone_res{i + 2}"]) < 1e-4
    features, scales = published.decode_pixels(maps)
    assert relative(features, golden["mask_features"]) < 1e-4
    for i, found in enumerate(scales):
        assert relative(found, golden[f"multi_scale_{i}"]) < 1e-4
    regions(scales, features, text)
    for found, wanted in zip(queries, golden["layer_queries"], strict=True):
        assert relative(found, wanted) < 1e-4
    for rows, counts in zip(masked, golden["masked_counts"], strict=True):
        opened = counts == rows.shape[-1]
        assert torch.equal(rows.sum(-1), counts.where(~opened, 0))
    assert relative(regions.region_masks(queries[-1], features), golden["all_masks"]) < 1e-4


@pytest.mark.golden
def test_golden_losses_and_gradients(golden: dict[str, Any], published: ReLA):
    inputs = (golden[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    labels = golden["target"][:, 0].long()
    outputs = published.training_outputs(*inputs)
    mask = weighted_cross_entropy(outputs.logits, labels)
    losses = published.extra_losses(outputs, labels)
    assert torch.equal(minimap_target(labels, 100, "truncated"), golden["target_minimap"].long())
    total = 5 * (mask + sum(losses.values()))
    assert relative(mask, golden["loss_mask_ce"]) < 1e-4
    assert relative(losses["minimap"], 0.1 * golden["loss_minimap_ce"]) < 1e-4
    assert relative(losses["no_target"], 0.1 * golden["loss_nt_ce"]) < 1e-4
    assert relative(total, golden["loss_total"]) < 1e-4
    total.backward()
    norms = dict(zip(golden["grad_names"], golden["grad_norms"].tolist(), strict=True))
    found = published_norms(published)
    assert found.keys() == norms.keys()
    for name, norm in norms.items():
        if norm > 1e-3:
            assert found[name] == pytest.approx(norm, rel=1e-3), name


def published_norms(model: ReLA) -> dict[str, float]:
    """The gradients' norms by published name."""
    from helpers.published import to_gres

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0 if parameter.grad is None else parameter.grad)
    state = to_gres(model)["model"]
    return {n: float(v.norm()) for n, v in state.items() if v.is_floating_point()}


def test_it_is_built_from_params(rela_settings: Any, inputs: Inputs):
    tokenizer = Tokenizer("semires/weights/vocab.txt")
    model = build_model(rela_settings(), tokenizer)
    assert isinstance(model, ReLA)
    with torch.no_grad():
        assert model.eval()(*inputs).shape == (3, 2, 48, 40)


def test_images_are_shared(rela: ReLA, inputs: Inputs):
    pixels, ids, mask = inputs
    with torch.no_grad():
        shared = rela.forward_shared(pixels[:2], torch.tensor([0, 1, 0]), ids, mask)
        torch.testing.assert_close(shared, rela(pixels[[0, 1, 0]], ids, mask))


def test_words_matter_and_padding_does_not(new_rela: Any, rela_settings: Any, inputs: Inputs):
    """But for RLA's language part, which attends to padding as published; it starts at zero."""
    pixels, ids, mask = inputs
    torch.manual_seed(2)
    rela = new_rela(rela_settings()).eval()
    with torch.no_grad():
        whole = rela(pixels, ids, mask)
        cut = rela(pixels[1:2], ids[1:2, :3], mask[1:2, :3])
        other = rela(pixels, ids.roll(1, 0), mask.roll(1, 0))
    torch.testing.assert_close(whole[1:2], cut, rtol=1e-4, atol=1e-4)
    assert (whole - other).abs().max() > 1e-3


def test_zero_gates_never_open(new_rela: Any, rela_settings: Any, inputs: Inputs):
    for zero in (True, False):
        model = new_rela(rela_settings(zero_gates=zero))
        model(*inputs).square().mean().backward()
        gradients = [p.grad.abs().sum() for p in model.gates.parameters() if p.grad is not None]
        assert len(gradients) == 6
        assert all(g == 0 for g in gradients) == zero


def test_only_norms_and_embeddings_are_not_decayed(rela: ReLA):
    optimizer = load_params("experiments/demo.yaml").optimizer
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
    undecayed = {
        f"{path}.{name}"
        for path, module in rela.named_modules()
        if isinstance(module, kinds) and not path.startswith("bert.")
        for name, _ in module.named_parameters()
    }
    tables = {n for n, _ in rela.named_parameters() if "relative_position_bias_table" in n}
    found = {n for n, _ in rela.named_parameters() if not rela.parameter_options(n, optimizer)[0]}
    assert found == undecayed | tables


def test_recomputation_changes_no_gradient(rela: ReLA, inputs: Inputs):
    gradients = []
    rela.train()
    for on in (False, True):
        rela.set_grad_checkpointing(on)
        rela.zero_grad()
        outputs = rela.training_outputs(*inputs)
        extra = sum(value.square().mean() for value in outputs.extra.values())
        (outputs.logits.square().mean() + extra).backward()
        gradients.append([p.grad.clone() for p in rela.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(rela.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_mixed_precision(new_rela: Any, rela_settings: Any, inputs: Inputs):
    torch.manual_seed(1)
    model = new_rela(rela_settings()).eval()
    with torch.no_grad():
        expected = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.training_outputs(*inputs)
    values = {"logits": outputs.logits, **outputs.extra}
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert (outputs.logits - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_extra_losses_of_no_samples_are_zero(rela: ReLA, inputs: Inputs):
    outputs = rela.training_outputs(*inputs)
    none = torch.zeros(3, dtype=torch.bool)
    losses = rela.extra_losses(outputs.select(none), torch.zeros(0, 48, 40, dtype=torch.long))
    assert [loss.item() for loss in losses.values()] == [0, 0]


def test_an_empty_label_is_no_target_only_if_the_parameters_say_so(
    new_rela: Any, rela_settings: Any, inputs: Inputs
):
    labels = torch.zeros(3, 48, 40, dtype=torch.long)
    labels[0, 5:20, 5:20] = 1
    for says, wanted in ((True, [0, 1, 1]), (False, [0, 0, 0])):
        model = new_rela(rela_settings(empty_is_no_target=says, no_target_weight=1.0)).eval()
        outputs = model.training_outputs(*inputs)
        loss = weighted_cross_entropy(outputs.extra["no_target"], torch.tensor(wanted))
        assert torch.equal(model.extra_losses(outputs, labels)["no_target"], loss)


def test_weighted_cross_entropy_is_pytorchs():
    logits = torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 1, 0, 0, 0, 1]] * 4)
    wanted = F.cross_entropy(logits, labels, torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(weighted_cross_entropy(logits, labels), wanted)


def test_the_two_targets_of_the_minimap():
    mask = torch.zeros(1, 8, 8, dtype=torch.long)
    mask[0, 1:3, 1:3] = 1  # the centre of cell 0 of four
    mask[0, 4:, 4:] = 1  # all of cell 3
    mask[0, :4, 4:6] = 1  # half of cell 1, not its centre
    assert minimap_target(mask, 4, "truncated").tolist() == [[1, 0, 0, 1]]
    assert minimap_target(mask, 4, "majority").tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": 3}, "num_heads: 3 do not divide width 32"),
        ({"width": 48}, "width: 48 is no multiple of 32"),
        ({"pixel_width": 36}, "width: 36 is no multiple of 32"),
    ],
)
def test_wrong_sizes_are_named(rela_settings: Any, change: dict[str, int], says: str):
    with pytest.raises(ValueError, match=says):
        rela_settings(**change)


def test_regions_must_be_a_square_to_be_trained(rela_settings: Any):
    with pytest.raises(ValueError, match=r"model\.regions: 15 is not the square"):
        rela_settings(regions=15).check(96)


def test_a_text_encoder_may_be_absent(rela: ReLA, inputs: Inputs):
    pixels, ids, mask = inputs
    text = rela.encode_text(ids, mask)
    rela.bert = None
    assert rela.segment(pixels, text, mask).shape == (3, 2, 48, 40)
    with pytest.raises(WeightsError, match=r"no text encoder.*ReLA\.segment"):
        rela(pixels, ids, mask)


@pytest.mark.slow
def test_a_training_step_of_the_published_size():
    """Random Swin-B, BERT-base and ReLA of experiments/refcoco.yaml on one sample of 480 pixels."""
    params = load_params("experiments/refcoco.yaml")
    params = resolve(params, RunKey("refcoco", 1, "supervised", 0, model="rela"))
    assert isinstance(params.model, Rela)
    torch.manual_seed(0)
    model = ReLA(params.model, new_bert(params.model.bert, 30_522)).train()
    model.text_is_pretrained = True
    model.freeze(params.optimizer)
    model.set_grad_checkpointing(True)
    size, tokens = params.data.image_size, params.data.max_tokens
    ids, mask = torch.randint(1000, 2000, (1, tokens)), torch.ones(1, tokens, dtype=torch.long)
    outputs = model.training_outputs(torch.randn(1, 3, size, size), ids, mask)
    labels = torch.zeros(1, size, size, dtype=torch.long)
    labels[:, 100:300, 50:200] = 1
    losses = [
        F.cross_entropy(outputs.logits, labels),
        *model.extra_losses(outputs, labels).values(),
    ]
    sum(losses).backward()
    assert outputs.logits.shape == (1, 2, 480, 480)
    assert outputs.extra["minimap"].shape == (1, 2, 100)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert 200e6 < sum(p.numel() for p in model.parameters()) < 240e6
