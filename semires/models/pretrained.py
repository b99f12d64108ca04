"""Pretrained parts of a model and what the optimizer does with its parameters.

Swin comes from a safetensors file of ours, from Swin's published ``.pth``, from a local folder or a
hub id; BERT from a folder or a hub id. Relative position tables of another window are resized
(bicubic) as the published LAVT does. Nothing is unpickled.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from semires.config.schema import Model
from semires.errors import WeightsError
from semires.models.lavt import LAVT
from semires.models.official import check_fit, read_checkpoint, swin_from_microsoft
from semires.models.sources import WEIGHTS, folder_of, shipped
from semires.models.text import Tokenizer

State = dict[str, torch.Tensor]
TABLE = "relative_position_bias_table"


def pretrained_lavt(model: Model, tokenizer: Tokenizer, pretrained: bool = True) -> LAVT:
    """A LAVT whose Swin and BERT are loaded where ``model`` says so.

    Raises:
        WeightsError: they are missing, damaged or of other sizes than ``model`` says.
    """
    lavt = LAVT.from_config(model, tokenizer.vocab_size)
    lavt.text_is_pretrained = model.bert.pretrained is not None
    if pretrained and model.swin.pretrained is not None:
        load_swin(lavt.swin, model.swin.pretrained)
    if pretrained and model.bert.pretrained is not None:
        load_bert(lavt.bert, model.bert.pretrained)
    return lavt


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load ``model.safetensors`` of a run into a model of the same sizes.

    Where a SHA-256 stands beside the file (``model.safetensors.sha256``), it is verified.

    Raises:
        WeightsError: missing, damaged, or of other sizes; the text names the file.
    """
    path = Path(path)
    verify_sha256(path)
    _load_state(model, read_safetensors(path), str(path))


def verify_sha256(path: Path) -> None:
    """Compare a file with the digest beside it, if there is one.

    Raises:
        WeightsError: they differ.
    """
    from semires.files import sha256_file

    beside = path.with_name(path.name + ".sha256")
    if path.is_file() and beside.is_file():
        words = beside.read_text(encoding="utf-8", errors="replace").split()
        if not words or words[0] != sha256_file(path):
            raise WeightsError(
                f"{path}: its SHA-256 is not the one in {beside.name}; the file is damaged, "
                "run the stage that makes it again"
            )


def read_safetensors(path: str | Path) -> State:
    """All tensors of a safetensors file.

    Raises:
        WeightsError: missing or damaged.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: damaged or no safetensors file ({first})") from error


def load_swin(swin: Any, source: str) -> None:
    """Load pretrained weights into a `SwinModel` in place.

    Raises:
        WeightsError: they cannot be had, or have other sizes than the model.
    """
    path = shipped(source)
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        state = swin_from_microsoft(read_checkpoint(path), str(path))
    else:
        from transformers import SwinModel

        state = _from_transformers(SwinModel, source, "model.swin.pretrained")
    if hasattr(swin, "layernorm") and isinstance(swin.layernorm, nn.Identity):
        state = {k: v for k, v in state.items() if not k.startswith("layernorm.")}
    _load_state(swin, fit_tables(state, swin.state_dict()), f"model.swin.pretrained: {source}")


def load_bert(bert: Any, source: str) -> None:
    """Load pretrained weights into a `BertModel` in place.

    Raises:
        WeightsError: they cannot be had, or have other sizes than the model.
    """
    from transformers import BertModel

    key = "model.bert.pretrained"
    _load_state(bert, _from_transformers(BertModel, source, key), f"{key}: {source}")


def _from_transformers(model_class: Any, source: str, key: str) -> State:
    """Weights of a folder or hub id, without pooler; transformers renames older layouts."""
    folder = folder_of(source, WEIGHTS, key)
    try:
        model, found = model_class.from_pretrained(
            str(folder), add_pooling_layer=False, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"{key}: {folder}: cannot be read ({reason})") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would start them at random
        raise WeightsError(f"{key}: {folder}: it lacks {missing[0]} and {len(missing) - 1} more")
    return dict(model.state_dict())


def fit_tables(state: State, wanted: State) -> State:
    """Resize position tables of another window or grid to the wanted one.

    Relative tables are ((2w-1)^2, heads), absolute positions (1, side^2, C); both bicubic.
    """
    fitted = {}
    for name, value in state.items():
        target = wanted.get(name)
        if target is not None and target.shape != value.shape:
            if name.endswith(TABLE) and target.shape[1:] == value.shape[1:]:
                value = resize_square(value, len(target))
            elif name.endswith("position_embeddings") and target.shape[2:] == value.shape[2:]:
                value = resize_square(value[0], target.shape[1])[None]
        fitted[name] = value
    return fitted


def resize_square(table: torch.Tensor, count: int) -> torch.Tensor:
    """A square grid of rows (n^2, C) to (count, C), bicubic; ``count`` is a square too."""
    old, new = round(len(table) ** 0.5), round(count**0.5)
    grid = table.float().T.view(1, -1, old, old)
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return resized.view(-1, new * new).T.contiguous()


def _load_state(module: nn.Module, state: State, where: str) -> None:
    try:
        check_fit(module, state)
    except ValueError as error:
        raise WeightsError(
            f"{where}: does not fit this model: {error}; `model` must have the file's sizes"
        ) from None
    module.load_state_dict(state)


def freeze_text(model: nn.Module, bert_layers_trained: int) -> None:
    """Freeze of BERT what the published code leaves untouched.

    The first ``bert_layers_trained`` layers train. Later ones do not, nor the embeddings where they
    are pretrained (random ones, frozen, would never learn a word).
    """
    bert = getattr(model, "bert", None)
    if bert is not None:
        bert.embeddings.requires_grad_(not getattr(model, "text_is_pretrained", True))
        bert.encoder.layer[:bert_layers_trained].requires_grad_(True)
        bert.encoder.layer[bert_layers_trained:].requires_grad_(False)


def parameter_groups(
    model: nn.Module, weight_decay: float, swin_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """AdamW's groups of the parameters that train, as published.

    No decay on the backbone's norm layers and position tables. Swin learns at ``swin_lr_scale``
    times the learning rate, but for its absolute positions: "left" is learned here.

    Returns:
        Groups with ``weight_decay`` and ``lr_scale``, in the order of the model's parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if _undecayed(name) else weight_decay
            slow = name.startswith("swin.") and "position_embeddings" not in name
            scale = swin_lr_scale if slow else 1.0
            groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def _undecayed(name: str) -> bool:
    in_backbone = re.match(r"(swin|norms|fusions|gates)\b", name) is not None
    return (
        in_backbone and re.search(r"norm|relative_position_bias|position_embed", name) is not None
    )
