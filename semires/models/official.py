"""Published LAVT and SemiRES checkpoints (``.pth``), read without running anything in them.

In: a file with ``model`` (backbone and classifier) and usually ``bert_model``, maybe with DDP's
``module.`` prefix. Out: a :class:`LAVT` whose sizes are read off the tensors' shapes
(names: ``naming.py``).
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import ValidationError
from torch import nn

from semires.config.messages import explain
from semires.config.schema import Bert, Model, Swin
from semires.errors import ConfigError, WeightsError
from semires.models import swin as swin_ops
from semires.models.lavt import LAVT, new_bert
from semires.models.naming import SWIN, State, is_derived, rename, split_qkv, to_ours

MAX_NESTING = 100
LEGACY_PICKLES = 5
# What sizes and names that make no LAVT can raise on the way to one.
_MISFITS = (
    ArithmeticError, AssertionError, AttributeError, ConfigError, LookupError, MemoryError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


def load_official_lavt(
    path: str | Path, bert: nn.Module | None = None, fusion_heads: list[int] | None = None
) -> LAVT:
    """A LAVT in eval mode from a published LAVT or SemiRES checkpoint.

    Args:
        path: the ``.pth`` file.
        bert: text encoder for a checkpoint without ``bert_model``; without either,
            :meth:`LAVT.encode_text` refuses and :meth:`LAVT.segment` works.
        fusion_heads: PWAM's heads, which leave no trace in shapes; by default the checkpoint's
            ``args.mha`` if it has one, else 1 per stage, as published.

    Raises:
        WeightsError: missing, damaged, unsafe or no LAVT checkpoint; one line naming the file.
    """
    content = read_checkpoint(path)
    where = str(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise WeightsError(f"{where}: no published LAVT checkpoint: it has no `model` weights")
    published = _tensors(content["model"], where)
    text = content.get("bert_model")
    # `lavt_one` keeps its text encoder among the model's weights.
    inside = {n: published.pop(n) for n in list(published) if n.startswith("text_encoder.")}
    if text is None:
        text = {name.removeprefix("text_encoder."): v for name, v in inside.items()} or None
    text_state = None if text is None else _text_state(_tensors(text, where))
    heads = fusion_heads or _fusion_heads(content.get("args"), where)
    try:
        settings = _sizes(published, text_state, heads)
        state = to_ours(published)
        if text_state is not None:
            state |= {f"bert.{name}": value for name, value in text_state.items()}
        model = _build(settings, text_state, state)
    except ValidationError as error:
        found = explain(error.errors()[0], Swin)
        raise WeightsError(
            f"{where}: no published LAVT checkpoint: wrong shape: {found}"
        ) from error
    except _MISFITS as error:
        reason = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"{where}: no published LAVT checkpoint: {type(error).__name__} {reason}"
        ) from error
    if text_state is None and bert is not None:
        model.bert = bert
    return model.eval()


def read_checkpoint(path: str | Path) -> Any:
    """Read a ``.pth`` with tensors, plain containers and `argparse.Namespace` only.

    Raises:
        WeightsError: missing, damaged, or it holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch verifies no checksum
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not hold")
        _refuse_deep_tuples(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(
            r"(?:GLOBAL|global|[Uu]nsupported \w+:?|class) `?([\w.]+\.[\w.]+)", str(error)
        )
        what = f"it wants to run {found[1]}" if found else "not a readable checkpoint"
        raise WeightsError(
            f"{path}: refused: {what}; only tensors, containers and argparse.Namespace are read"
        ) from error
    except MemoryError as error:
        raise WeightsError(f"{path}: damaged or no PyTorch checkpoint (absurd sizes)") from error
    # A damaged pickle can raise nearly anything from within torch's reader.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"{path}: damaged or no PyTorch checkpoint ({reason})") from error


def _refuse_deep_tuples(path: Path) -> None:
    """Hashing a tuple nested a million deep, as a key, ends the process: see ``unpickle.py``.

    Raises:
        ValueError: a pickle nests values deeper than any checkpoint does, or is cut off.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    _nesting(io.BytesIO(archive.read(name)))
        return
    with open(path, "rb") as file:  # the old format: five pickles, then numbers
        for _ in range(LEGACY_PICKLES):
            _nesting(file)


def _nesting(stream: IO[bytes]) -> None:
    """Follow a pickle's opcodes with depths in place of values."""
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name, before = opcode.name, opcode.stack_before
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] or 0
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
            continue
        if name == "MARK":
            stack.append(None)
            continue
        taken: list[int] = []
        if pickletools.markobject in before:
            while (value := stack.pop()) is not None:
                taken.append(value)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            taken.append(stack.pop() or 0)
        depth = max(taken, default=0) + (name.startswith("TUPLE"))
        if depth > MAX_NESTING:
            raise ValueError("values nested too deep")
        stack += [depth] * (2 if name == "DUP" else len(opcode.stack_after))


