"""The label quality of every rule: `semires labels`, from cached counts and without any training.

In: the counts of the burn-in teacher's pseudo-labels on val and on unlabelled references. Out:
``labels/D/F/seedS/labels.csv``, one row per part, group of references and rule, which the report
shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from semires.config.schema import Params
from semires.data.kinds import kind_of
from semires.data.tables import Tables
from semires.evaluation.calibration import expected_calibration_error
from semires.files import atomic_folder, write_text
from semires.refine.strategies import STRATEGIES
from semires.runs import layout
from semires.runs.key import RunKey, fraction_name
from semires.tuning.counts import Bools, Counts, counts_of
from semires.tuning.refined import (
    Labels,
    Outcome,
    make_table,
    references_of,
    summarise,
)

TEACHER = "teacher"  # the row of the labels without refinement
BEST = "best possible"  # the row of the best unions of atoms, by the ground truth
MEASURES = ("oIoU", "mIoU", "matched", "better", "worse", "unmatched")
KEYS = ("dataset", "fraction", "seed", "part", "group", "rule")
COLUMNS = (*KEYS, "references", *MEASURES, "ece")


def write_labels(params: Params, key: RunKey, refs: int | None) -> pd.DataFrame:
    """Measure all rules with the burn-in teacher of ``key`` and write its labels folder.

    With another source than ``proposals.source``, nothing is written.

    Args:
        params: all parameters.
        key: data set, fraction, seed and source of proposals; the method is not used.
        refs: at most this many unlabelled references, drawn by seed; None means all.

    Returns:
        A table with the columns ``COLUMNS``: IoU, shares, and the expected
        calibration error ``ece`` of the teacher on the part, all in percent.

    Raises:
        SemiresError: the burn-in or the proposals are missing; the text names the file.
    """
    parts = {
        "val": counts_of(params, key),
        "unlabelled": counts_of(params, key, "unlabelled", refs),
    }
    expressions = _expressions(key.dataset) if key.dataset in params.study.generated else {}
    origin = {"dataset": key.dataset, "fraction": fraction_name(key.fraction), "seed": key.seed}
    rows = [
        {**origin, "part": part, **row, "ece": expected_calibration_error(counts.reliability)}
        for part, counts in parts.items()
        for row in measure(counts, groups(counts, expressions))
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if key.source is not None:
        return table
    with atomic_folder(layout.labels_folder(key)) as folder:
        text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
        write_text(folder / "labels.csv", text)
    return table


def outcomes(counts: Counts) -> Iterator[tuple[str, Labels, Outcome]]:
    """The labels after every rule with its default thresholds, after the teacher's own."""
    references = references_of(counts)
    table = make_table(counts, "expected-iou-atoms", references)
    yield TEACHER, table.labels, table.labels.untouched()
    for name, strategy in STRATEGIES.items():
        if strategy.uses_proposals:
            rule = make_table(counts, name, references)
            yield name, rule.labels, rule.outcome(strategy.thresholds)
    # With the ground truth in place of the probability, the expected IoU is the IoU.
    truths = [replace(r, probability=r.truth.astype(np.float64)) for r in references]
    yield BEST, table.labels, replace(table, references=truths).outcome({})


def measure(counts: Counts, chosen: dict[str, Bools]) -> Iterator[dict[str, Any]]:
    """One row per rule and group of references.

    Args:
        counts: of R pseudo-labels.
        chosen: the references of each group, bool (R,).
    """
    for rule, labels, outcome in outcomes(counts):
        for group, mask in chosen.items():
            pixels = (outcome.intersection[mask], outcome.union[mask])
            metrics = summarise(Outcome(*pixels, outcome.matched[mask]), labels.take(mask))
            shown = {name: metrics[name] for name in MEASURES}
            yield {"group": group, "rule": rule, "references": int(mask.sum()), **shown}


def groups(counts: Counts, expressions: dict[tuple[int, int], str]) -> dict[str, Bools]:
    """All references, three groups of equal number by object size, and kinds of expression.

    Args:
        counts: of R pseudo-labels.
        expressions: the text by reference and sentence; empty if the kinds are not known.
    """
    area = np.add.reduceat(counts.truth, counts.offsets[:-1])
    third = np.argsort(np.argsort(area, kind="stable"), kind="stable") * 3 // len(area)
    found: dict[str, Bools] = {"all": np.ones(len(area), dtype=bool)}
    found |= {name: third == i for i, name in enumerate(("small", "medium", "large"))}
    if expressions:
        places = zip(counts.ref_ids.tolist(), counts.sentences.tolist(), strict=True)
        kinds = np.array([kind_of(expressions[place]) for place in places])
        found |= {kind: kinds == kind for kind in sorted(set(kinds.tolist()))}
    return {name: mask for name, mask in found.items() if mask.any()}


def _expressions(dataset: str) -> dict[tuple[int, int], str]:
    refs = Tables.load(dataset).refs
    return {
        (int(ref_id), i): text
        for ref_id, texts in zip(refs["ref_id"], refs["sentences"], strict=True)
        for i, text in enumerate(texts)
    }
