"""Names and shapes of the published LAVT's weights, translated to the names of this project.

The published file has Swin's original (Microsoft) names under ``backbone.``, with fusion and gate
inside each stage, and ``classifier.`` for the decoder. Two shapes differ: the published code stores
query, key and value in one ``qkv``, and its 1x1 convolutions over tokens are linear layers here.
"""

from __future__ import annotations

import re

from semires.models.weights import State

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
    """Whether a published entry is not used here: indices, masks, poolers, unused norms."""
    return _DERIVED.search(name) is not None


def rename(name: str, rules: Rules) -> str | None:
    """Translate the prefix of a name by ``rules``; None if no rule applies."""
    for source, target in rules:
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
        ValueError: the first dimension of a ``qkv`` is not divisible by three.
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
    """The published ``model`` entry under this project's names and shapes.

    Raises:
        ValueError: a name is not one of LAVT's.
    """
    state = {}
    for name, value in split_qkv(published).items():
        if is_derived(name):
            continue
        part, _, inner = name.partition(".")
        rules = {"backbone": BACKBONE, "classifier": CLASSIFIER}.get(part, ())
        ours = rename(inner, rules)
        if ours is None:
            raise ValueError(f"unknown name {name}")
        state[ours] = value.squeeze(-1) if ours.startswith("fusions.") else value
    return state