def _tensors(state: Any, where: str) -> State:
    """A state dict without DDP's prefix.

    Raises:
        WeightsError: it holds anything but named tensors.
    """
    if not isinstance(state, dict):
        raise WeightsError(f"{where}: no published LAVT checkpoint: weights are not a mapping")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{where}: no published LAVT checkpoint: {name!r} is no tensor")
        if value.layout != torch.strided or not value.dtype.is_floating_point:
            if is_derived(name) or name.endswith("num_batches_tracked"):
                continue
            raise WeightsError(f"{where}: no published LAVT checkpoint: {name} is {value.dtype}")
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{where}: no published LAVT checkpoint: {name} has no data")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{where}: damaged: {name} holds NaN or infinite numbers")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _text_state(state: State) -> State:
    """BERT's weights under transformers' present names, without the pooler."""
    renamed = {
        re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix("bert."))): v
        for name, v in state.items()
    }
    return {name: v for name, v in renamed.items() if not is_derived(name)}


def _fusion_heads(args: Any, where: str) -> list[int]:
    """PWAM's heads from the training arguments: ``mha`` is like ``4-4-4-4`` or empty."""
    text = str(getattr(args, "mha", "") or "") if args is not None else ""
    try:
        heads = [int(part) for part in text.split("-")] if text else [1, 1, 1, 1]
    except ValueError as error:
        raise WeightsError(f"{where}: args.mha is {text!r}, not like 1-1-1-1") from error
    if len(heads) != 4 or min(heads) < 1:
        raise WeightsError(f"{where}: args.mha is {text!r}, not four positive numbers")
    return heads


def swin_from_microsoft(content: Any, where: str) -> State:
    """Swin's published weights (``{"model": {...}}``) under `SwinModel`'s names.

    The published downsampling joins its four pixels in the order that transformers uses too.

    Raises:
        WeightsError: it holds no Swin.
    """
    inner = content.get("model", content) if isinstance(content, dict) else content
    state = {}
    for name, value in split_qkv(_tensors(inner, where)).items():
        if is_derived(name):
            continue
        ours = rename(name.removeprefix("backbone."), SWIN)
        if ours is None:
            raise WeightsError(f"{where}: no published Swin weights: unknown name {name!r}")
        state[ours.removeprefix("swin.")] = value
    if not state:
        raise WeightsError(f"{where}: no published Swin weights: it is empty")
    return state


def _build(settings: Model, text: State | None, state: State) -> LAVT:
    """A LAVT with the weights of ``state``.

    It is first built without memory, so that a file with absurd shapes costs nothing.
    """

    def empty() -> LAVT:
        bert = None if text is None else _new_bert(settings.bert, text)
        return LAVT(
            swin_ops.new_swin(settings.swin), bert, settings.bert.hidden_size,
            settings.fusion_heads, settings.fusion_dropout, settings.decoder_width,
        )  # fmt: skip

    with torch.device("meta"):
        check_fit(empty(), state)
    model = empty()
    model.load_state_dict(state)
    return model


def _new_bert(settings: Bert, text: State) -> Any:
    vocab_size = len(text["embeddings.word_embeddings.weight"])
    positions = len(text["embeddings.position_embeddings.weight"])
    return new_bert(settings, vocab_size, positions)


def check_fit(model: nn.Module, state: State) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: one is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [name for name in wanted if name not in state]
    foreign = [name for name in state if name not in wanted]
    for what, names in (("wrong shape", wrong), ("missing", missing), ("unknown", foreign)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{what}: {names[0]}{more}")


def _sizes(published: State, text: State | None, heads: list[int]) -> Model:
    """All of `model`'s parameters, read off shapes."""
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
    swin = Swin(
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
    return Model(
        name="lavt", swin=swin, bert=_bert_sizes(text, text_dim), fusion_heads=heads,
        fusion_dropout=0.0, decoder_width=width,
    )  # fmt: skip


def _bert_sizes(text: State | None, text_dim: int) -> Bert:
    """BERT's sizes. Heads leave no trace: 64 channels each, as published, 4 in smaller ones."""
    layers, inner = 1, 1
    if text is not None:
        layers = len({n.split(".")[2] for n in text if n.startswith("encoder.layer.")})
        inner = len(text["encoder.layer.0.intermediate.dense.weight"])
    return Bert(
        pretrained=None, vocabulary=None, hidden_size=text_dim, num_layers=layers,
        num_heads=text_dim // 64 if text_dim % 64 == 0 else math.gcd(text_dim, 4),
        intermediate_size=inner, dropout=0.1,
    )  # fmt: skip
