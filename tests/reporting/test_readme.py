"""README's blocks come from reports/, dvc.yaml, run records and the stages' notes."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from readme import BLOCKS, DIGESTS, differences, mermaid, update_readme

from semires.errors import SemiresError
from semires.process import STAGE_TIMES
from semires.reporting.report import build, write_data

TEXT = "top\n" + "".join(f"<!-- {b} -->\nold\n<!-- /{b} -->\nafter {b}\n" for b in BLOCKS)


@pytest.fixture
def readme(own_workspace, small_params):
    write_data(small_params, build(small_params), own_workspace / "reports")
    STAGE_TIMES.parent.mkdir(exist_ok=True)
    notes = [("burn_in@a-1-0", 9.0), ("burn_in@a-1-0", 10.0), ("burn_in@a-1-1", 20.0)]
    STAGE_TIMES.write_text(
        "".join(json.dumps({"stage": name, "seconds": s}) + "\n" for name, s in notes)
    )
    path = own_workspace / "README.md"
    path.write_text(TEXT)
    return path


def block(readme, name):
    return readme.read_text().split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_results_are_the_main_tables_val_and_the_claims_in_one_line(readme):
    update_readme(["results"], readme)
    results = block(readme, "results")
    line = next(
        line.split(",")
        for line in (readme.parent / "reports/main.csv").read_text().splitlines()
        if line.startswith("main,refscenes,10,Baseline,baseline,val,")
    )
    assert "| RefScenes, val | 1 % | 10 % |" in results
    (baseline,) = [row for row in results.splitlines() if row.startswith("| Baseline")]
    assert baseline.endswith(f" {line[7]} ± {line[10]} |")
    assert "mean ± standard deviation over 2 seeds" in results
    verdicts = [row.rsplit(",", 1)[1] for row in claims_of(readme)]
    supported, judged = verdicts.count("supported"), len(verdicts) - verdicts.count("not run")
    assert judged > 0
    assert f"**{supported} of {judged} claims of the paper supported" in results
    assert "old" not in results
    assert readme.read_text().count("old") == len(BLOCKS) - 1


def claims_of(readme):
    lines = (readme.parent / "reports/claims.csv").read_text().splitlines()[1:]
    return [line for line in lines if not line.startswith("baseline-above-longer")]


def test_each_claim_that_was_judged_is_one_line(readme):
    update_readme(["claims"], readme)
    table, *rest = block(readme, "claims").split("\n\n")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    with open(readme.parent / "reports/claims.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    judged = {line["id"] for line in lines if line["verdict"] != "not run"}
    assert len(rows) == len(judged)
    shown = sum(int(part.split()[0]) for row in rows for part in row[3].split(", "))
    assert shown == sum(line["id"] in judged for line in lines)
    others = len({line["id"] for line in lines}) - len(judged)
    assert rest == ([f"Not run here: {others} claims."] if others else [])


def test_many_differences_are_a_range():
    assert differences([4.8, -0.1]) == "+4.8, -0.1"
    assert differences([4.8, -0.1, 2.0, 1.0, 3.0]) == "-0.1 to +4.8"


def test_without_claims_their_line_is_left_out(readme):
    (readme.parent / "reports/claims.csv").unlink()
    update_readme(["results", "claims"], readme)
    assert "claims" not in block(readme, "results")
    assert block(readme, "claims") == ""
    assert "| Baseline |" in block(readme, "results")


def test_results_of_make_study_come_first(readme):
    shutil.copytree("reports", "reports/study")
    update_readme(["results"], readme)
    assert "](reports/study/figure1.png)" in block(readme, "results")


def test_times_are_the_last_ones_of_each_stage(readme):
    update_readme(["times"], readme)
    rows = block(readme, "times").splitlines()
    assert rows[0] == "| stage | all | burn_in |"
    assert rows[2:5] == ["| runs | 2 | 2 |", "| seconds a run |  | 15.0 |", "| seconds | 30 | 30 |"]
    assert rows[-1].endswith(
        "on cpu with 2 threads, torch 2.15.0, commit 000000000000, 2026-11-23."
    )


def test_digests_are_marked_if_the_machine_was_busy(readme):
    text = (ROOT / DIGESTS).read_text().splitlines()
    DIGESTS.parent.mkdir(parents=True)
    DIGESTS.write_text("\n".join([text[0], text[1].rpartition(",")[0] + ",idle", *text[2:], ""]))
    update_readme(["numerics"], readme)
    rows = block(readme, "numerics").splitlines()
    values = dict(zip(text[0].split(","), next(csv.reader(text[1:2])), strict=True))
    assert rows[0].startswith("| CPU | profile | torch | logits |")
    assert rows[2].endswith(f"| {values['mutual_20']} | {values['ms_per_step']} |")
    assert rows[3].endswith("\\* |")
    assert rows[-1] == "\\* measured beside other work"
    DIGESTS.write_text(DIGESTS.read_text().replace(",busy", ",idle"))
    update_readme(["numerics"], readme)
    assert "\\*" not in block(readme, "numerics")


def test_a_second_time_changes_nothing_and_the_rest_stays(readme):
    names = ["results", "claims", "times"]
    update_readme(names, readme)
    first = readme.read_text()
    update_readme(names, readme)
    assert readme.read_text() == first
    assert first.startswith("top\n<!-- results -->")
    assert first.endswith("<!-- /times -->\nafter times\n")


def test_faults_are_one_line(readme):
    with pytest.raises(SemiresError, match="tims: no such block"):
        update_readme(["tims"], readme)
    readme.write_text("<!-- results -->")
    with pytest.raises(SemiresError, match="needs <!-- results --> and <!-- /results -->"):
        update_readme(["results"], readme)
    STAGE_TIMES.unlink()
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/readme.py"), "times"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("semires: ")
    assert done.stderr.count("\n") == 1


def test_the_graph_has_a_line_per_stage():
    graph = 'flowchart TD\n\tnode1["b"]\n\tnode2["a"]\n\tnode3["c"]\n\tnode4["alone"]\n'
    graph += "\tnode2-->node1\n\tnode2-->node3\n\tnode1-->node3\n"
    assert mermaid(graph).splitlines() == [
        "```mermaid", "flowchart LR", "  alone", "  a --> b & c", "  b --> c", "```",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "blocks"),
    [("README.md", ["results", "claims", "pipeline"]), ("docs/reliability.md", ["numerics"])],
)
def test_the_projects_blocks_show_what_is_committed(tmp_path, monkeypatch, file, blocks):
    """`make readme` was run after the last change of reports/, claims and dvc.yaml."""
    text = (ROOT / file).read_text()
    monkeypatch.chdir(ROOT)
    (tmp_path / "copy.md").write_text(text)
    update_readme(blocks, tmp_path / "copy.md")
    assert (tmp_path / "copy.md").read_text() == text


def test_the_projects_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
