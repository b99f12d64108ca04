"""The claim of docs/extending.md: a second model is one class, one section and two entries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers.small_study import made_study
from torch import nn
from torch.nn import functional as F

from semires.config import model as sections
from semires.config.schema import Optimizer, Params
from semires.config.types import Width
from semires.config.validate import validate
from semires.errors import ConfigError
from semires.evaluation.checkpoint import open_checkpoint
from semires.evaluation.predict import segment
from semires.models import MODELS, Outputs, SegmentationModel
from semires.models.text import Tokenizer
from semires.runs.key import RunKey
from semires.samples.augment import normalise
from semires.training.burn_in import burn_in
from semires.training.mutual import mutual

VOCABULARY = "semires/weights/vocab.txt"


class Film(sections.ModelSection):
    """Parameters of the second model."""

    name: Literal["film"]
    vocabulary: str
    width: Width
    area_weight: float

    def vocabulary_source(self) -> tuple[str, str]:
        return "model.vocabulary", self.vocabulary

    def files(self) -> dict[str, str]:
        return {"model.vocabulary": self.vocabulary}

    def check(self, image_size: int) -> None:
        if image_size % 4:
            raise ValueError(f"data.image_size: {image_size} is no multiple of 4")


class FilmNet(SegmentationModel):
    """Convolutions whose channels the mean word embedding scales; also predicts the mask's area."""

    def __init__(self, settings: Film, vocab_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.words = nn.Embedding(vocab_size, settings.width)
        self.image = nn.Conv2d(3, settings.width, 4, stride=4)
        self.mask = nn.Conv2d(settings.width, 2, 1)
        self.area = nn.Linear(settings.width, 1)
        self.labels_seen: list[torch.Tensor] = []

    def fused(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = (self.words(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.relu(self.image(pixels)) * words[:, :, None, None]

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        return self.training_outputs(pixel_values, input_ids, attention_mask).logits

    def training_outputs(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> Outputs:
        fused = self.fused(pixel_values, input_ids, attention_mask)
        logits = F.interpolate(self.mask(fused), pixel_values.shape[-2:], mode="bilinear")
        return Outputs(logits, {"area": self.area(fused.mean((2, 3)))[:, 0]})

    def extra_losses(self, outputs: Outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.labels_seen.append(labels)
        error = (outputs.extra["area"] - labels.float().mean((1, 2))).square().sum()
        return {"area": self.settings.area_weight * error}

    def parameter_options(self, name: str, settings: Optimizer) -> tuple[float, float]:
        return (0.0, 0.5) if name.startswith("words.") else (settings.weight_decay, 1.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Params]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIRES_TRACKING", "off")
        patch.setitem(sections.MODEL_SECTIONS, "film", Film)
        patch.setitem(MODELS, "film", lambda s, t, _: FilmNet(s, t.vocab_size))
        with made_study(tmp_path_factory.mktemp("study")) as params:
            yield film_params(params)


def film_params(params: Params, **changes: object) -> Params:
    tree = params.model_dump()
    tree["model"] = {"name": "film", "vocabulary": VOCABULARY, "width": 8, "area_weight": 0.1}
    tree["model"] |= changes
    tree["burn_in"]["steps"] = tree["mutual"]["steps"] = 2
    return validate(tree)


def test_it_is_trained_evaluated_and_used_for_prediction(study: Params):
    seen: dict[str, list[torch.Tensor]] = {}
    for method, train in (("supervised", burn_in), ("baseline", mutual)):
        built: list[FilmNet] = []

        def build(section: Film, tokenizer: Tokenizer, _: bool, built: list = built) -> FilmNet:  # type: ignore[type-arg]
            built.append(FilmNet(section, tokenizer.vocab_size))
            return built[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "film", build)
            train(study, RunKey("refscenes", 25, method, 0))
        seen[method] = built[0].labels_seen
    # Burn-in: one labelled batch a step; mutual learning: the labelled and the pseudo-labelled.
    assert [len(labels) for labels in seen["supervised"]] == [4, 4]
    assert [len(labels) for labels in seen["baseline"]] == [3, 3, 3, 3]
    folder = Path("runs/refscenes/25/baseline/seed0")
    trained = open_checkpoint(folder, study)
    assert isinstance(trained.model, FilmNet)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert segment(trained, image, "red star").mask.shape == (40, 60)
    pixels, (ids, mask) = normalise(image)[None], trained.tokenizer.encode(["a", "b"], 6)
    shared = trained.model.forward_shared(pixels, torch.tensor([0, 0]), ids, mask)
    torch.testing.assert_close(shared, trained.model(pixels.expand(2, -1, -1, -1), ids, mask))


def test_extra_losses_reach_the_gradient(study: Params):
    weights = []
    for weight in (0.1, 0.0):
        params = film_params(study, area_weight=weight)
        burn_in(params, RunKey("refscenes", 25, "supervised", 1))
        trained = open_checkpoint("runs/refscenes/25/supervised/seed1", params)
        weights.append(trained.model.state_dict()["area.weight"])
    assert not torch.equal(*weights)


def test_its_groups_and_what_it_does_not_implement(study: Params):
    model = FilmNet(study.model, 20)  # type: ignore[arg-type]
    groups = model.parameter_groups(study.optimizer)
    decay = study.optimizer.weight_decay
    assert [(g["weight_decay"], g["lr_scale"]) for g in groups] == [(0.0, 0.5), (decay, 1.0)]
    model.set_grad_checkpointing(False)
    with pytest.raises(ConfigError, match=r"runtime\.grad_checkpointing: FilmNet does not"):
        model.set_grad_checkpointing(True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widht": 3}, "model.widht: unknown key; did you mean 'width'?"),
        ({"width": 0}, "model.width: "),
        ({"name": "flim"}, "model.name: no model is named 'flim'; did you mean 'film'?"),
    ],
)
def test_wrong_parameters_are_named(study: Params, change: dict[str, object], says: str):
    with pytest.raises(ConfigError) as caught:
        film_params(study, **change)
    assert says in str(caught.value)


def test_its_own_check_is_called(study: Params):
    tree = study.model_dump()
    tree["data"]["image_size"] = 66
    with pytest.raises(ConfigError, match=r"data\.image_size: 66 is no multiple of 4"):
        validate(tree)
