"""`semires summary --times`: hours by table, each run once in the total."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.fake_runs import PROVENANCE

from semires.config.grid import expand
from semires.config.schema import Params
from semires.reporting.times import times
from semires.runs.key import RunKey


def table_of(text: str) -> dict[str, list[float]]:
    """The numbers of each line, by the table's name."""
    lines = [line.strip("| ").split("|") for line in text.splitlines()[2:] if "|" in line]
    return {
        cells[0].split(":")[0].strip(): [float(c) for c in cells[1:] if c.strip()]
        for cells in lines
    }


def test_hours_of_a_table_are_those_of_its_runs(own_workspace: Path, small_params: Params):
    """Runs at 1 and 10 %, two seeds each; a burn-in takes 1 h, every other run 2 h."""
    for key in expand(small_params):
        hours = 1 if key.method == "supervised" else 2
        if key.folder.is_dir():
            replace(PROVENANCE, duration_s=3600.0 * hours).write(key.folder)
    found = table_of(times(small_params))
    # main: 2 fractions x 2 seeds x (burn-in, baseline, cpi-u)
    assert found["main"] == [12, 20, 0]
    assert found["table1"] == found["main"]
    # table2: 1 %, 2 seeds x (burn-in, baseline, cpi-u); IOM has one seed, and is not made
    assert found["table2"] == [7, 10, 1]
    assert found["listening"] == [4, 6, 0]
    assert "beyond" not in found, "the study makes no run of its own for it"
    assert found["no table"] == [1, 0, 1]  # control at 1 %, not made
    every = len(expand(small_params))
    assert found["all, each once"] == [every, 20, 2]


def test_a_run_without_provenance_has_no_time(own_workspace: Path, small_params: Params):
    key = RunKey("refscenes", 1, "iom", 0)
    replace(PROVENANCE, duration_s=5400.0).write(key.folder)
    (RunKey("refscenes", 1, "cpi-u", 0).folder / "provenance.json").unlink()
    found = table_of(times(small_params))
    assert found["table2"][1] == pytest.approx(5 * 60.25 / 3600 + 1.5, abs=0.005)
    assert found["table2"][-1] == 1, "no time: the run came from DVC's cache"
