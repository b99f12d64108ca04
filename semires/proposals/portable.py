"""SAM with the same bytes on CPUs of different vendors.

`torch.sqrt` calls MKL for float32, and MKL's result differs between vendors in the last bit. Only
SAM's `LayerNorm2d` uses it in this project.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d


class PortableLayerNorm2d(LayerNorm2d):  # type: ignore[misc]
    """SAM's layer norm over the channels of (B,C,H,W), with a correctly rounded square root."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` (B,C,H,W), floating point; returns the same shape and dtype."""
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        deviation = (variance + self.eps).double().sqrt().to(x.dtype)  # rounded from float64
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        normalised: torch.Tensor = weight * ((x - mean) / deviation) + bias
        return normalised


def make_portable(sam: Sam) -> Sam:
    """Replace every `LayerNorm2d` of ``sam`` in place; names and weights stay."""
    for module in list(sam.modules()):
        for name, child in module.named_children():
            if type(child) is LayerNorm2d:
                portable = PortableLayerNorm2d(len(child.weight), child.eps)
                portable.load_state_dict(child.state_dict())
                setattr(module, name, portable)
    return sam
