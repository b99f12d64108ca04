"""Counted operations: against a formula written out here, and against Swin's published figure."""

from __future__ import annotations

from pathlib import Path

import operations
import pytest
import torch
from torch import nn

from semires.config.load import load_params
from semires.models import swin as swin_ops
from semires.rehearsal.operations import count

ROOT = Path(__file__).parents[2]


def test_a_convolution_and_a_linear_layer_by_hand():
    with torch.device("meta"):
        layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Flatten(), nn.Linear(512, 7))
        pixels = torch.empty(4, 3, 8, 8)
    convolution, linear = 4 * 64 * 8 * 3 * 25, 4 * 512 * 7
    assert count(lambda: layers(pixels)) == 2e-12 * (convolution + linear)
    # Backward: weights' and inputs' gradients, but none for the pixels.
    training = count(lambda: layers(pixels).sum().backward())
    assert training == pytest.approx(2e-12 * (2 * convolution + 3 * linear), rel=1e-12)


def test_swin_b_has_its_published_operations():
    """Swin-B at 384 x 384, window 12: 47.0 GMAC and 88 M parameters (Liu et al., Table 1)."""
    params = load_params(ROOT / "experiments/refcoco.yaml")
    with torch.device("meta"):
        swin = swin_ops.new_swin(params.model.swin)
        pixels = torch.empty(1, 3, 384, 384)

    def forward() -> None:
        tokens, grid = swin_ops.embed(swin, pixels)
        for i, stage in enumerate(swin.encoder.layers):
            for block in stage.blocks:
                tokens = swin_ops.run_block(block, tokens, grid)
            if i < 3:
                tokens, grid = swin_ops.downsample(stage, tokens, grid)

    with torch.no_grad():
        swin.eval()
        assert count(forward) == pytest.approx(2 * 47.0e-3, rel=0.02)
    assert sum(p.numel() for p in swin.parameters()) == pytest.approx(87.8e6, rel=0.02)


def test_what_a_backward_pass_keeps_by_hand():
    with torch.device("meta"):
        layer, x = nn.Linear(512, 7), torch.empty(4, 512)
    # The linear layer keeps its input, the sigmoid its output; the weight is the model's own.
    assert operations.saved_bytes(layer, lambda: layer(x).sigmoid()) == 4 * 4 * (512 + 7)
