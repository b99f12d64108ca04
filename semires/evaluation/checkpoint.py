"""Models from finished runs and from published checkpoints, ready to predict or to be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
from torch import nn

from semires.config.schema import Bert, Data, Model, Params
from semires.data.tables import Tables
from semires.dist import join_group
from semires.errors import SemiresError, WeightsError
from semires.evaluation.evaluate import evaluate_shared, summarise
from semires.models import LAVT, build_model, load_official_lavt
from semires.models.lavt import new_bert
from semires.models.pretrained import load_bert, load_weights
from semires.models.text import Tokenizer
from semires.process import configure_torch
from semires.runs.record import RunRecord
from semires.samples.dataset import ImageStore, LabelledDataset


@dataclass(frozen=True)
class Trained:
    """A model in eval mode, its tokenizer, and what a sample is for it."""

    model: nn.Module
    tokenizer: Tokenizer
    data: Data


def open_checkpoint(path: str | Path, params: Params) -> Trained:
    """Open a run folder, its ``model.safetensors``, or a published LAVT / SemiRES ``.pth``.

    A published checkpoint says nothing of image size and vocabulary: those are ``params``', and so
    is the text encoder where it holds none.

    Raises:
        WeightsError: nothing there, or neither of these.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.suffix in (".pth", ".pt"):
        tokenizer = Tokenizer.from_config(params.model.bert)
        return Trained(_published(path, params.model.bert, tokenizer), tokenizer, params.data)
    record = folder / "run.json"
    if not record.is_file():
        raise WeightsError(
            f"{path}: no run folder (it has no run.json) and no published .pth checkpoint"
        )
    try:
        sections: dict[str, Any] = RunRecord.read(folder).params
        settings = Model.model_validate(sections["model"])
        data = Data.model_validate(sections["data"])
    except (LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{record}: no record of a training ({reason})") from error
    tokenizer = Tokenizer.from_config(settings.bert)
    model = build_model(settings, tokenizer, pretrained=False)
    load_weights(model, folder / "model.safetensors")
    return Trained(model.eval(), tokenizer, data)


def _published(path: Path, bert: Bert, tokenizer: Tokenizer) -> LAVT:
    """A published checkpoint's model, fit for the tokens of ``tokenizer``.

    Raises:
        WeightsError: no LAVT, or its text encoder is of another vocabulary or size.
    """
    model = load_official_lavt(path)
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
            f"{path}: knows {rows} tokens, and the vocabulary has {tokenizer.vocab_size}: set "
            "model.bert.vocabulary to the one it was trained with"
        )
    return model.eval()


def evaluate_checkpoint(
    params: Params, checkpoint: str | Path, dataset: str, split: str
) -> tuple[dict[str, float], pd.DataFrame]:
    """Metrics (percent) and predictions of a checkpoint on one split of a prepared data set.

    Under torchrun the processes share out the expressions.

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
    table = evaluate_shared(
        group, model, samples, params.evaluation.batch_size, runtime.workers, runtime.precision
    )
    return summarise(table), table.assign(split=split)
