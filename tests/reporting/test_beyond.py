"""The table and the figure beyond the paper: differences to one method, one point a method."""

from pathlib import Path

import numpy as np
import pytest
from helpers import fake_runs

from semires.config.load import load_params
from semires.files import read_json
from semires.reporting import quality
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.figures import FigureMaker
from semires.reporting.records import load_records
from semires.reporting.render import to_csv, to_markdown
from semires.reporting.style import save
from semires.reporting.tables import TableBuilder
from semires.runs.key import RunKey

METHODS = ("supervised", "baseline", "cpi-u", "expected-iou")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tmp_path_factory.mktemp("beyond")
    for method in METHODS:
        for seed in (0, 1):
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
    assert rows["supervised"].columns == rows["sepl"].columns == {}
    text = to_markdown(table)
    assert "| Method | Labels' oIoU | Labels' mIoU | val |" in text
    assert "labels,labels_miou" in to_csv(table).splitlines()[0]


def test_a_point_is_the_mean_over_seeds_of_labels_and_student(records, params):
    found = quality.points(records, "refscenes", 1, ["supervised", "cpi-u", "iom"], "val")
    assert list(found) == ["cpi-u"]  # burn-in refines no label; IOM has no run
    metrics = [read_json(r.folder / "metrics.json") for r in records.find("refscenes", 1, "cpi-u")]
    label = np.mean([m["pseudo"]["refined_oIoU"] for m in metrics])
    student = np.mean([m["val"]["oIoU"] for m in metrics])
    assert found["cpi-u"] == pytest.approx((label, student))


def test_the_figure_is_the_same_bytes(records, params):
    definition = load_definitions()[1]["quality"]
    pictures = []
    for _ in range(2):
        drawn = FigureMaker(params, records, PaperValues()).draw("quality", definition)
        (figure,) = drawn.values()
        assert len(figure.axes) == 1  # the fraction with runs
        pictures.append(save(figure))
    assert pictures[0] == pictures[1]
