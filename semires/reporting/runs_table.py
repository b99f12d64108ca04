"""`runs.csv`, one line per run with its digests, and evaluations: `curves.csv` and `logs/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd

from semires.evaluation.bootstrap import confidence_interval
from semires.reporting.formats import csv_of, csv_text
from semires.reporting.records import METRICS, Records, Run
from semires.runs.key import SUPERVISED, RunKey, fraction_name
from semires.runs.record import flatten

KEY_COLUMNS = ("dataset", "fraction", "method", "seed")
NUMERICS = "numerics."
DIGEST_COLUMNS = ("weights_sha256", "predictions_sha256", "samples_sha256")
CURVE_COLUMNS = ["panel", "method", "step", "val/oIoU"]
WEIGHTS, PREDICTIONS = "model.safetensors", "predictions.parquet"


def runs_csv(records: Records, samples: int = 1000) -> str:
    """One line per run: key, metrics by split (percent), digests, numerics and versions.

    A metric's column is ``SPLIT/METRIC``. ``SPLIT/oIoU_low`` and ``_high`` are its 95 % interval
    over images (``samples`` resamples). A digest is empty if run.json does not state it.
    """
    lines = [_line(run, samples) for run in records.by_stage]
    first = [*KEY_COLUMNS, "best_step"]
    seen = dict.fromkeys(name for line in lines for name in line if "/" in name)
    metrics = sorted(seen, key=lambda name: name.startswith("pseudo/"))  # those of splits first
    rest = sorted({name for line in lines for name in line if name.startswith(NUMERICS)})
    return csv_of([*first, *metrics, *DIGEST_COLUMNS, *rest], lines)


def _line(run: Run, samples: int) -> dict[str, str]:
    key, record = run.key, run.record
    line = {
        "dataset": csv_text(key.dataset),
        "fraction": fraction_name(key.fraction),
        "method": csv_text(key.label),
        "seed": str(key.seed),
        "best_step": str(record.best_step),
        "weights_sha256": record.files.get(WEIGHTS, ""),
        "predictions_sha256": record.files.get(PREDICTIONS, ""),
        "samples_sha256": run.samples_sha256,
    }
    for split, values in run.metrics.items():
        line |= {f"{split}/{name}": f"{value:.4f}" for name, value in values.items()}
        sums = run.sums(split) if METRICS[0] in values else None
        if sums is not None:
            interval = confidence_interval([sums], samples)
            line[f"{split}/{METRICS[0]}_low"] = f"{interval.low:.4f}"
            line[f"{split}/{METRICS[0]}_high"] = f"{interval.high:.4f}"
    flat = flatten(record.numerics)
    return line | {f"{NUMERICS}{name}": csv_text(str(value)) for name, value in flat.items()}


def numerics_differences(
    committed: Iterable[Mapping[str, str]], here: Iterable[Mapping[str, str]]
) -> list[str]:
    """Differences of the columns ``numerics.*``, such as ``torch 2.16 here, 2.15 committed``.

    Args:
        committed: lines of a committed runs.csv.
        here: lines of this machine's; columns that they lack are not compared.
    """
    before, now = list(committed), list(here)
    names = dict.fromkeys(name for line in now for name in line if name.startswith(NUMERICS))
    differences = []
    for name in names:
        ours, theirs = (
            " or ".join(sorted({line.get(name) or "unknown" for line in lines}))
            for lines in (now, before)
        )
        if ours != theirs:
            differences.append(f"{name.removeprefix(NUMERICS)} {ours} here, {theirs} committed")
    return differences


def log_path(key: RunKey) -> str:
    """The address of a run's log, relative to the report."""
    return f"logs/{key.dataset}-{key.name}.csv"


def logs(records: Records) -> Iterator[tuple[RunKey, str]]:
    """Each run's evaluations as CSV, one line per evaluation; measured times are left out."""
    for run in records.all:
        table = run.history
        columns = [name for name in table if not name.startswith("time/")]
        text = table[columns].to_csv(index=False, float_format="%.6g", lineterminator="\n")
        yield run.key, text


def curves_csv(records: Records) -> str:
    """Val oIoU by step, for `dvc plots`: a table of CURVE_COLUMNS, averaged over seeds.

    The template `.dvc/plots/curves.json` draws it: per data set and fraction a panel for burn-in
    and one for mutual learning, whose steps are not the same; one line per method.
    """
    points = [_points(run) for run in records.by_stage if "val/oIoU" in run.history]
    if not points:
        return csv_of(CURVE_COLUMNS, [])
    table = pd.concat(points).groupby(CURVE_COLUMNS[:3], sort=False, as_index=False).mean()
    return str(table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def _points(run: Run) -> pd.DataFrame:
    part = "burn-in" if run.key.method == SUPERVISED else "mutual learning"
    panel = f"{run.key.dataset} {fraction_name(run.key.fraction)} %, {part}"
    points = run.history[["step", "val/oIoU"]].dropna()
    return points.assign(panel=panel, method=run.key.label)[CURVE_COLUMNS]
