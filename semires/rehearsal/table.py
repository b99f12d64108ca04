"""The rows of a rehearsal: what each stage needs, its result and forecast, and the final table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semires.config.schema import Params
from semires.rehearsal.forecast import Spread
from semires.rehearsal.measure import Measured, measure

HEAD = (
    "stage", "result", "s per sample", "predicted", "host GiB", "GPU GiB", "hours of the study",
    "disk GiB",
)  # fmt: skip
BUSY = 0.5  # a load of other processes per core above which times are not reliable
FULL = 0.9  # a share of the memory above which a stage may not fit

# The stages, in order, with those that they need.
NEEDS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "prepare": ("generate",),
    "split": ("prepare",),
    "sam": (),
    "propose": ("split", "sam"),
    "burn_in": ("split",),
    "labels": ("burn_in",),
    "mutual": ("burn_in",),
    "evaluation": ("burn_in",),
    "tune": ("burn_in",),
    "report": ("burn_in",),
}


def with_needs(names: Iterable[str]) -> set[str]:
    """The stages and all stages that they need."""
    wanted = set(names)
    for stage in reversed(NEEDS):
        if stage in wanted:
            wanted.update(NEEDS[stage])
    return wanted


@dataclass
class Row:
    """One stage of the rehearsal and its forecast.

    Args:
        stage: a key of `NEEDS`.
        label: the stage with its source or method, for the table.
        measured: the result.
        per_sample: seconds of an image (`propose`), sample (training) or expression (evaluation).
        tflop: counted operations of the same, see :mod:`.operations`.
        hours: of the stage in the whole study.
        disk_gib: of the stage's output in the whole study.
        processes: how many such processes run at once on this machine.
    """

    stage: str
    label: str
    measured: Measured
    per_sample: Spread | None = None
    tflop: float | None = None
    hours: Spread | None = None
    disk_gib: float | None = None
    processes: int = 1

    def forecast(self, seconds: Iterable[float], items: float) -> None:
        """Set the hours of ``items`` from the seconds of some of them."""
        self.per_sample = Spread.of(seconds)
        self.hours = self.per_sample and self.per_sample.times(items / 3600)

    def forecast_whole(self, disk_gib: float | None = None) -> None:
        """The forecast of a stage that ran as a whole: what was measured."""
        self.hours, self.disk_gib = Spread.of([self.measured.seconds / 3600]), disk_gib


class Ledger:
    """The rows of the stages that ran.

    Args:
        wanted: the stages to rehearse.
    """

    def __init__(self, wanted: set[str]) -> None:
        self.wanted, self.rows = wanted, list[Row]()

    def run(
        self, label: str, folder: Path, work: Callable[..., Any], *arguments: Any,
        needs: tuple[str, ...] = (),
    ) -> Row | None:  # fmt: skip
        """Rehearse a stage, unless something that it needs failed.

        Args:
            label: begins with the stage.
            folder: the project.
            work: the function of the stage; it is called in a process of its own.
            arguments: of ``work``.
            needs: labels of rows that it needs besides the stages of `NEEDS`.

        Returns:
            The row, or None if the stage is not wanted or failed.
        """
        stage = label.split()[0]
        if stage not in self.wanted:
            return None
        unmet = [need for need in (*NEEDS[stage], *needs) if not self.is_good(need)]
        lacking = Measured(fault=f"needs {', '.join(unmet)}")
        found = lacking if unmet else measure(folder, work, *arguments)
        print(f"rehearse: {label}: {found.fault or f'ok, {found.seconds:.1f} s'}", flush=True)
        row = Row(stage, label, found)
        self.rows.append(row)
        return None if found.fault else row

    def is_good(self, name: str) -> bool:
        """Whether no row of a stage, or of a label, failed."""
        return not any(row.measured.fault for row in self.rows if name in (row.stage, row.label))


def render(rows: list[Row]) -> str:
    """The rows and their sum as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD)]
    rate = _rate(rows)
    for row in rows:
        found = row.measured
        cells = (
            row.label, found.fault.replace("|", "/") or "ok", _spread(row.per_sample),
            _number(row.tflop and rate and row.tflop / rate), _number(found.host_gib or None),
            _number(found.gpu_gib), _spread(row.hours), _number(row.disk_gib),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    hours = [row.hours for row in rows if row.hours is not None]
    if hours:
        total = hours[0]
        for each in hours[1:]:
            total = total.plus(each)
        disk = sum(row.disk_gib or 0 for row in rows)
        lines.append(f"| the study | | | | | | {_spread(total)} | {_number(disk)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    middle, low, high = map(_number, (spread.middle, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _rate(rows: list[Row]) -> float | None:
    """TFLOP/s of the first burn-in; None if none was measured."""
    for row in rows:
        if row.stage == "burn_in" and row.per_sample and row.tflop:
            return row.tflop / row.per_sample.middle
    return None


def conditions(machine: dict[str, Any], rows: list[Row]) -> list[str]:
    """What the times hold for: the machine, the rate of its burn-in, and whether it was busy."""
    gpu = f"{machine['gpu']} ({machine['gpu_gib']:.0f} GiB)" if machine["gpu"] else "no GPU"
    lines = [
        f"Hours of one process on this machine: {gpu}, {machine['threads']} threads, "
        f"{machine['host_gib']:.0f} GiB. Median, and lowest to highest measurement.",
    ]
    if rate := _rate(rows):
        lines.append(
            f"Predicted: counted operations (matrix products and convolutions) at {_number(rate)} "
            "TFLOP/s, the rate of the first burn-in."
        )
    cores = os.cpu_count() or 1
    if machine["load"] > BUSY * cores:
        lines.append(
            f"This machine was busy (load {machine['load']:.1f} on {cores} cores): the times are "
            "too long. Rehearse again when it is idle."
        )
    return lines


def misfits(
    params: Params, rows: list[Row], machine: dict[str, Any], scratch_gib: float, free_gib: float
) -> list[str]:
    """A line for each stage that would not fit, with the parameter that helps.

    Args:
        params: all parameters.
        rows: the stages.
        machine: as returned by :func:`semires.rehearsal.measure.machine`.
        scratch_gib: disk for the state of one unfinished training.
        free_gib: free disk of the project.
    """
    lines = []
    for row in rows:
        found = row.measured
        host = found.host_gib * row.processes
        if found.lacks == "gpu" or (found.gpu_gib or 0) > FULL * (machine["gpu_gib"] or 0):
            need = "more" if found.lacks else f"{_number(found.gpu_gib)} GiB"
            have, short = f"{_number(machine['gpu_gib'])} GiB on the GPU", "gpu"
        elif found.lacks == "host" or host > FULL * machine["host_gib"]:
            need = "more" if found.lacks else f"{_number(host)} GiB"
            have, short = f"{_number(machine['host_gib'])} GiB of memory", "host"
        else:
            continue
        lines.append(f"{row.label} needs {need} of {have}: {_remedy(params, row, short)}")
    disk = sum(row.disk_gib or 0 for row in rows) + scratch_gib
    if disk > free_gib:
        lines.append(
            f"the study needs {_number(disk)} GiB of disk, and {_number(free_gib)} GiB are free: "
            "use another disk (dvc config cache.dir), or fewer runs in `study.runs`"
        )
    return lines


def _remedy(params: Params, row: Row, short: str) -> str:
    """The parameter that lowers the memory of a stage; ``short`` is ``gpu`` or ``host``."""
    if row.stage == "propose":
        name = row.label.removeprefix("propose ")
        if short == "gpu" and hasattr(params.proposals.sources[name], "points_per_batch"):
            return f"lower proposals.sources.{name}.points_per_batch"
        return "set runtime.processes: 1" if row.processes > 1 else "use a smaller sam.model"
    if row.stage in ("burn_in", "mutual"):
        if not params.runtime.grad_checkpointing:
            return "set runtime.grad_checkpointing: true"
        sizes = {"burn_in": "burn_in.batch_size"}
        batch = sizes.get(row.stage, "mutual.labelled_batch and mutual.unlabelled_batch")
        if short == "gpu":
            return f"lower {batch}, and raise runtime.accumulate by as much"
        return f"lower runtime.workers or {batch}"
    if row.stage in ("evaluation", "labels", "tune"):
        return "lower evaluation.batch_size"
    return "use a machine with more memory"
