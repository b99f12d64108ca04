"""The rows of a rehearsal while its stages run: what each stage needs, its result, its forecast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from semires.errors import SemiresError
from semires.rehearsal.forecast import Spread
from semires.rehearsal.measure import Measured, measure
from semires.rehearsal.table import Row

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


def demand(found: Measured) -> Any:
    """The value of a step that is no stage of the study.

    Raises:
        SemiresError: it failed.
    """
    if found.fault:
        raise SemiresError(f"rehearse: {found.fault}")
    return found.value


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
        """Rehearse a stage, unless something that it needs failed; None if it is not wanted.

        Args:
            label: begins with the stage.
            folder: the project.
            work: the function of the stage; it is called in a process of its own.
            arguments: of ``work``.
            needs: labels of rows that it needs besides the stages of `NEEDS`.
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
        return row

    def is_good(self, name: str) -> bool:
        """Whether no row of a stage, or of a label, failed."""
        return not any(row.measured.fault for row in self.rows if name in (row.stage, row.label))

    def fill(self, row: Row | None, **values: Any) -> None:
        """Add the forecast of a row that succeeded."""
        if row is not None and not row.measured.fault:
            place = [each.label for each in self.rows].index(row.label)
            self.rows[place] = replace(self.rows[place], **values)

    def whole(self, row: Row | None, disk_gib: float | None = None) -> None:
        """The forecast of a stage that ran as a whole: what was measured."""
        if row is not None:
            self.fill(row, hours=Spread.of([row.measured.seconds / 3600]), disk_gib=disk_gib)
