"""The sections of params.yaml as typed, validated, frozen models.

``load_params`` reads YAML 1.2 as DVC does. Before any work starts, it rejects unknown keys and
invalid values. The message gives the key's path and, for an unknown key, the nearest valid name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from semires.config.method import Method, Overrides
from semires.config.model import Model
from semires.config.sources import ProposalSource
from semires.config.types import (
    Name,
    NonNegative,
    Percent,
    Positive,
    PositiveFloat,
    Radius,
    Section,
    Seed,
    Small,
    Unit,
)
from semires.runs.key import SUPERVISED


class Block(Section):
    """A product of lists: data sets x labelled fractions (percent) x methods x seeds x sources.

    ``methods`` are keys of ``refine``. Every combination of data set, fraction and seed includes
    its burn-in, the method ``supervised``, even if it is not listed. ``sources`` are keys of
    ``proposals.sources``; null means ``proposals.source``. ``model`` is a key of ``models``; null
    means the section ``model``.
    """

    datasets: list[Name] = Field(min_length=1)
    fractions: list[Percent] = Field(min_length=1)
    methods: list[Name]
    seeds: list[Seed] = Field(min_length=1)
    sources: Annotated[list[Name], Field(min_length=1)] | None = None
    model: Name | None = None


class Study(Section):
    """The runs of the study: the union of the blocks of ``runs`` (:mod:`semires.config.grid`).

    The first block of ``runs`` fills the main table. ``tune`` lists blocks of threshold searches.
    ``generated`` lists the data sets that the stage `generate` makes. ``reports`` is the folder of
    the tables and figures.
    """

    reports: Annotated[str, Field(pattern=r"^reports(/[\w-]+)?$")] = "reports"
    generated: list[Name]
    runs: list[Block] = Field(min_length=1)
    tune: list[Block]

    @property
    def datasets(self) -> list[str]:
        """All data sets, in order."""
        return list(dict.fromkeys(name for block in self.runs for name in block.datasets))

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return list(dict.fromkeys(seed for block in self.runs for seed in block.seeds))

    @property
    def fractions(self) -> list[float]:
        """The labelled fractions of the main table, percent."""
        return self.runs[0].fractions

    @property
    def methods(self) -> list[str]:
        """The methods of the main table, without ``supervised``."""
        return [name for name in self.runs[0].methods if name != SUPERVISED]


class Dataset(Section):
    """One data set in RefCOCO's on-disk format.

    ``root/dataset/refs(split_by).p`` and ``root/dataset/instances.json`` contain the annotations.
    ``images`` is the folder of the image files. ``images_of`` names a data set with the same folder
    that has all images of this one: its proposals serve both, and a generated data set describes
    its scenes. ``labelled_lists`` maps a fraction to a file of image ids (or a published SemiRES
    JSON) that replaces the random draw.
    """

    root: str
    dataset: str
    split_by: str
    images: str
    images_of: Name | None = Field(default=None, exclude_if=lambda value: value is None)
    splits: list[str] = Field(min_length=2)
    labelled_lists: dict[str, str] = Field(default={})

    @property
    def annotations(self) -> str:
        """The folder of the annotations."""
        return f"{self.root}/{self.dataset}"


class Scenes(Section):
    """RefScenes, the embedded data set: number of scenes per split, seed, image size in pixels."""

    train: Positive
    val: Positive
    testA: Positive
    testB: Positive
    seed: Seed
    size_px: Annotated[int, Field(ge=48, le=512)]


class Split(Section):
    """The random draw of labelled images."""

    seed: Seed


class Sam(Section):
    """The SAM checkpoint: ``tiny`` is part of the project; the others are the published files."""

    model: Literal["tiny", "vit_b", "vit_l", "vit_h"]
    checkpoint: str
    sha256: str | None


class Proposals(Section):
    """The proposal sources; ``source`` is the key of ``sources`` that runs use by default."""

    source: Name
    sources: dict[Name, ProposalSource]
    shard_images: Positive


class OtherModel(Section):
    """A further network, for the blocks of the study that name it.

    ``model`` is a section like the top-level one. ``overrides`` maps dotted keys of ``optimizer``,
    ``burn_in`` or ``mutual`` to the values that its trainings use instead.
    """

    model: Model
    overrides: Overrides = Field(default={})


class Data(Section):
    """The samples: side of the square image (pixels), maximum tokens, expressions per epoch."""

    image_size: Annotated[int, Field(ge=16, le=4096)]
    max_tokens: Annotated[int, Field(ge=3, le=512)]
    sentences: Literal["all", "one"]


class Augment(Section):
    """Weak view: Gaussian blur. Strong view: blur and colour jitter (factors 1 +- value)."""

    blur_radius: Radius
    blur_p: Unit
    jitter_p: Unit
    brightness: Unit
    contrast: Unit
    saturation: Unit
    hue: Annotated[float, Field(ge=0, le=0.5)]
    double_normalise: bool


class Pwa(Section):
    """Pixel-Wise Adaptive weight, paper Eq. 9: offset - Normal(p; mean, variance)."""

    mean: Unit
    variance: PositiveFloat
    offset: float


class Loss(Section):
    """The class weights of cross-entropy (background, object), and PWA."""

    class_weights: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
    pwa: Pwa


class Optimizer(Section):
    """AdamW with polynomial decay."""

    weight_decay: NonNegative
    poly_power: NonNegative
    clip_grad_norm: PositiveFloat | None
    bert_layers_trained: Annotated[int, Field(ge=0)]
    swin_lr_scale: NonNegative


class _Schedule(Section):
    """The length of a training: ``epochs`` or ``steps``; if both are set, the shorter wins.

    ``evaluations`` is the number of evaluations on val during the training.
    """

    lr: PositiveFloat
    epochs: Positive | None
    steps: Positive | None
    evaluations: Positive
    supervised_loss_scale: PositiveFloat

    @model_validator(mode="after")
    def _some_length(self) -> _Schedule:
        if self.epochs is None and self.steps is None:
            raise ValueError("give `epochs` or `steps` or both; if both are set, the shorter wins")
        return self


class BurnIn(_Schedule):
    """Supervised training on the labelled images (``batch_size`` is per process).

    ``steps_by_fraction`` maps a labelled fraction (a string, as in folder names) to the value that
    replaces ``steps`` there (:func:`semires.config.resolve.resolve`). ``held_out`` is the share of
    labelled images that burn-in does not train on: it fits the temperature of its probabilities on
    them. Both are off by default.
    """

    batch_size: Positive
    steps_by_fraction: dict[str, Positive] = Field(
        default_factory=dict, exclude_if=lambda value: not value
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, exclude_if=lambda value: value == 0
    )


class Mutual(_Schedule):
    """Teacher-student training on labelled and unlabelled images (batches are per process)."""

    labelled_batch: Positive
    unlabelled_batch: Positive
    patience: Positive | None
    lambda_unsup: NonNegative
    ema: Unit


class Evaluation(Section):
    """Evaluation: batch size, expressions per reference, bootstrap samples."""

    batch_size: Positive
    sentences: Literal["all", "one"]
    bootstrap_samples: Positive
    correction_refs: Positive | None


class Tune(Section):
    """The threshold search.

    ``on`` is the images whose ground truth it uses: half of val, or the labelled images in
    ``folds`` (:mod:`semires.tuning.labelled`). ``parameters`` limits the search to some of the
    parameters that it can search.
    """

    objective: Literal["labels", "labels-and-share", "training"]
    on: Literal["val", "labelled"] = "val"
    folds: Annotated[int, Field(ge=2, le=1024)] = 3
    parameters: Annotated[list[str], Field(min_length=1)] | None = None
    sampler: Literal["tpe", "cmaes", "grid", "random", "qmc"]
    trials: Positive
    seed: Seed
    storage: str | None
    pruner: Literal["none", "median", "hyperband"]
    steps: Positive

    @model_validator(mode="after")
    def _possible(self) -> Tune:
        if self.objective == "labels-and-share" and self.sampler == "cmaes":
            raise ValueError("`sampler: cmaes` has one objective; choose tpe")
        if self.objective == "training" and self.on == "labelled":
            raise ValueError(
                "`on: labelled` needs `objective: labels`; trainings are valued on val"
            )
        return self


class Runtime(Section):
    """Execution settings: speed, precision, processes. No DVC stage depends on them."""

    numerics: Literal["native", "avx2", "plain"]
    threads: Small | None
    workers: Annotated[int, Field(ge=0, le=1024)]
    processes: Small | None
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    grad_checkpointing: bool
    accumulate: Small
    deterministic: bool
    checkpoint_every_s: NonNegative


class Params(Section):
    """All of params.yaml."""

    study: Study
    datasets: dict[Name, Dataset]
    scenes: Scenes
    split: Split
    sam: Sam
    proposals: Proposals
    model: Model
    models: dict[Name, OtherModel] = Field(default={})
    data: Data
    augment: Augment
    loss: Loss
    optimizer: Optimizer
    burn_in: BurnIn
    mutual: Mutual
    refine: dict[Name, Method]
    evaluation: Evaluation
    tune: Tune
    runtime: Runtime

    @property
    def prepared(self) -> list[str]:
        """The data sets that the study reads: its own, and those whose proposals they use."""
        names = self.study.datasets
        return list(dict.fromkeys([*names, *map(self.owner, names)]))

    def owner(self, dataset: str) -> str:
        """The data set whose proposals ``dataset`` uses: the one of ``images_of``, or itself."""
        return self.datasets[dataset].images_of or dataset
