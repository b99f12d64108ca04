"""Table 1: three data sets beside each other, with the paper's numbers under ours."""

import csv
import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, fake_runs
from helpers.report_study import small_study

from semires.config.validate import validate
from semires.reporting.claims import Judge, load_claims
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.figures import FigureMaker
from semires.reporting.formats import md_table, signed
from semires.reporting.grids import grid_of, to_csv, to_markdown, to_tex
from semires.reporting.page import templates
from semires.reporting.records import load_records
from semires.reporting.report import build_tables
from semires.runs.key import RunKey

EMBEDDED = ("refscenes", "refscenes+", "refscenes-g")
REAL = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}


def study_of(names):
    """The first block of a small study on these data sets at 1 and 2 %."""
    values = small_study().model_dump()
    known = values["datasets"]
    for name, split_by in REAL.items():
        like = known["refscenes-g" if split_by == "umd" else "refscenes"]
        known[name] = {**like, "dataset": name, "split_by": split_by}
        known[name].pop("images_of", None)
    block = {"datasets": list(names), "fractions": [1.0, 2.0], "seeds": [0]}
    values["study"]["runs"] = [values["study"]["runs"][0] | block]
    values["study"]["tune"] = []
    return validate(values)


@pytest.fixture(params=[EMBEDDED, tuple(REAL)], ids=["embedded", "real"], scope="module")
def made(request, tmp_path_factory):
    """A folder with the runs of a study on three data sets, but one."""
    root = tmp_path_factory.mktemp("three")
    shutil.copytree(ROOT / "experiments/tables", root / "experiments/tables")
    for dataset in request.param:
        sizes = {"val": 9, "test": 12} if dataset == request.param[2] else None
        for method in ("supervised", "baseline", "cpi-u"):
            for fraction in (1.0, 2.0):
                key = RunKey(dataset, fraction, method, 0)
                if (dataset, fraction, method) != (request.param[1], 2.0, "cpi-u"):
                    fake_runs.write_run(key, root=root, sizes=sizes or fake_runs.SPLITS)
    return root, request.param


@pytest.fixture
def table1(made, monkeypatch):
    monkeypatch.chdir(made[0])
    tables = build_tables(study_of(made[1]), load_records(default_source="sam"))
    return next(table for table, _ in tables if table.name == "table1")


def to_html(table):
    return str(templates().get_template("parts").module.table(grid_of(table)))


def oiou(dataset, split):
    folder = RunKey(dataset, 1.0, "supervised", 0).folder
    rows = pd.read_parquet(folder / "predictions.parquet").query("split == @split")
    return 100 * rows["intersection"].sum() / rows["union"].sum()


def test_the_layout_is_the_papers(made, table1):
    grid = grid_of(table1)
    first, second, third = dict.fromkeys(section.name for section in table1.sections)
    splits = ["val", "testA", "testB"]
    assert grid.titles == ["Method", *splits, *splits, "val(U)", "test(U)"]
    assert grid.groups == [(first, 3), (second, 3), (third, 2)]
    titles = ["Method", *(f"{name} {split}" for name in (first, second) for split in splits)]
    titles += [f"{third} val(U)", f"{third} test(U)"]
    assert md_table(grid)[0] == f"| {' | '.join(titles)} |"
    assert [title for title, _ in grid.sections] == ["1 % labelled", "2 % labelled"]
    for _, rows in grid.sections:
        assert [row[0].main for row in rows] == ["Supervised", "Baseline", "SemiRES"]
    row, names = grid.sections[0][1][0], made[1]
    assert row[8].main == f"{oiou(names[2], 'test'):.2f}"
    assert row[6].main == f"{oiou(names[1], 'testB'):.2f}"
    assert len(row[0].runs) == 3


def test_the_papers_number_is_under_ours(made, table1):
    text, comparable = to_markdown(table1), made[1] != EMBEDDED
    for dataset, split, paper in ((0, "testA", 35.71), (1, "testB", 20.29), (2, "test", 24.72)):
        difference = signed(oiou(made[1][dataset], split) - paper) if comparable else ""
        below = f"<sub>paper {paper:.2f}{f' ({difference})' if difference else ''}</sub>"
        assert text.count(below) == 1
    assert ("RefCOCO+ for RefScenes+" in text) is not comparable


