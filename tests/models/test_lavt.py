import copy

import pytest
import torch
from pydantic import ValidationError

from semires.config.load import load_params
from semires.config.model import Lavt
from semires.config.schema import Optimizer
from semires.errors import ConfigError, WeightsError
from semires.models import LAVT, build_model
from semires.models import swin as swin_ops
from semires.models.fusion import PWAM, additive_mask, instance_norm
from semires.models.text import Tokenizer


def optimizer(trained: int = 1) -> Optimizer:
    """Decay 0.01, one learning rate, and so many layers of BERT trained."""
    values = load_params("experiments/demo.yaml").optimizer.model_dump()
    values |= {"bert_layers_trained": trained, "weight_decay": 0.01, "swin_lr_scale": 1.0}
    return Optimizer(**values)


def test_logits_have_the_image_size_whatever_it_is(lavt, inputs):
    _, ids, mask = inputs
    for height, width in ((48, 40), (16, 16), (33, 70), (5, 90)):
        logits = lavt(torch.randn(3, 3, height, width), ids, mask)
        assert logits.shape == (3, 2, height, width)
        assert torch.isfinite(logits).all()


def test_segment_and_shared_first_stage_equal_forward(lavt, inputs):
    pixels, ids, mask = inputs
    with torch.no_grad():
        whole = lavt(pixels, ids, mask)
        text = lavt.encode_text(ids, mask)
        assert text.shape == (3, 6, 16)
        assert torch.equal(lavt.segment(pixels, text, mask), whole)
        one_image = lavt.forward_shared(pixels[:1], torch.zeros(3, dtype=torch.int64), ids, mask)
        expected = lavt(pixels[:1].expand(3, -1, -1, -1), ids, mask)
    torch.testing.assert_close(one_image, expected, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_and_words_do(lavt, inputs):
    pixels, ids, mask = inputs
    with torch.no_grad():
        logits = lavt(pixels, ids, mask)
        padded = lavt(pixels, torch.where(mask == 1, ids, 7), mask)
        other = lavt(pixels, torch.where(mask == 1, (ids + 11) % 50, 0), mask)
    torch.testing.assert_close(logits, padded, rtol=1e-4, atol=1e-4)
    assert (logits - other).abs().max() > 0.01


@pytest.mark.parametrize("size", [(48, 48), (50, 70), (9, 33)])
def test_blocks_equal_transformers(settings, size):
    """Our stage functions against `SwinModel`'s own blocks: same arithmetic, masks cached."""
    torch.manual_seed(2)
    swin = swin_ops.new_swin(settings(swin__depths=[2, 2, 2, 2]).swin).eval()
    for name, parameter in swin.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        tokens, grid = swin_ops.embed(swin, torch.randn(2, 3, *size))
        for stage in swin.encoder.layers:
            for block in stage.blocks:
                expected = block(tokens, grid, always_partition=True)[0]
                ours = swin_ops.run_block(block, tokens, grid)
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
                tokens = expected
            tokens, grid = swin_ops.downsample(stage, tokens, grid)


def test_absolute_positions_are_resized_to_the_grid(settings):
    model = LAVT.from_config(settings(swin__absolute_embeddings=True), 50).eval()
    positions = model.swin.embeddings.position_embeddings
    torch.nn.init.normal_(positions)
    assert torch.equal(swin_ops.resize_positions(positions, (8, 8)), positions)
    assert swin_ops.resize_positions(positions, (5, 11)).shape == (1, 55, 8)
    flat = torch.full_like(positions, 0.5)
    torch.testing.assert_close(swin_ops.resize_positions(flat, (3, 4)), torch.full((1, 12, 8), 0.5))
    assert torch.isfinite(model.encode_image(torch.randn(1, 3, 36, 20))[0]).all()


def test_instance_norm_is_torchs_and_survives_one_token():
    x = torch.randn(2, 9, 5)
    expected = torch.nn.InstanceNorm1d(5)(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(instance_norm(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(instance_norm(torch.randn(2, 1, 5)), torch.zeros(2, 1, 5))


def test_attention_scale_ignores_the_number_of_heads():
    """As published: scores are divided by sqrt(C), not by sqrt(C / heads)."""
    torch.manual_seed(3)
    module = PWAM(8, 6, heads=2, dropout=0.0).attention
    x, text = torch.randn(1, 4, 8), torch.randn(1, 3, 6)
    query, key, value = instance_norm(module.query(x)), module.key(text), module.value(text)
    parts = [
        torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        for q, k, v in zip(query.split(4, 2), key.split(4, 2), value.split(4, 2), strict=True)
    ]
    expected = instance_norm(module.out(torch.cat(parts, -1)))
    mask = additive_mask(torch.ones(1, 3, dtype=torch.int64), torch.float32)
    torch.testing.assert_close(module(x, text, mask), expected, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(lavt, inputs):
    gradients = []
    for on in (False, True):
        model = copy.deepcopy(lavt).train()
        model.set_grad_checkpointing(on)
        model(*inputs).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_every_trained_parameter_gets_a_gradient(lavt, inputs):
    """DDP waits for ever for a parameter that takes no part."""
    lavt.train()
    lavt.freeze(optimizer())
    groups = lavt.parameter_groups(optimizer())
    lavt(*inputs).square().mean().backward()
    assert all(p.grad is not None for group in groups for p in group["params"])
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in lavt.parameters())


def test_parameter_groups_follow_the_published_rule(lavt):
    lavt.text_is_pretrained = True
    lavt.freeze(optimizer())
    decayed, undecayed = lavt.parameter_groups(optimizer())
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.01, 0.0)
    names = {id(p): n for n, p in lavt.named_parameters()}
    without = {names[id(p)] for p in undecayed["params"]}
    with_decay = {names[id(p)] for p in decayed["params"]}
    assert all(n.startswith(("swin.", "norms.")) for n in without)
    assert "swin.encoder.layers.0.blocks.0.layernorm_before.weight" in without
    assert any(n.endswith("relative_position_bias_table") for n in without)
    assert "norms.2.bias" in without
    assert "swin.encoder.layers.0.downsample.norm.weight" in without
    # The decoder's batch norms and BERT's layer norms decay in the published code.
    assert "decoder.merge4.bn1.weight" in with_decay
    assert "bert.encoder.layer.0.attention.output.LayerNorm.weight" in with_decay
    assert not any(n.startswith(("bert.embeddings", "bert.encoder.layer.1")) for n in with_decay)


def test_random_text_embeddings_train(lavt):
    lavt.freeze(optimizer(trained=10))
    assert all(p.requires_grad for p in lavt.bert.parameters())


def test_build_model_by_name(settings):
    tokenizer = Tokenizer("semires/weights/vocab.txt")
    model = build_model(settings(), tokenizer)
    assert isinstance(model, LAVT)
    assert model.bert.config.vocab_size == tokenizer.vocab_size
    unknown = settings().model_copy(update={"name": "resnet"})
    with pytest.raises(ConfigError, match=r"model\.name: 'resnet' is unknown; there is lavt"):
        build_model(unknown, tokenizer)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fusion_heads": [3, 1, 1, 1]}, "fusion_heads"),
        ({"swin__num_heads": [3, 1, 1, 1]}, "num_heads"),
        ({"bert__num_heads": 3}, "num_heads"),
    ],
)
def test_heads_must_divide_channels(settings, change, key):
    with pytest.raises(ValidationError, match=rf"{key}\n.*3 (heads )?do not divide"):
        settings(**change)


def test_same_seed_same_model(settings):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(LAVT.from_config(settings(), 50).state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_drop_path_acts_on_both_branches_in_training_only(settings):
    """As in the published Swin; transformers' block drops the attention branch alone."""
    model: Lavt = settings(swin__drop_path_rate=0.5, swin__depths=[1, 1, 1, 2])
    block = swin_ops.new_swin(model.swin).encoder.layers[3].blocks[1]  # has the full rate
    tokens = torch.randn(200, 4, 64)
    for training, share in ((True, 0.25), (False, 0.0)):
        block.train(training)
        out = swin_ops.run_block(block, tokens, (2, 2))
        untouched = (out == tokens).flatten(1).all(1).float().mean()
        assert abs(float(untouched) - share) <= (0.12 if training else 0)


def test_training_after_evaluation_and_mixed_precision(settings, inputs):
    torch.manual_seed(6)
    lavt = LAVT.from_config(settings(), 50).eval()
    with torch.inference_mode():
        expected = lavt(*inputs).clone()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lavt(*inputs)
    assert mixed.dtype == torch.float32
    mixed.square().mean().backward()
    assert (mixed - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_text_encoder_may_be_absent(lavt, inputs):
    pixels, ids, mask = inputs
    text = lavt.encode_text(ids, mask)
    lavt.bert = None
    assert lavt.segment(pixels, text, mask).shape == (3, 2, 48, 40)
    with pytest.raises(WeightsError, match="no text encoder"):
        lavt(pixels, ids, mask)
