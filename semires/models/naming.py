"""Names and shapes of the published LAVT's weights against ours, in both directions.

The published modules are Swin's own (Microsoft) names under ``backbone.``, fusion and gate inside
each stage, and ``classifier.`` for the decoder. Differences of shape: the published code keeps
query, key and value in one ``qkv``, and its 1x1 convolutions over tokens are linear layers here.
"""

from __future__ import annotations

import re

import torch

from semires.models.lavt import LAVT

State = dict[str, torch.Tensor]
Rules = tuple[tuple[str, str], ...]  # (published, ours) prefixes; {s}: stage, {b}: block

_BLOCK, _OURS = "layers.{s}.blocks.{b}.", "swin.encoder.layers.{s}.blocks.{b}."
SWIN: Rules = (
    ("patch_embed.proj.", "swin.embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "swin.embeddings.norm."),
    ("absolute_pos_embed", "swin.embeddings.position_embeddings"),
    (_BLOCK + "norm1.", _OURS + "layernorm_before."),
    (_BLOCK + "norm2.", _OURS + "layernorm_after."),
    (
        _BLOCK + "attn.relative_position_bias_table",
        _OURS + "attention.relative_position_bias.relative_position_bias_table",
    ),
    (_BLOCK + "attn.q.", _OURS + "attention.q_proj."),
    (_BLOCK + "attn.k.", _OURS + "attention.k_proj."),
    (_BLOCK + "attn.v.", _OURS + "attention.v_proj."),
    (_BLOCK + "attn.proj.", _OURS + "attention.o_proj."),
    (_BLOCK + "mlp.", _OURS + "mlp."),
    ("layers.{s}.downsample.", "swin.encoder.layers.{s}.downsample."),
)
BACKBONE: Rules = (
    *SWIN,
    ("layers.{s}.fusion.vis_project.0.", "fusions.{s}.visual."),
    ("layers.{s}.fusion.image_lang_att.f_query.0.", "fusions.{s}.attention.query."),
    ("layers.{s}.fusion.image_lang_att.f_key.0.", "fusions.{s}.attention.key."),
    ("layers.{s}.fusion.image_lang_att.f_value.0.", "fusions.{s}.attention.value."),
    ("layers.{s}.fusion.image_lang_att.W.0.", "fusions.{s}.attention.out."),
    ("layers.{s}.fusion.project_mm.0.", "fusions.{s}.project."),
    ("layers.{s}.res_gate.0.", "gates.{s}.inner."),
    ("layers.{s}.res_gate.2.", "gates.{s}.outer."),
    ("norm{s}.", "norms.{s}."),
)
CLASSIFIER: Rules = (
    ("conv1_1.", "decoder.classifier."),
    ("conv1_{s}.", "decoder.merge{s}.conv1."),
    ("conv2_{s}.", "decoder.merge{s}.conv2."),
    ("bn1_{s}.", "decoder.merge{s}.bn1."),
    ("bn2_{s}.", "decoder.merge{s}.bn2."),
)
_DERIVED = re.compile(
    r"relative_position_index$|attn_mask$|position_ids$|^(backbone\.)?(head|norm)\.|^pooler\."
)


def is_derived(name: str) -> bool:
    """Whether a published entry carries nothing that is needed here: indices, masks, poolers."""
    return _DERIVED.search(name) is not None


def rename(name: str, rules: Rules, to_ours: bool = True) -> str | None:
    """A name under the other convention, or None if no rule fits."""
    for published, ours in rules:
        source, target = (published, ours) if to_ours else (ours, published)
        pattern = (
            re.escape(source).replace(r"\{s\}", r"(?P<s>\d+)").replace(r"\{b\}", r"(?P<b>\d+)")
        )
        match = re.match(pattern, name)
        if match:
            return target.format(**match.groupdict()) + name[match.end() :]
    return None


def split_qkv(state: State) -> State:
    """``attn.qkv`` to ``attn.q``, ``attn.k`` and ``attn.v``.

    Raises:
        ValueError: one does not divide by three.
    """
    out = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[name.replace(".attn.qkv.", f".attn.{letter}.")] = part
        else:
            out[name] = value
    return out


def to_ours(published: State) -> State:
    """The published ``model`` entry under our names and shapes.

    Raises:
        KeyError: a name is none of LAVT's.
    """
    state = {}
    for name, value in split_qkv(published).items():
        if is_derived(name):
            continue
        part, _, inner = name.partition(".")
        rules = {"backbone": BACKBONE, "classifier": CLASSIFIER}.get(part, ())
        ours = rename(inner, rules)
        if ours is None:
            raise KeyError(name)
        state[ours] = value.squeeze(-1) if ours.startswith("fusions.") else value
    return state


def to_published(model: LAVT) -> dict[str, State]:
    """``{"model": ..., "bert_model": ...}`` as the published code loads it, strictly."""
    state: State = {}
    text: State = {}
    for name, value in model.state_dict().items():
        value = value.contiguous()
        if name.startswith("bert."):
            text[name.removeprefix("bert.")] = value
        elif name.startswith("decoder."):
            state[f"classifier.{rename(name, CLASSIFIER, to_ours=False)}"] = value
        else:
            if name.startswith("fusions.") and value.ndim == 2:
                value = value.unsqueeze(-1)
            state[f"backbone.{rename(name, BACKBONE, to_ours=False)}"] = value
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
