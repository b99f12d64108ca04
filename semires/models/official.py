"""Published checkpoints (``.pth``) of LAVT, SemiRES and GRES (ReLA), read by weights_only.

LAVT and SemiRES: a file with ``model`` (backbone and classifier) and usually ``bert_model``. GRES:
``model`` with detectron2's names, usually with the text encoder among them. Both with or without
the prefixes of DDP and `torch.compile`. Sizes come from the tensors' shapes (names: ``naming.py``).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from semires.config.model import FusedSection, Lavt, Rela
from semires.config.validate import explain
from semires.errors import WeightsError
from semires.models import swin as swin_ops
from semires.models.encoder import FusedEncoder, new_bert
from semires.models.lavt import LAVT
from semires.models.naming import is_derived, present_name, to_ours
from semires.models.pixel_decoder import POINTS_PER_HEAD
from semires.models.rela import ReLA
from semires.models.weights import (
    State,
    check_tensors,
    misfit,
    one_line,
    plain_names,
    read_checkpoint,
    weights_errors,
)

NO_LAVT, NO_RELA = "no published LAVT checkpoint", "no published GRES checkpoint"
RELA_PART = "sem_seg_head."  # prefix of names that only GRES's checkpoints have
LAVT_PART = "classifier."
PATCHES = "backbone.patch_embed.proj.weight"  # its rows: Swin's width
TEXT_WIDTH = "backbone.layers.0.fusion.image_lang_att.f_key.0.weight"  # its columns: BERT's width
HEAD_WIDTH = 64  # channels per head of published BERTs
PUBLISHED_HEADS = [1, 1, 1, 1]  # PWAM's heads in the published code, per stage
Model = TypeVar("Model", bound=FusedEncoder)


@dataclass(frozen=True)
class Published:
    """The content of a published checkpoint.

    Args:
        where: the file, for messages.
        model: weights under the published names, without the text encoder.
        text: BERT's weights under transformers' names, or None.
        args: the entry ``args`` of the training script, or None.
    """

    where: str
    model: State
    text: State | None
    args: Any


def load_official(path: str | Path, like: FusedSection | None = None) -> LAVT | ReLA:
    """A LAVT or a ReLA in eval mode from a published checkpoint, whichever it is by its names.

    Args:
        path: the ``.pth`` file.
        like: a `model` section. Where neither the file nor the published code tells the number of
            PWAM's or BERT's heads, that of this section is used if its widths are equal.

    Raises:
        WeightsError: the file is missing, damaged, unsafe or of neither model.
    """
    published = read_published(path)
    heads = (None, None) if like is None else _heads_like(published, like)
    names = [*published.model]
    if any(name.startswith(RELA_PART) for name in names):
        return load_official_rela(published, *heads)
    if not any(name.startswith(LAVT_PART) for name in names):
        shown = one_line(", ".join(names[:3]), 120) or "nothing"
        raise WeightsError(
            f"{path}: neither a LAVT (`{LAVT_PART}...`) nor a GRES checkpoint (`{RELA_PART}...`): "
            f"its `model` holds {shown}"
        )
    return load_official_lavt(published, *heads)


def load_official_lavt(
    path: str | Path | Published,
    fusion_heads: list[int] | None = None,
    text_heads: int | None = None,
) -> LAVT:
    """A LAVT in eval mode from a published LAVT or SemiRES checkpoint.

    ``bert`` is None if the checkpoint has no ``bert_model``; :meth:`LAVT.encode_text` then raises
    an error, and :meth:`LAVT.segment` works.

    Args:
        path: the ``.pth`` file, or its content.
        fusion_heads: PWAM's heads, which cannot be read from shapes; by default the ``mha`` of
            the checkpoint's ``args`` if it has one, else 1 per stage, as published.
        text_heads: heads of the checkpoint's BERT; one per 64 channels by default, as published.

    Raises:
        WeightsError: the file is missing, damaged, unsafe or not a LAVT checkpoint.
    """
    published = read_published(path)
    heads = fusion_heads or _fusion_heads(published.args, published.where)

    def empty(settings: Lavt, text_encoder: Any) -> LAVT:
        return LAVT(
            swin_ops.new_swin(settings.swin), text_encoder, settings.bert.hidden_size,
            settings.fusion_heads, settings.fusion_dropout, settings.decoder_width,
        )  # fmt: skip

    with weights_errors(published.where, NO_LAVT):  # wrong sizes or names raise anything
        sizes = _encoder_sizes(published, heads, text_heads)
        width = len(published.model["classifier.conv1_4.weight"])
        sizes |= {"name": "lavt", "decoder_width": width}
        return _build(empty, Lavt, sizes, published, NO_LAVT)


def load_official_rela(
    path: str | Path | Published,
    fusion_heads: list[int] | None = None,
    text_heads: int | None = None,
) -> ReLA:
    """A ReLA in eval mode from a published GRES checkpoint.

    All sizes are read from the tensors, except those of ``fusion_heads`` and ``text_heads``. The
    published code has one number of heads for both decoders, 4 sampling points and post-norm
    layers. The weight of RLA's language part, ``lang_weight``, is loaded; the published code loses
    it when it loads a file, and evaluates with 0. Arguments, errors and a checkpoint without text
    encoder are as for :func:`load_official_lavt`, with ``fusion_heads`` 1 per stage by default.
    """
    published = read_published(path)
    with weights_errors(published.where, NO_RELA):
        sizes = _encoder_sizes(published, fusion_heads or PUBLISHED_HEADS, text_heads)
        sizes |= _rela_sizes(published.model)
        return _build(ReLA, Rela, sizes, published, NO_RELA)


def read_published(path: str | Path | Published) -> Published:
    """Read a published checkpoint of either model; content that was read already is returned.

    Raises:
        WeightsError: the file is missing, damaged or unsafe, or holds no weights.
    """
    if isinstance(path, Published):
        return path
    content, where = read_checkpoint(path), str(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        entries = ", ".join(map(str, content)) if isinstance(content, dict) else "no mapping"
        raise WeightsError(
            f"{where}: no published checkpoint: it has no `model` weights, but "
            f"{one_line(entries) or 'nothing'}"
        )
    named = plain_names(check_tensors(content["model"], where))
    model = {present_name(name): value for name, value in named.items()}
    text = content.get("bert_model")
    # GRES and `lavt_one` store the text encoder in `model`.
    inside = {n: model.pop(n) for n in list(model) if n.startswith("text_encoder.")}
    if text is None:
        text = {name.removeprefix("text_encoder."): v for name, v in inside.items()} or None
    text_state = None if text is None else _text_state(plain_names(check_tensors(text, where)))
    return Published(where, model, text_state, content.get("args"))


def _text_state(state: State) -> State:
    """BERT's weights under transformers' present names, without the pooler."""
    renamed = {
        re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix("bert."))): v
        for name, v in state.items()
    }
    return {name: v for name, v in renamed.items() if not is_derived(name)}


def _fusion_heads(args: Any, where: str) -> list[int]:
    """PWAM's heads from the training arguments, whose ``mha`` is empty or like ``4-4-4-4``.

    Args:
        args: None, a Namespace, or a mapping (``vars`` of one).
        where: the file, for messages.

    Raises:
        WeightsError: ``args`` or ``mha`` is of another type or form.
    """
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if values is None:
        return PUBLISHED_HEADS
    if not isinstance(values, dict):
        raise WeightsError(
            f"{where}: `args` is a {type(args).__name__}, not a Namespace or a mapping, so that "
            "the number of PWAM's heads (its `mha`) is unknown"
        )
    text = values.get("mha")
    if text is None or text == "":
        return PUBLISHED_HEADS
    if not isinstance(text, str) or re.fullmatch(r"[1-9]\d{0,3}(-[1-9]\d{0,3}){3}", text) is None:
        shown = one_line(repr(text), 60)
        raise WeightsError(f"{where}: `mha` in `args` is {shown}, not four numbers like '1-1-1-1'")
    return [int(part) for part in text.split("-")]


def _heads_like(published: Published, like: FusedSection) -> tuple[list[int] | None, int | None]:
    """PWAM's and BERT's heads of a section of the same widths; None where others apply.

    The file's ``args`` decide on PWAM's. BERT's are as published where 64 divides its width.
    """
    patch, text = (
        value.shape if (value := published.model.get(name)) is not None else ()
        for name in (PATCHES, TEXT_WIDTH)
    )
    if tuple(text[1:2]) != (like.bert.hidden_size,):
        return None, None
    same = published.args is None and tuple(patch[:1]) == (like.swin.embed_dim,)
    text_heads = like.bert.num_heads if like.bert.hidden_size % HEAD_WIDTH else None
    return like.fusion_heads if same else None, text_heads


def _build(
    empty: Callable[[Any, Any], Model], section: type[FusedSection], sizes: dict[str, Any],
    published: Published, fault: str,
) -> Model:  # fmt: skip
    """A model in eval mode with the checkpoint's weights.

    It is first built on the meta device, so that no memory is allocated for absurd shapes.

    Args:
        empty: makes the model of a section and a text encoder.
        section: the class of the model's section.
        sizes: its content.
        published: the checkpoint.
        fault: what is wrong if the sizes are not valid, for the message.

    Raises:
        WeightsError: the sizes are not valid for this model.
        ValueError: the weights do not fit.
    """
    try:
        settings = section.model_validate(sizes)
    except ValidationError as error:
        reason = one_line(explain(error.errors()[0], sizes))
        raise WeightsError(f"{published.where}: {fault}: wrong shape: {reason}") from error
    state, text = to_ours(published.model), published.text
    if text is not None:
        state |= {f"bert.{name}": value for name, value in text.items()}

    def new() -> Model:
        if text is None:
            return empty(settings, None)
        vocab_size = len(text["embeddings.word_embeddings.weight"])
        positions = len(text["embeddings.position_embeddings.weight"])
        return empty(settings, new_bert(settings.bert, vocab_size, positions))

    with torch.device("meta"):
        problem = misfit(new(), state)
    if problem:
        raise ValueError(problem)
    model = new()
    model.load_state_dict(state)
    return model.eval()


def _encoder_sizes(
    published: Published, fusion_heads: list[int], text_heads: int | None
) -> dict[str, Any]:
    """The fields of a `model` section that both models have, from the shapes.

    Raises:
        KeyError: a tensor that determines a size is missing.
    """
    model = published.model
    patch = model[PATCHES]
    first = [f"backbone.layers.{i}.blocks.0." for i in range(4)]
    tables = [model[f"{prefix}attn.relative_position_bias_table"] for prefix in first]
    ratio = len(model[f"{first[0]}mlp.fc1.weight"]) / len(patch)
    positions = model.get("backbone.absolute_pos_embed")
    swin = dict(
        pretrained=None,
        patch_size=patch.shape[-1],
        embed_dim=len(patch),
        depths=[count(model, f"backbone.layers.{i}.blocks.") for i in range(4)],
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(len(tables[0]) ** 0.5) + 1) // 2,
        mlp_ratio=ratio,
        drop_path_rate=0.0,
        absolute_embeddings=positions is not None,
        **({} if positions is None else {"position_grid": round(positions.shape[1] ** 0.5)}),
    )
    bert = _bert_sizes(published, model[TEXT_WIDTH].shape[1], text_heads)
    return dict(swin=swin, bert=bert, fusion_heads=fusion_heads, fusion_dropout=0.0)


def count(state: State, prefix: str) -> int:
    """The number of modules of a list, whose weights are named ``PREFIX0.``, ``PREFIX1.``, ..."""
    return len({n[len(prefix) :].split(".")[0] for n in state if n.startswith(prefix)})


def _rela_sizes(model: State) -> dict[str, Any]:
    """The fields of ReLA's section beside the encoder's, from the shapes.

    The extra losses are the published ones (gRefCOCO's).

    Raises:
        KeyError: a tensor that determines a size is missing.
    """
    pixel, predictor = f"{RELA_PART}pixel_decoder.", f"{RELA_PART}predictor."
    layers = f"{pixel}transformer.encoder.layers."
    queries = model[f"{predictor}query_feat.weight"]
    offsets = model[f"{layers}0.self_attn.sampling_offsets.weight"]
    return dict(
        name="rela",
        zero_gates=False,
        width=queries.shape[1],
        num_heads=len(offsets) // (2 * POINTS_PER_HEAD),
        pixel_layers=count(model, layers),
        pixel_feedforward=len(model[f"{layers}0.linear1.weight"]),
        regions=len(queries),
        region_layers=count(model, f"{predictor}RIA_layers."),
        region_feedforward=len(model[f"{predictor}transformer_ffn_layers.0.linear1.weight"]),
        language_scale=0.1,
        minimap_weight=0.1,
        minimap_target="truncated",
        no_target_weight=0.1,
        empty_is_no_target=True,
        pixel_width=offsets.shape[1],
        mask_width=len(model[f"{pixel}mask_features.weight"]),
        project_levels=f"{predictor}input_proj.0.weight" in model,
    )


def _bert_sizes(published: Published, text_dim: int, heads: int | None) -> dict[str, Any]:
    """BERT's sizes. Heads cannot be read from shapes.

    The default is one per 64 channels. If the channels are not a multiple of 64, it is a guess, 4
    or less, and a line on stderr says so.
    """
    text, layers, inner = published.text, 1, 1
    if heads is None:
        heads = text_dim // HEAD_WIDTH if text_dim % HEAD_WIDTH == 0 else math.gcd(text_dim, 4)
        if text is not None and text_dim % HEAD_WIDTH:
            print(
                f"{published.where}: BERT's number of heads is not in the file and is guessed: "
                f"{heads} for {text_dim} channels; a `bert` section with hidden_size: {text_dim} "
                "in the parameters states it",
                file=sys.stderr,
            )
    if text is not None:
        layers = count(text, "encoder.layer.")
        inner = len(text["encoder.layer.0.intermediate.dense.weight"])
    return dict(
        pretrained=None, vocabulary=None, hidden_size=text_dim, num_layers=layers,
        num_heads=heads, intermediate_size=inner, dropout=0.1,
    )  # fmt: skip
