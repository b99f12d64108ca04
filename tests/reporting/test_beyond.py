"""The table and the figure beyond the paper: differences to one method, one point a method."""

from pathlib import Path

import numpy as np
import pytest
from helpers import fake_runs

from semires.config.load import load_params
from semires.evaluation.bootstrap import Interval
from semires.refine.strategies import STRATEGIES
from semires.reporting import quality
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.figures import FigureMaker
from semires.reporting.grids import to_csv, to_markdown
from semires.reporting.records import load_records
from semires.reporting.style import NAMES, STYLES, distinct_styles, save, style_of
from semires.reporting.tables import TableBuilder
from semires.runs.key import RunKey

METHODS = ("supervised", "baseline", "cpi-u", "sepl", "expected-iou")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("beyond")
    for method in METHODS:
        for seed in (1,) if method == "sepl" else (0, 1):
            fake_runs.write_run(RunKey("refscenes", 1, method, seed), root=root)
    return load_records(root / "runs", root / "proposals", "sam", [0, 1])


@pytest.fixture(scope="module")
def params():
    return load_params(Path(__file__).parents[2] / "params.yaml")


def test_every_difference_is_to_cpi_u(records, params):
    definition = load_definitions()[0]["beyond"]
    builder = TableBuilder(params, records, PaperValues())
    table = builder.build("beyond", definition)
    found = builder.differences(table, definition)
    (section,) = found.sections
    assert [row.method for row in section.rows] == [
        f"{method} - cpi-u" for method in METHODS if method != "cpi-u"
    ]
    row = section.rows[-1]
    runs = {m: records.find("refscenes", 1, m) for m in ("cpi-u", "expected-iou")}
    means = {m: np.mean([run.sums("val").percent for run in each]) for m, each in runs.items()}
    assert row.values["val"].value == pytest.approx(means["expected-iou"] - means["cpi-u"])


def test_the_quality_of_the_labels_has_columns(records, params):
    definition = load_definitions()[0]["beyond"]
    table = TableBuilder(params, records, PaperValues()).build("beyond", definition)
    rows = {row.method: row for row in next(s for s in table.sections if s.fraction == "1").rows}
    corrected = [run.corrections for run in records.find("refscenes", 1, "baseline")]
    wanted = [(t.intersection_after / t.union_after.clip(lower=1)).mean() * 100 for t in corrected]
    metrics = [run.metrics["pseudo"] for run in records.find("refscenes", 1, "baseline")]
    assert rows["baseline"].columns == {
        "labels": pytest.approx(np.mean([m["refined_oIoU"] for m in metrics])),
        "labels_miou": pytest.approx(np.mean(wanted)),
    }
    assert rows["supervised"].columns == rows["majority"].columns == {}
    text = to_markdown(table)
    assert "| Method | Labels' oIoU | Labels' mIoU | val |" in text
    assert "labels,labels_miou" in to_csv(table).splitlines()[0]


def test_a_point_is_a_difference_on_the_seeds_that_both_methods_have(records, params):
    place, methods = ("refscenes", 1), ["supervised", "baseline", "cpi-u", "sepl", "iom"]
    found = quality.points(records, place, methods, "cpi-u", "val", 200)
    assert list(found) == ["baseline", "cpi-u", "sepl"]  # burn-in has no labels; IOM has no run
    assert {method: point.seeds for method, point in found.items()} == {
        "baseline": (0, 1), "cpi-u": (0, 1), "sepl": (1,),
    }  # fmt: skip
    metrics = {
        method: [run.metrics for run in records.find("refscenes", 1, method)]
        for method in ("cpi-u", "sepl")
    }
    sepl, cpi_u = metrics["sepl"][0], metrics["cpi-u"][1]  # seed 1 of both
    label = sepl["pseudo"]["refined_oIoU"] - cpi_u["pseudo"]["refined_oIoU"]
    student = sepl["val"]["oIoU"] - cpi_u["val"]["oIoU"]
    point = found["sepl"]
    assert (point.label, point.student.value) == (pytest.approx(label), pytest.approx(student))
    assert point.student.low < point.student.value < point.student.high
    assert (found["cpi-u"].label, found["cpi-u"].student.low, found["cpi-u"].student.high) == (
        0, 0, 0,
    )  # fmt: skip
    assert quality.points(records, place, methods, "iom", "val", 200) == {}


def test_the_rank_correlation_of_labels_and_students():
    values = [(-2.0, 1.0), (0.0, 0.0), (1.0, 5.0), (3.0, 4.0)]
    found = {
        str(i): quality.Point(label, Interval(student, student, student), (0,))
        for i, (label, student) in enumerate(values)
    }
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert quality.rank_correlation(found) == pytest.approx(0.6)
    assert quality.summary(found, (0,)) == "Spearman's ρ +0.60 of 4; seed 0"
    assert quality.summary(found, (0, 1)).endswith("seeds 0, 1; hollow: seed 0")
    assert quality.rank_correlation({"0": found["0"], "1": found["1"]}) is None  # always 1 or -1
    assert quality.rank_correlation(dict.fromkeys("012", found["0"])) is None


def test_every_method_of_a_figure_has_its_own_marker_and_the_name_of_its_row():
    tables, figures = load_definitions()
    methods = figures["quality"].methods
    styles = distinct_styles(methods)
    assert len(set(styles.values())) == len(methods) == 22
    rows = {row.method: row.label for row in tables["beyond"].rows}
    assert {m: style_of(m)[3] for m in NAMES.keys() & rows.keys()} == {
        method: label for method, label in rows.items() if method not in STYLES
    }
    searched = {"cpi-u-labelled", "cpi-u-pwa"}
    assert NAMES.keys() <= rows.keys() | STRATEGIES.keys() | searched
    assert {name for name in STRATEGIES if name not in STYLES} - {"none"} <= NAMES.keys()


def test_the_figure_is_the_same_bytes(records, params):
    definition = load_definitions()[1]["quality"]
    pictures = []
    for _ in range(2):
        drawn = FigureMaker(params, records, PaperValues()).draw("quality", definition)
        (figure,) = drawn.values()
        (legend,) = figure.legends
        shown = [text.get_text() for text in legend.get_texts()]
        assert shown == ["Baseline", "CPI-U", "SEPL", "Expected IoU, proposals"]
        assert "seeds 0, 1; hollow: seed 1" in figure.axes[0].get_title()
        assert len(figure.axes) == 1  # the fraction with runs
        pictures.append(save(figure))
    assert pictures[0] == pictures[1]
