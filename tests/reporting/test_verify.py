"""`semires verify`: runs, tables and claims against a commit, not against the working tree."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import fake_runs

from semires.errors import CorruptCacheError, SemiresError
from semires.reporting.report import build, write_data
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


RUN = "dataset,fraction,method,seed,val/oIoU,val/mIoU,val/oIoU_low,val/oIoU_high,"
RUN += "weights_sha256,predictions_sha256,samples_sha256,numerics.torch\n"


def run(oiou, miou="50.0", seed=0, digests="w,p,s", torch="2.15"):
    return f"d,1,m,{seed},{oiou},{miou},40.0,50.0,{digests},{torch}\n"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (run("45.0"), run("45.0", torch="2.16"), "identical"),
        (run("45.001"), run("45.004", digests="w,x,s"), "equal"),
        (run("45.0", digests=",,"), run("45.0", digests=",,"), "equal"),  # nothing to be identical
        (run("45.0"), run("45.0", miou="50.1", digests="w,x,s"), "within"),
        (run("45.0"), run("49.9", digests="x,x,s"), "within"),
        (run("45.0"), run("50.1", digests="x,x,s"), "outside"),
        (run("45.0"), "", "not run here"),
        ("", run("45.0"), "not committed"),
    ],
)
def test_verdicts_on_runs(old, new, verdict):
    (found,) = compare(RUN + old, RUN + new, "runs.csv")
    assert found.verdict == verdict
    assert found.key == ("d", "1", "m", "0")


def test_other_seeds_of_the_commit_widen_a_runs_interval():
    """Sd of 44, 45, 46 is 1; one more run lies within 4.303 sqrt(1 + 1/3), beside 5 over images."""
    before = RUN + run("44.0") + run("45.0", seed=1) + run("46.0", seed=2)
    verdicts = []
    for value in ("52.0", "52.1"):
        found = compare(before, RUN + run(value, seed=1, digests="x,x,s"), "runs.csv")
        verdicts.append({f.key[3]: f.verdict for f in found})
    assert [v["1"] for v in verdicts] == ["within", "outside"]
    assert [v["0"] for v in verdicts] == ["not run here"] * 2


def test_what_differs_in_numerics_is_told():
    (found,) = compare(
        RUN + run("45.0"), RUN + run("46.0", digests="x,x,s", torch="2.16"), "runs.csv"
    )
    assert "numerics.torch 2.16, committed 2.15" in found.detail


def test_runs_of_another_numerics_class_are_counted(committed, small_params, capsys):
    for seed in (0, 1):
        fake_runs.change(RunKey("refscenes", 10, "cpi-u", seed).folder, numerics={"class": "plain"})
    assert verify(small_params) == 0
    said = "2 runs of another numerics class: plain here, unknown committed\n"
    assert f"12 runs: 12 identical\n{said}" in capsys.readouterr().out


def test_the_numerics_class_of_a_differing_run_is_told():
    head = RUN.strip() + ",numerics.class\n"
    line = run("46.0", digests="x,x,s").strip() + ",plain\n"
    (found,) = compare(RUN + run("45.0"), head + line, "runs.csv")
    assert found.classes == ("plain", "unknown")
    assert "numerics.class plain, committed -" in found.detail


CLAIM = "id,dataset,fraction,split,metric,left,right,paper,ours,low,high,seeds,verdict\n"


def claim(verdict, seeds=3):
    return f"c,d,1,val,oIoU,a,b,1.00,2.00,1.00,3.00,{seeds},{verdict}\n"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (claim("supported"), claim("supported"), "unchanged"),
        (claim("supported"), claim("undecided"), "changed"),
        (claim("undecided"), claim("supported"), "changed"),
        (claim("supported"), claim("undecided", seeds=1), "other seeds"),
        (claim("supported"), claim("not run", seeds=""), "not run here"),
        (claim("supported"), "", "not run here"),
        (claim("not run", seeds=""), claim("supported"), "not committed"),
        ("", claim("supported"), "not committed"),
    ],
)
def test_verdicts_on_claims(old, new, verdict):
    (found,) = compare(CLAIM + old, CLAIM + new, "claims.csv")
    assert found.verdict == verdict


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_damaged_runs_and_claims_are_named(text):
    with pytest.raises(CorruptCacheError, match=r"runs\.csv"):
        compare(text, RUN, "runs.csv")
    with pytest.raises(CorruptCacheError, match=r"claims\.csv"):
        compare(text, CLAIM, "claims.csv")
    with pytest.raises(CorruptCacheError, match=r"runs\.csv: a cell"):
        compare(RUN + run("x"), RUN + run("1.0", digests="x,x,x"), "runs.csv")


GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]


@pytest.fixture
def committed(own_workspace, small_params):
    write_data(small_params, build(small_params), own_workspace / "reports")
    subprocess.run([*GIT, "init", "-q"], check=True)
    subprocess.run([*GIT, "add", "reports"], check=True)
    subprocess.run([*GIT, "commit", "-qm", "reports"], check=True)
    return own_workspace


def test_unchanged_outputs_are_equal(committed, small_params, capsys):
    assert verify(small_params) == 0
    printed = capsys.readouterr().out
    assert "12 runs: 12 identical\n" in printed
    assert re.search(r"\d+ numbers: \d+ equal\n", printed)
    assert re.search(r"\d+ claims: \d+ unchanged\n", printed)


def test_a_worse_run_is_outside_and_the_working_tree_does_not_hide_it(
    committed, small_params, capsys
):
    for seed in (0, 1):
        key = RunKey("refscenes", 10, "cpi-u", seed)
        shutil.rmtree(key.folder)
        fake_runs.write_run(key, gain=-25)
    write_data(small_params, build(small_params), committed / "reports")  # as `dvc repro` does
    assert verify(small_params) == 1
    printed = capsys.readouterr().out
    assert "outside  main, refscenes, 10, SemiRES (CPI-U), val" in printed
    assert "outside  refscenes, 10, cpi-u, 1: val/oIoU" in printed
    assert printed.index("12 runs: 10 identical, 2 outside") < printed.index("outside  main")


def test_a_changed_verdict_fails(committed, small_params, capsys):
    path = committed / "reports/claims.csv"
    text = path.read_text()
    line = next(row for row in text.splitlines() if row.endswith(",2,undecided"))
    path.write_text(text.replace(line, line.replace("undecided", "supported")))
    subprocess.run([*GIT, "commit", "-qam", "another verdict"], check=True)
    assert verify(small_params) == 1
    printed = capsys.readouterr().out
    assert printed.count("changed  ") == 1
    assert "numbers: " in printed
    assert "outside" not in printed


def test_against_another_commit(committed, small_params, capsys):
    (committed / "reports/main.csv").write_text("damaged")
    subprocess.run([*GIT, "commit", "-qam", "damage"], check=True)
    with pytest.raises(CorruptCacheError, match=r"main\.csv"):
        verify(small_params)
    assert verify(small_params, against="HEAD~1") == 0
    for revision in ("nowhere", "--all"):
        with pytest.raises(SemiresError, match=f"--against {revision}: .*no such commit"):
            verify(small_params, against=revision)


def test_another_folder_of_results(committed, small_params):
    shutil.copytree("reports", "reports/study")
    with pytest.raises(SemiresError, match="reports/other: no committed results"):
        verify(small_params, output=Path("reports/other"))
    assert verify(small_params, output=Path("reports/study")) == 0


def test_a_run_that_is_not_there_does_not_fail(committed, small_params, capsys):
    shutil.rmtree("runs/refscenes/10")
    assert verify(small_params) == 0
    printed = capsys.readouterr().out
    assert "12 runs: 6 identical, 6 not run here" in printed
    assert re.search(r"claims: \d+ unchanged, \d+ not run here", printed)


def test_a_seed_alone_is_verified_and_its_verdicts_are_not_compared(
    committed, small_params, capsys
):
    for path in Path("runs").glob("*/*/*/seed1"):
        shutil.rmtree(path)
    assert verify(small_params) == 0
    printed = capsys.readouterr().out
    assert "12 runs: 6 identical, 6 not run here" in printed
    assert "other seeds" in printed
    assert "changed" not in printed.replace("unchanged", "")


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
    with pytest.raises(SemiresError, match="no committed results"):
        verify(small_params)
