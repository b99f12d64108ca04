"""The weights of a LAVT as the published code saves them (the inverse of `models.naming`)."""

from __future__ import annotations

import torch

from semires.models import LAVT
from semires.models.naming import BACKBONE, CLASSIFIER, Rules, rename
from semires.models.weights import State


def reverse(rules: Rules) -> Rules:
    return tuple((ours, published) for published, ours in rules)


def to_published(model: LAVT) -> dict[str, State]:
    """``{"model": ..., "bert_model": ...}`` as the published code loads it, strictly."""
    state: State = {}
    text: State = {}
    for name, value in model.state_dict().items():
        value = value.contiguous()
        if name.startswith("bert."):
            text[name.removeprefix("bert.")] = value
        elif name.startswith("decoder."):
            state[f"classifier.{rename(name, reverse(CLASSIFIER))}"] = value
        else:
            if name.startswith("fusions.") and value.ndim == 2:
                value = value.unsqueeze(-1)
            state[f"backbone.{rename(name, reverse(BACKBONE))}"] = value
    state = _join_qkv(state)
    for i, stage in enumerate(model.swin.encoder.layers):
        for j, block in enumerate(stage.blocks):
            bias = block.attention.relative_position_bias
            index = bias.relative_position_index.view(bias.window_area, -1)
            state[f"backbone.layers.{i}.blocks.{j}.attn.relative_position_index"] = index
    return {"model": state, "bert_model": text} if text else {"model": state}


def _join_qkv(state: State) -> State:
    out = {}
    for name, value in state.items():
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{x}.")] for x in "qkv"]
            out[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            out[name] = value
    return out
