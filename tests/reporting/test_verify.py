"""`semires verify`: equal, within, outside; against the commit, not the working tree."""

import shutil
import subprocess

import pytest
from helpers import fake_runs

from semires.errors import CorruptCacheError, SemiresError
from semires.reporting.records import load_records
from semires.reporting.report import build_tables, write_tables
from semires.reporting.verify import compare, verify
from semires.runs.key import RunKey

HEAD = "table,dataset,fraction,row,split,value,ci_low,ci_high,sd,seeds\n"


def line(value, low="40.00", high="50.00", sd="", seeds=1):
    return f"main,d,1,a,val,{value},{low},{high},{sd},{seeds}\n"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (line("45.00"), line("45.00"), "equal"),
        (line("45.00"), line("45.01"), "within"),
        (line("45.00"), line("50.00"), "within"),
        (line("45.00"), line("50.01"), "outside"),
        (line("45.00"), line("39.99"), "outside"),
        (line("45.00"), line("", "", ""), "not run here"),
        (line("", "", ""), line("45.00"), "not committed"),
        (line("45.00"), "", "not run here"),
        # 2 seeds against 3 with sd 1: Student's t 4.303 x sqrt(1/2 + 1/3), beside 5 over images
        (line("45.00", sd="1.00", seeds=3), line("51.35", seeds=2), "within"),
        (line("45.00", sd="1.00", seeds=3), line("51.36", seeds=2), "outside"),
        (line("45.00", sd="1.00", seeds=3), line("51.36"), "within"),
    ],
)
def test_verdicts(old, new, verdict):
    (cell,) = compare(HEAD + old, HEAD + new, "main.csv")
    assert cell.verdict == verdict


def test_cells_that_neither_side_has_are_no_cells():
    assert compare(HEAD + line("", "", ""), HEAD + line("", "", ""), "main.csv") == []


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", HEAD + line("x"), HEAD + line("1", "", "")])
def test_a_damaged_table_is_named(text):
    with pytest.raises(CorruptCacheError, match=r"main\.csv"):
        compare(text, HEAD + line("45.00"), "main.csv")


GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]


@pytest.fixture
def committed(own_workspace, small_params):
    tables = build_tables(small_params, load_records(default_source="sam"))
    write_tables(tables, own_workspace / "reports")
    subprocess.run([*GIT, "init", "-q"], check=True)
    subprocess.run([*GIT, "add", "reports"], check=True)
    subprocess.run([*GIT, "commit", "-qm", "reports"], check=True)
    return own_workspace


def test_unchanged_outputs_are_equal(committed, small_params, capsys):
    assert verify(small_params) == 0
    printed = capsys.readouterr().out
    assert "equal" in printed
    assert "outside" not in printed
    assert "within" not in printed


def test_a_worse_run_is_outside_and_the_working_tree_does_not_hide_it(
    committed, small_params, capsys
):
    for seed in (0, 1):
        cell = RunKey("refscenes", 10, "cpi-u", seed)
        shutil.rmtree(cell.folder)
        fake_runs.write_run(cell, gain=-25)
    tables = build_tables(small_params, load_records(default_source="sam"))
    write_tables(tables, committed / "reports")  # as `dvc repro` does before anyone verifies
    assert verify(small_params) == 1
    assert "outside  main, refscenes, 10, SemiRES (CPI-U), val" in capsys.readouterr().out


def test_a_run_that_is_not_there_does_not_fail(committed, small_params, capsys):
    shutil.rmtree("runs/refscenes/10")
    assert verify(small_params) == 0
    assert "not run here" in capsys.readouterr().out


def test_a_table_that_is_not_committed_is_counted(committed, small_params, capsys):
    subprocess.run(["git", "rm", "-q", "reports/main.csv"], check=True)
    subprocess.run([*GIT, "commit", "-qm", "less"], check=True)
    assert verify(small_params) == 0
    assert "not committed" in capsys.readouterr().out


def test_nothing_to_verify_is_said(committed, small_params):
    shutil.rmtree("runs")
    with pytest.raises(SemiresError, match="no run to verify"):
        verify(small_params)


def test_no_committed_tables_is_said(own_workspace, small_params):
    with pytest.raises(SemiresError, match="no committed tables"):
        verify(small_params)
