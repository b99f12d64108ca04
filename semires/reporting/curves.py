"""`reports/curves.csv`: val oIoU by step of every run, for `dvc plots show` and `dvc plots diff`.

Drawn by the template `.dvc/plots/curves.json`: per data set and fraction a panel for burn-in and
one for mutual learning, whose steps are not the same; one line per method, dashed by revision.
"""

from __future__ import annotations

import csv
import io

from semires.reporting.records import Records, Run
from semires.runs.key import fraction_name

COLUMNS = ("panel", "method", "step", "val/oIoU")


def curves_csv(records: Records) -> str:
    """Long table of COLUMNS; several seeds of a method are averaged by step."""
    points: dict[tuple[str, str, int], list[float]] = {}
    for run in sorted(records.all, key=_place):
        part = "burn-in" if run.key.method == "supervised" else "mutual learning"
        panel = f"{run.key.dataset} {fraction_name(run.key.fraction)} %, {part}"
        history = run.history
        if "val/oIoU" not in history:
            continue
        for step, value in zip(history["step"], history["val/oIoU"], strict=True):
            if value == value:  # not empty
                points.setdefault((panel, run.key.label, int(step)), []).append(float(value))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (panel, method, step), values in points.items():
        writer.writerow([panel, method, step, f"{sum(values) / len(values):.4f}"])
    return buffer.getvalue()


def _place(run: Run) -> tuple[str, float, bool]:
    return run.key.dataset, run.key.fraction, run.key.method != "supervised"
