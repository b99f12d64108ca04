"""The weights of a model as the published code saves them (the inverse of `models.naming`)."""

from __future__ import annotations

import torch

from semires.models import LAVT, ReLA
from semires.models.naming import PARTS, rename
from semires.models.weights import State

OURS = {prefix: tuple((ours, theirs) for theirs, ours in PARTS[prefix]) for prefix in PARTS}


def to_published(model: LAVT) -> dict[str, State]:
    """``{"model": ..., "bert_model": ...}`` as LAVT's published code loads it, strictly."""
    state, text = published_state(model)
    return {"model": state, "bert_model": text} if text else {"model": state}


def to_gres(model: ReLA) -> dict[str, State]:
    """``{"model": ...}`` as GRES's published code saves it."""
    state, text = published_state(model)
    return {"model": state | {f"text_encoder.{name}": value for name, value in text.items()}}


def published_state(model: LAVT | ReLA) -> tuple[State, State]:
    """The weights under the published names, and those of the text encoder."""
    state: State = {}
    text: State = {}
    for name, value in model.state_dict().items():
        value = value.contiguous()
        if name.startswith("bert."):
            text[name.removeprefix("bert.")] = value
            continue
        if name.startswith("fusions.") and value.ndim == 2:
            value = value.unsqueeze(-1)
        state[published_name(name)] = value
    state = _join_qkv(state)
    for i, stage in enumerate(model.swin.encoder.layers):
        for j, block in enumerate(stage.blocks):
            bias = block.attention.relative_position_bias
            index = bias.relative_position_index.view(bias.window_area, -1)
            state[f"backbone.layers.{i}.blocks.{j}.attn.relative_position_index"] = index
    return state, text


def published_name(name: str) -> str:
    found = ((prefix, rename(name, rules)) for prefix, rules in OURS.items())
    return next(prefix + theirs for prefix, theirs in found if theirs is not None)


def _join_qkv(state: State) -> State:
    out = {}
    for name, value in state.items():
        if ".attn.q." in name:
            parts = [state[name.replace(".attn.q.", f".attn.{x}.")] for x in "qkv"]
            out[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            out[name] = value
    return out
