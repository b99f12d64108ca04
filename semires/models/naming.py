"""Names and shapes of the published models' weights, translated to the names of this project.

The published files have Swin's original (Microsoft) names under ``backbone.``, with fusion and gate
inside each stage. LAVT's decoder is under ``classifier.``, ReLA's under ``sem_seg_head.``. Two
shapes differ: the published code stores Swin's query, key and value in one ``qkv``, and its 1x1
convolutions over tokens are linear layers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
_LAYER = "transformer.encoder.layers.{s}."
PIXEL_DECODER: Rules = (
    ("input_proj.{s}.", "pixel_decoder.input_projections.{s}."),
    ("transformer.level_embed", "pixel_decoder.level_embed"),
    (_LAYER + "self_attn.", "pixel_decoder.encoder.layers.{s}.self_attn."),
    (_LAYER + "norm1.", "pixel_decoder.encoder.layers.{s}.self_attn_layer_norm."),
    (_LAYER + "norm2.", "pixel_decoder.encoder.layers.{s}.final_layer_norm."),
    (_LAYER + "linear1.", "pixel_decoder.encoder.layers.{s}.fc1."),
    (_LAYER + "linear2.", "pixel_decoder.encoder.layers.{s}.fc2."),
    ("adapter_1.norm.", "pixel_decoder.adapter_1.1."),
    ("adapter_1.", "pixel_decoder.adapter_1.0."),
    ("layer_1.norm.", "pixel_decoder.layer_1.1."),
    ("layer_1.", "pixel_decoder.layer_1.0."),
    ("mask_features.", "pixel_decoder.mask_projection."),
)
PREDICTOR: Rules = (
    ("query_feat.", "regions.features."),
    ("query_embed.", "regions.positions."),
    ("level_embed.", "regions.level_embed."),
    ("input_proj.{s}.", "regions.project.{s}."),
    ("lang_proj.", "regions.language_project."),
    ("lang_weight", "regions.language_weight"),
    ("RLA_lang_att.multihead_attn.", "regions.language.attention."),
    ("RLA_lang_att.norm.", "regions.language.norm."),
    ("RIA_layers.{s}.multihead_attn.", "regions.layers.{s}.image.attention."),
    ("RIA_layers.{s}.norm.", "regions.layers.{s}.image.norm."),
    ("RLA_vision.{s}.self_attn.", "regions.layers.{s}.regions.attention."),
    ("RLA_vision.{s}.norm.", "regions.layers.{s}.regions.norm."),
    ("transformer_ffn_layers.{s}.", "regions.layers.{s}."),
    ("decoder_norm.", "regions.norm."),
    ("minimap_embed.", "regions.minimap."),
    ("nt_embed.", "regions.no_target."),
    ("mask_embed.", "regions.mask_embed."),
)
PARTS: dict[str, Rules] = {  # by prefix
    "backbone.": BACKBONE,
    "classifier.": CLASSIFIER,
    "sem_seg_head.pixel_decoder.": PIXEL_DECODER,
    "sem_seg_head.predictor.": PREDICTOR,
}
_DERIVED = re.compile(
    r"relative_position_index$|attn_mask$|position_ids$|^(backbone\.)?(head|norm)\.|^pooler\."
    r"|^pixel_(mean|std)$|^criterion\."
)


def present_name(name: str) -> str:
    """The name of a weight in the last published code.

    Early files of GRES have ``static_query`` for ``query_feat``.
    """
    return re.sub(r"^(sem_seg_head\.predictor\.)static_query\.", r"\1query_feat.", name)


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


def to_ours(published: State, parts: Mapping[str, Rules] = PARTS) -> State:
    """The published ``model`` entry, without a text encoder, under this project's names and shapes.

    Args:
        published: the weights.
        parts: the rules that apply, by prefix.

    Raises:
        ValueError: no rule applies to a name.
    """
    state = {}
    for name, value in split_qkv(published).items():
        if is_derived(name):
            continue
        part = next((prefix for prefix in parts if name.startswith(prefix)), "")
        ours = rename(name.removeprefix(part), parts.get(part, ()))
        if ours is None:
            raise ValueError(f"unknown name {name}")
        state[ours] = value.squeeze(-1) if ours.startswith("fusions.") else value
    return state
