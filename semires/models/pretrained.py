"""Pretrained Swin and BERT weights for the encoders of a model.

Swin is read from a safetensors file of this project, Swin's published ``.pth``, a local folder or a
hub id. BERT is read from a folder or a hub id. Relative position tables of another window are
resized (bicubic), as the published LAVT does. Unpickling is restricted (see ``weights.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from semires.errors import WeightsError
from semires.models.naming import SWIN, to_ours
from semires.models.sources import shipped
from semires.models.weights import (
    State,
    check_tensors,
    from_transformers,
    load_state,
    one_line,
    plain_names,
    read_checkpoint,
    read_safetensors,
    weights_errors,
)

TABLE = "relative_position_bias_table"
# Settings that change the computation but not the shapes of the weights.
UNSEEN = ("num_attention_heads", "num_heads", "hidden_act", "layer_norm_eps")


def load_swin(swin: Any, source: str) -> None:
    """Load pretrained weights into a `SwinModel` in place.

    Raises:
        WeightsError: they are missing or damaged, or have other sizes than the model.
    """
    key, path = "model.swin.pretrained", shipped(source)
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        state = swin_from_microsoft(read_checkpoint(path), str(path))
    else:
        state = _from_folder("swin", swin, source, key)
    if isinstance(swin.layernorm, nn.Identity):  # LAVT does not use the final norm
        state = {k: v for k, v in state.items() if not k.startswith("layernorm.")}
    load_state(swin, fit_tables(state, swin.state_dict()), f"{key}: {source}")


def load_bert(bert: Any, source: str) -> None:
    """Load pretrained weights into a `BertModel` in place.

    Raises:
        WeightsError: they are missing or damaged, or have other sizes than the model.
    """
    key = "model.bert.pretrained"
    load_state(bert, _from_folder("bert", bert, source, key), f"{key}: {source}")


def _from_folder(model_type: str, target: Any, source: str, key: str) -> State:
    """Weights of a folder or hub id, without pooler; transformers renames older layouts.

    Raises:
        WeightsError: they cannot be read, or their config.json computes something else than
            ``target``.
    """
    model = from_transformers(type(target), source, key, model_type, add_pooling_layer=False)
    for name in UNSEEN:
        given, wanted = getattr(model.config, name, None), getattr(target.config, name, None)
        if given != wanted:
            raise WeightsError(
                f"{key}: {source}: its config.json has {name} {one_line(given, 40)}, "
                f"and this model has {wanted}"
            )
    return dict(model.state_dict())


def swin_from_microsoft(content: Any, where: str) -> State:
    """Swin's published weights (``{"model": {...}}``) under `SwinModel`'s names.

    The published downsampling concatenates its four pixels in the same order as transformers.

    Raises:
        WeightsError: the file contains no Swin.
    """
    inner = content.get("model", content) if isinstance(content, dict) else content
    state = plain_names(check_tensors(inner, where))
    published = {f"backbone.{name.removeprefix('backbone.')}": v for name, v in state.items()}
    with weights_errors(where, "no published Swin weights"):
        ours = to_ours(published, {"backbone.": SWIN})
        if not ours:
            raise ValueError("it is empty")
    return {name.removeprefix("swin."): value for name, value in ours.items()}


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