def test_a_missing_run_is_missed_in_its_columns_only(table1):
    _, *cells = grid_of(table1).sections[1][1][2]
    assert [cell.mark for cell in cells] == ["", "", "", "a", "a", "a", "", ""]
    assert [cell.main == "–" for cell in cells] == [bool(cell.mark) for cell in cells]
    assert table1.footnotes == ["no run yet: `dvc repro` fills it."]
    assert "– <sup>a</sup><br><sub>paper 28.58" not in to_markdown(table1)  # that is 1 %
    assert "– <sup>a</sup><br><sub>paper 33.30" in to_markdown(table1)


def test_every_format_has_all_cells(made, table1):
    lines = list(csv.DictReader(io.StringIO(to_csv(table1))))
    assert len(lines) == 2 * 3 * (3 + 3 + 2)
    assert {line["dataset"] for line in lines} == set(made[1])
    assert {line["paper"] for line in lines if line["split"] == "test"} >= {"24.72", "43.49"}
    tex, page = to_tex(table1), to_html(table1)
    name = table1.sections[0].name
    assert rf" & \multicolumn{{3}}{{c}}{{{name}}}" in tex
    assert r"\cmidrule(lr){2-4}\cmidrule(lr){5-7}\cmidrule(lr){8-9}" in tex
    assert f'<th scope="colgroup" colspan="3">{name}</th>' in page
    assert "<small>paper 24.72" in page


def test_other_tables_and_claims_have_only_what_the_study_makes(made, monkeypatch):
    root, names = made
    monkeypatch.chdir(root)
    params, records = study_of(names), load_records(default_source="sam")
    tables = {table.name: table for table, _ in build_tables(params, records)}
    of = {name: {s.dataset for s in table.sections} for name, table in tables.items()}
    assert of["main"] == of["table1"] == of["table9"] == set(names)
    assert of["table2"] == of["table4"] == {names[0]}
    assert any(note.startswith("Left out: ") for note in tables["table2"].notes)
    assert tables["main"].splits == ["val", "testA", "testB", "test"]
    definitions = load_definitions()
    claims = load_claims(*definitions, ROOT / "experiments/claims.yaml")
    judged = Judge(params, records, PaperValues(), *definitions).judge(claims)
    for name in names[1:]:
        there = {j.id for j in judged if j.dataset == name}
        assert {"semires-above-baseline", "better-than-worse", "smallest-5"} <= there
        assert not there & {"cpi-u-best", "labels-20", "sam-above-second-source"}
    papers = {(j.dataset, j.id): j.paper for j in judged if j.fraction == "1"}
    assert papers[names[1], "semires-above-baseline"] == pytest.approx(36.49 - 30.91)


def test_figure_6_is_drawn_for_each_data_set(made, monkeypatch):
    root, names = made
    monkeypatch.chdir(root)
    maker = FigureMaker(study_of(names), load_records(default_source="sam"), PaperValues())
    drawn = maker.draw("figure6", load_definitions()[1]["figure6"])
    assert list(drawn) == ["figure6", *(f"figure6-{name}" for name in names[1:])]
    titles = [figure.axes[1].get_title() for figure in drawn.values()]
    for title, paper in zip(titles, ("RefCOCO,", "RefCOCO+,", "G-Ref(UMD),"), strict=True):
        assert title.startswith(f"Paper: {paper}")


def test_one_data_set_has_table_1_with_its_columns_alone(workspace: Path, small_params):
    tables = build_tables(small_params, load_records(default_source="sam"))
    table = next(table for table, _ in tables if table.name == "table1")
    main, grid = grid_of(tables[0][0]), grid_of(table)
    assert grid.groups == [("RefScenes", 3)]
    assert grid.titles == ["Method", "val", "testA", "testB"]
    assert [title for title, _ in grid.sections] == ["1 % labelled", "10 % labelled"]
    for (_, joined), (_, alone) in zip(grid.sections, main.sections, strict=True):
        for row, same in zip(joined, alone, strict=True):
            assert [cell.main for cell in row[1:]] == [cell.main for cell in same[1:4]]
    assert "<sub>paper 35.71</sub>" in to_markdown(table)
    assert r"\multicolumn{3}{c}{RefScenes}" in to_tex(table)
    assert '<th scope="colgroup" colspan="3">RefScenes</th>' in to_html(table)
