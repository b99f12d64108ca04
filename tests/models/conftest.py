"""A LAVT and a ReLA small enough for any test."""

from typing import Any

import pytest
import torch

from semires.config.model import Bert, Lavt, Rela, Swin
from semires.models import LAVT, ReLA
from semires.models.encoder import new_bert


def small_settings(**changes: Any) -> Lavt:
    """Parameters of a tiny LAVT; ``swin__x=...`` and ``bert__x=...`` reach inside."""
    return Lavt(**sections(changes, {"name": "lavt", "decoder_width": None}))


def small_rela(**changes: Any) -> Rela:
    """Parameters of a tiny ReLA."""
    rela = {
        "name": "rela", "zero_gates": True, "width": 32, "num_heads": 4, "pixel_layers": 2,
        "pixel_feedforward": 40, "regions": 16, "region_layers": 4, "region_feedforward": 24,
        "language_scale": 0.1, "minimap_weight": 0.1, "minimap_target": "truncated",
        "no_target_weight": 0.1, "empty_is_no_target": True,
    }  # fmt: skip
    return Rela(**sections(changes, rela))


def new_rela(settings: Rela, tokens: int = 50) -> ReLA:
    return ReLA(settings, new_bert(settings.bert, tokens))


def sections(changes: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """The fields of a section, changed."""
    swin = {
        "pretrained": None, "patch_size": 4, "embed_dim": 8, "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 4], "window_size": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.0,
        "absolute_embeddings": False, "position_grid": 8,
    }  # fmt: skip
    bert = {
        "pretrained": None, "vocabulary": "semires/weights/vocab.txt", "hidden_size": 16,
        "num_layers": 2, "num_heads": 4, "intermediate_size": 24, "dropout": 0.0,
    }  # fmt: skip
    top = {"fusion_heads": [1, 1, 2, 2], "fusion_dropout": 0.0, **top}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        {"swin": swin, "bert": bert, "": top}[part][key] = value
    return {"swin": Swin(**swin), "bert": Bert(**bert), **top}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Random weights everywhere, tables, norms and running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator) * 0.3
            with torch.no_grad():
                value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)


@pytest.fixture
def settings() -> Any:
    return small_settings


@pytest.fixture
def rela_settings() -> Any:
    return small_rela


@pytest.fixture(name="randomise")
def randomise_fixture() -> Any:
    return randomise


@pytest.fixture
def lavt() -> LAVT:
    torch.manual_seed(0)
    model = LAVT.from_config(small_settings(), 50)
    randomise(model)
    return model.eval()


@pytest.fixture(name="new_rela")
def new_rela_fixture() -> Any:
    return new_rela


@pytest.fixture
def rela() -> ReLA:
    torch.manual_seed(0)
    model = new_rela(small_rela())
    randomise(model)
    return model.eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels (3,3,48,40), ids (3,6) and mask."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 48, 40, generator=generator)
    ids = torch.randint(1, 50, (3, 6), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    return pixels, ids * mask, mask
