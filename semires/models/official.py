"""Published LAVT and SemiRES checkpoints (``.pth``), read without executing anything in them.

In: a file with ``model`` (backbone and classifier) and usually ``bert_model``, with or without the
prefixes of DDP and `torch.compile`. Out: a :class:`LAVT` whose sizes come from the tensors' shapes
(names: ``naming.py``).
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from semires.config.messages import explain
from semires.config.model import Lavt
from semires.errors import WeightsError
from semires.models import swin as swin_ops
from semires.models.lavt import LAVT, new_bert
from semires.models.naming import is_derived, to_ours
from semires.models.weights import (
    State,
    check_tensors,
    misfit,
    one_line,
    plain_names,
    read_checkpoint,
    weights_errors,
)

NO_LAVT = "no published LAVT checkpoint"
PUBLISHED_HEADS = [1, 1, 1, 1]  # PWAM's heads in the published code, per stage


def load_official_lavt(
    path: str | Path, bert: nn.Module | None = None, fusion_heads: list[int] | None = None
) -> LAVT:
    """A LAVT in eval mode from a published LAVT or SemiRES checkpoint.

    Args:
        path: the ``.pth`` file.
        bert: text encoder for a checkpoint without ``bert_model``; without either,
            :meth:`LAVT.encode_text` raises an error; :meth:`LAVT.segment` works.
        fusion_heads: PWAM's heads, which cannot be read from shapes; by default the ``mha`` of
            the checkpoint's ``args`` if it has one, else 1 per stage, as published.

    Raises:
        WeightsError: the file is missing, damaged, unsafe or not a LAVT checkpoint.
    """
    content = read_checkpoint(path)
    where = str(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        entries = ", ".join(map(str, content)) if isinstance(content, dict) else "no mapping"
        raise WeightsError(
            f"{where}: {NO_LAVT}: it has no `model` weights, but {one_line(entries) or 'nothing'}"
        )
    published = plain_names(check_tensors(content["model"], where))
    text = content.get("bert_model")
    # `lavt_one` stores its text encoder in `model`.
    inside = {n: published.pop(n) for n in list(published) if n.startswith("text_encoder.")}
    if text is None:
        text = {name.removeprefix("text_encoder."): v for name, v in inside.items()} or None
    text_state = None if text is None else _text_state(plain_names(check_tensors(text, where)))
    heads = fusion_heads or _fusion_heads(content.get("args"), where)
    with weights_errors(where, NO_LAVT):  # wrong sizes or names raise almost any exception
        settings = _settings(_sizes(published, text_state, heads), where)
        state = to_ours(published)
        if text_state is not None:
            state |= {f"bert.{name}": value for name, value in text_state.items()}
        model = _build(settings, text_state, state)
    if text_state is None and bert is not None:
        model.bert = bert
    return model.eval()


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


def _settings(sizes: dict[str, Any], where: str) -> Lavt:
    """The validated section of these sizes.

    Raises:
        WeightsError: the sizes are not valid for a LAVT.
    """
    try:
        return Lavt.model_validate(sizes)
    except ValidationError as error:
        fault = one_line(explain(error.errors()[0], Lavt))
        raise WeightsError(f"{where}: {NO_LAVT}: wrong shape: {fault}") from error


def _build(settings: Lavt, text: State | None, state: State) -> LAVT:
    """A LAVT with the weights of ``state``.

    It is first built on the meta device, so that no memory is allocated for absurd shapes.

    Raises:
        ValueError: the weights do not fit.
    """

    def empty() -> LAVT:
        bert = None if text is None else _new_bert(settings, text)
        return LAVT(
            swin_ops.new_swin(settings.swin), bert, settings.bert.hidden_size,
            settings.fusion_heads, settings.fusion_dropout, settings.decoder_width,
        )  # fmt: skip

    with torch.device("meta"):
        problem = misfit(empty(), state)
    if problem:
        raise ValueError(problem)
    model = empty()
    model.load_state_dict(state)
    return model


def _new_bert(settings: Lavt, text: State) -> Any:
    vocab_size = len(text["embeddings.word_embeddings.weight"])
    positions = len(text["embeddings.position_embeddings.weight"])
    return new_bert(settings.bert, vocab_size, positions)


def _sizes(published: State, text: State | None, heads: list[int]) -> dict[str, Any]:
    """The `model` section of a checkpoint, from its shapes.

    Raises:
        KeyError: a tensor that determines a size is missing.
    """
    patch = published["backbone.patch_embed.proj.weight"]
    blocks = {
        (int(m[1]), int(m[2]))
        for m in (re.match(r"backbone\.layers\.(\d)\.blocks\.(\d+)\.", n) for n in published)
        if m
    }
    first = [f"backbone.layers.{i}.blocks.0." for i in range(4)]
    tables = [published[f"{prefix}attn.relative_position_bias_table"] for prefix in first]
    ratio = len(published[f"{first[0]}mlp.fc1.weight"]) / len(patch)
    positions = published.get("backbone.absolute_pos_embed")
    swin = dict(
        pretrained=None,
        patch_size=patch.shape[-1],
        embed_dim=len(patch),
        depths=[sum(stage == i for stage, _ in blocks) for i in range(4)],
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(len(tables[0]) ** 0.5) + 1) // 2,
        mlp_ratio=ratio,
        drop_path_rate=0.0,
        absolute_embeddings=positions is not None,
        **({} if positions is None else {"position_grid": round(positions.shape[1] ** 0.5)}),
    )
    text_dim = published["backbone.layers.0.fusion.image_lang_att.f_key.0.weight"].shape[1]
    width = len(published["classifier.conv1_4.weight"])
    return dict(
        name="lavt", swin=swin, bert=_bert_sizes(text, text_dim), fusion_heads=heads,
        fusion_dropout=0.0, decoder_width=width,
    )  # fmt: skip


def _bert_sizes(text: State | None, text_dim: int) -> dict[str, Any]:
    """BERT's sizes. Heads cannot be read from shapes: 64 channels each, or 4 heads if smaller."""
    layers, inner = 1, 1
    if text is not None:
        layers = len({n.split(".")[2] for n in text if n.startswith("encoder.layer.")})
        inner = len(text["encoder.layer.0.intermediate.dense.weight"])
    return dict(
        pretrained=None, vocabulary=None, hidden_size=text_dim, num_layers=layers,
        num_heads=text_dim // 64 if text_dim % 64 == 0 else math.gcd(text_dim, 4),
        intermediate_size=inner, dropout=0.1,
    )  # fmt: skip
