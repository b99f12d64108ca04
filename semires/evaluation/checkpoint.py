"""Models from finished runs and from published checkpoints, ready to predict or to be evaluated."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from semires.config.model import FusedSection, ModelSection, parse_model
from semires.config.schema import Data, Params
from semires.data.tables import Tables
from semires.dist import join_group
from semires.errors import SemiresError, WeightsError
from semires.evaluation.evaluate import evaluate, summarise
from semires.files import sha256_file
from semires.models import ReLA, SegmentationModel, build_model, load_official
from semires.models.encoder import new_bert
from semires.models.pretrained import load_bert
from semires.models.text import Tokenizer
from semires.models.weights import load_weights
from semires.process import configure_torch
from semires.runs.record import RunRecord
from semires.samples.dataset import ImageStore, LabelledDataset

WEIGHTS_FILE = "model.safetensors"  # of a run


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, its tokenizer, and the `data` section that it was trained with."""

    model: SegmentationModel
    tokenizer: Tokenizer
    data: Data


def open_checkpoint(path: str | Path, params: Params | None) -> Trained:
    """Open a run folder, its ``model.safetensors``, or a published ``.pth``.

    Published checkpoints are those of LAVT, SemiRES and GRES (ReLA); the tensors' names say which.
    They do not contain image size and vocabulary: both come from ``params``, and so do the text
    encoder if the checkpoint has none, and numbers of heads that would be guessed. A run folder
    needs no parameters.

    Raises:
        WeightsError: the path does not exist, or is none of these.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        if params is None:
            raise WeightsError(
                f"{path}: a published checkpoint needs the parameters of its model: give "
                "--params FILE (experiments/refcoco.yaml of the repository is an example)"
            )
        tokenizer = Tokenizer.from_config(params.model)
        return Trained(_published(path, params.model, tokenizer), tokenizer, params.data)
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    if path != folder and path.name != WEIGHTS_FILE:
        raise WeightsError(
            f"{path}: no checkpoint: give a run folder, its {WEIGHTS_FILE}, or a published .pth"
        )
    if not (folder / "run.json").is_file():
        raise WeightsError(
            f"{path}: no run folder (it has no run.json) and no published .pth checkpoint"
        )
    return _of_run(folder)


def _of_run(folder: Path) -> Trained:
    """The model of a finished run.

    Raises:
        WeightsError: the run's record or weights are missing, damaged, or do not belong together.
    """
    record, weights = folder / "run.json", folder / WEIGHTS_FILE
    try:
        run = RunRecord.read(folder)
        settings = parse_model(run.params["model"])
        data = Data.model_validate(run.params["data"])
    except (LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{record}: no record of a training ({reason})") from error
    tokenizer = Tokenizer.from_config(settings)
    model = build_model(settings, tokenizer, pretrained=False)
    load_weights(model, weights)
    if run.files.get(weights.name, "") not in ("", sha256_file(weights)):
        raise WeightsError(f"{weights}: not the weights of this run: run.json has another SHA-256")
    return Trained(model.eval(), tokenizer, data)


def _published(path: Path, section: ModelSection, tokenizer: Tokenizer) -> SegmentationModel:
    """A published checkpoint's model, for the tokens of ``tokenizer``.

    Raises:
        WeightsError: the file is of no model of this project, or its text encoder is of another
            vocabulary or size.
    """
    if not isinstance(section, FusedSection):
        raise WeightsError(
            f"{path}: a published checkpoint uses the `bert` section of a LAVT or ReLA, and "
            f"model.name is {section.name}"
        )
    bert, model = section.bert, load_official(path, like=section)
    if model.bert is None:
        wanted = cast(Any, model.fusions[0]).attention.key.in_features
        if bert.pretrained is None or bert.hidden_size != wanted:
            raise WeightsError(
                f"{path}: holds no text encoder: model.bert must name a pretrained one of "
                f"{wanted} channels"
            )
        model.bert = new_bert(bert, tokenizer.vocab_size)
        load_bert(model.bert, bert.pretrained)
    rows = model.bert.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise WeightsError(
            f"{path}: has {rows} token embeddings, and the vocabulary has {tokenizer.vocab_size} "
            "tokens: set model.bert.vocabulary to the one it was trained with"
        )
    if isinstance(model, ReLA) and (weight := model.regions.language_weight.item()):
        print(
            f"{path}: lang_weight is {weight:.3g}; GRES's own evaluation code does not load it and "
            "computes with 0",
            file=sys.stderr,
        )
    return model.eval()


def evaluate_checkpoint(
    params: Params, checkpoint: str | Path, dataset: str, split: str
) -> tuple[dict[str, float], pd.DataFrame]:
    """Metrics (percent) and predictions of a checkpoint on one split of a prepared data set.

    Under torchrun the expressions are divided among the processes.

    Raises:
        SemiresError: the data set has no such split.
    """
    configure_torch(params.runtime.threads, params.runtime.deterministic)
    trained = open_checkpoint(checkpoint, params)
    tables = Tables.load(dataset)
    refs = tables.part(split)
    if refs.empty:
        known = ", ".join(sorted(set(tables.refs["split"])))
        raise SemiresError(f"{dataset}: no references in split {split!r}; it has {known}")
    place = params.datasets[dataset]
    images = ImageStore(tables, place.images, trained.data.image_size)
    samples = LabelledDataset(
        refs, tables, images, trained.tokenizer, trained.data.max_tokens, text="raw",
        sentences=params.evaluation.sentences,
    )  # fmt: skip
    group = join_group()
    model = trained.model.to(group.device)
    runtime = params.runtime
    table = evaluate(
        group, model, samples, params.evaluation.batch_size, runtime.workers, runtime.precision
    )
    return summarise(table), table.assign(split=split)
