"""The searches in the report: tables, transfer, figures, verdict, and what is missing."""

import csv
import shutil

import pytest
from helpers import fake_runs
from helpers.fake_searches import write_search

from semires.config.validate import validate
from semires.errors import CorruptCacheError
from semires.reporting.claims import SUPPORTED
from semires.reporting.report import read_runs, report
from semires.reporting.searches import read_searches
from semires.reporting.style import save
from semires.reporting.threshold_figures import threshold_figures
from semires.reporting.thresholds import compare_thresholds
from semires.reporting.thresholds_render import grids, thresholds_csv, thresholds_markdown
from semires.runs import layout
from semires.runs.key import RunKey
from semires.tuning import plots

BLOCK = {"datasets": ["refscenes"], "seeds": [0]}


def key(method, fraction=1, source=None):
    return RunKey("refscenes", fraction, method, 0, source)


@pytest.fixture(scope="module")
def params(small_params):
    values = small_params.model_dump()
    tuned = {**BLOCK, "fractions": [1.0], "methods": ["cpi-u-tuned"], "seeds": [0, 1]}
    values["study"]["runs"] += [tuned, {**BLOCK, "fractions": [1.0], "methods": ["cpi-u-60"]}]
    values["study"]["tune"] = [
        {**BLOCK, "fractions": [1.0, 10.0], "methods": ["cpi", "cpi-u"]},
        {**BLOCK, "fractions": [1.0], "methods": ["cpi-u-labelled"]},
        {**BLOCK, "fractions": [10.0], "methods": ["cpi-o"]},  # not run
        {**BLOCK, "fractions": [1.0], "methods": ["cpi-u"], "sources": ["felzenszwalb"]},
        {**BLOCK, "fractions": [1.0], "methods": ["iom-front", "cpi-u-pwa"]},
    ]
    share = {"tune.objective": "labels-and-share"}
    values["refine"]["iom-front"] = {**values["refine"]["iom"], "overrides": share}
    return validate(values)


@pytest.fixture(scope="module")
def searched(made_workspace, params, tmp_path_factory):
    """A workspace with searches and the trainings with what one of them found."""
    root = tmp_path_factory.mktemp("searched") / "workspace"
    shutil.copytree(made_workspace, root, ignore=shutil.ignore_patterns("reports"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SEMIRES_TRACKING", "off")
        patch.setattr(plots, "draw", lambda *_: None)  # the report does not read the pictures
        for seed in (0, 1):
            fake_runs.write_run(RunKey("refscenes", 1, "cpi-u-tuned", seed), gain=17.0)
        fake_runs.write_run(key("cpi-u-60"))
        for fraction, seed in ((1, 0), (10, 1)):
            for method in ("cpi", "cpi-u"):
                write_search(params, key(method, fraction), seed)
        write_search(params, key("cpi-u-labelled"))
        write_search(params, key("cpi-u", source="felzenszwalb"), seed=2)
        write_search(params, key("iom-front"))
        write_search(params, key("cpi-u-pwa"), trials=12)
        report(params)
        yield root


@pytest.fixture
def here(searched, monkeypatch):
    monkeypatch.chdir(searched)
    return searched / "reports"


def lines(folder, table):
    with open(folder / "thresholds.csv", newline="") as file:
        return [line for line in csv.DictReader(file) if line["table"] == table]


def found(params):
    return compare_thresholds(params, read_runs(params))


def test_labels_and_students_with_the_papers_and_the_best_values(here, params):
    results = found(params)
    (ours,) = [c for c in results.comparisons if c.key == key("cpi-u")]
    summary = ours.search.summary
    for part in ("seen", "held_out"):
        for metric in ("oIoU", "mIoU"):
            change = ours.labels[part, metric]
            assert change.paper.value == pytest.approx(summary[part]["paper"][metric])
            assert change.best.value == pytest.approx(summary[part]["best"][metric])
        stated = summary[part]["best_minus_paper"]
        difference = ours.labels[part, "oIoU"].difference
        assert (difference.value, difference.low) == pytest.approx((stated["value"], stated["low"]))
    assert ours.tuned == "cpi-u-tuned"
    for split in ("val", "testA", "testB"):
        change = ours.students[split, "oIoU"]
        assert change.difference.value == pytest.approx(change.best.value - change.paper.value)
        assert change.difference.seeds == 2
    assert ours.verdict() == SUPPORTED
    with open(here / "claims.csv", newline="") as file:
        claims = [line for line in csv.DictReader(file) if line["id"] == "tuning-helps-cpi-u"]
    # at 10 %, the study has no training with tuned thresholds
    assert [(line["fraction"], line["verdict"]) for line in claims] == [("1", SUPPORTED)]
    assert ours.judged == "testA"
    text = (here / "thresholds.md").read_text()
    assert "the verdict on the students' difference on testA, as for the claims" in text
    assert f"threshold\\_u 0.70 → {ours.search.best['threshold_u']:.2f}" in text
    assert "No search yet: refscenes cpi-o-10-seed0; `dvc repro` runs them." in text
    assert "No method uses the result of cpi, " not in text  # cpi-tuned does, though it has no run
    assert text.count("**RefScenes, 1 % labelled**") == 1
    assert "**RefScenes, 10 %, CPI-U**" in text
    assert "**RefScenes, 10 %, CPI**" not in text, "no training with these thresholds"


def test_the_csv_has_every_number(here, params):
    rows = {
        (line["fraction"], line["row"], line["split"]): line for line in lines(here, "thresholds")
    }
    (ours,) = [c for c in found(params).comparisons if c.key == key("cpi-u")]
    for split, verdict in (("val", ""), ("testA", SUPPORTED), ("testB", "")):
        line = rows["1", "cpi-u, difference", f"students {split}"]
        assert float(line["value"]) == round(ours.students[split, "oIoU"].difference.value, 2)
        assert (line["verdict"], line["seeds"]) == (verdict, "2")
    assert rows["1", "cpi-u, paper", "labels seen"]["thresholds"] == "threshold_u=0.7000"
    assert rows["10", "cpi-o, best", "labels seen"]["missing"] == "not run"
    assert rows["1", "cpi, best", "students val"]["missing"] == "not run"


def test_thresholds_of_one_fraction_are_used_at_another(here, params):
    results = [t for t in found(params).transfers if t.target.key == key("cpi-u", 10)]
    origins = {t.origin.key if t.origin else None: t for t in results}
    other_source = key("cpi-u", source="felzenszwalb")
    searched = {key("cpi-u"), key("cpi-u", 10), key("cpi-u-labelled"), other_source}
    assert set(origins) == {None, *searched}
    summary = origins[None].target.summary["held_out"]
    assert origins[None].value.value == pytest.approx(summary["paper"]["oIoU"])
    assert origins[key("cpi-u", 10)].value.value == pytest.approx(summary["best"]["oIoU"])
    assert origins[None].difference.value == 0
    moved = origins[key("cpi-u")]
    assert moved.difference.value == pytest.approx(moved.value.value - summary["paper"]["oIoU"])
    assert len(lines(here, "thresholds_transfer")) == 5 * 3 + 3 * 2
    text = (here / "thresholds.md").read_text()
    assert "| RefScenes, 1 %, labelled images |" in text
    assert "| RefScenes, 1 %, felzenszwalb |" in text
    assert text.count("cpi-u-labelled-1-seed0: on") == 1, "on the labels of its own source alone"
    assert "cpi-u-labelled-1-seed0: on the held-out half of val, the thresholds from" in text


def test_trained_values_stand_beside_the_curve(here, params):
    trained = [t for t in found(params).trained if t.search.key == key("cpi-u")]
    assert [(t.method, t.value) for t in trained] == [
        ("cpi-u-50", 0.5), ("cpi-u-60", 0.6), ("cpi-u", 0.7),
    ]  # fmt: skip
    assert [bool(t.students) for t in trained] == [False, True, True]
    both = [t for t in found(params).trained if t.search.key == key("cpi")]
    assert [t.method for t in both] == ["cpi-50", "cpi-60", "cpi"]


def test_the_page_and_the_figures(here):
    page = (here / "index.html").read_text()
    assert '<section id="s-thresholds">' in page
    assert "search-history: the value of every trial" in page
    assert "front: quality and share of the labels" in page
    names = {path.stem for path in here.glob("thresholds-*.svg")}
    rules = ("cpi", "cpi-u", "cpi-u+felzenszwalb", "iom-front")
    assert names == {*(f"thresholds-{rule}" for rule in rules), "thresholds-cpi-plane"}
    others = {"front", "search-history", "search-importances", "search-slices-cpi-u-pwa"}
    assert others <= {path.stem for path in here.glob("*.png")}
    for name in names | others:
        assert f'alt="{name}"' in page
    for name in ("thresholds", "thresholds_transfer", "thresholds_trained"):
        assert f'<table id="{name}">' in page
        text = (here / f"{name}.tex").read_text()
        assert text.isascii()
        assert text.count("{") == text.count("}")


def test_the_same_searches_give_the_same_bytes(here, params):
    results = found(params)
    assert thresholds_csv(results) == (here / "thresholds.csv").read_text()
    figures = threshold_figures(results)
    for stem in ("thresholds-cpi-plane", "search-importances", "search-slices-cpi-u-pwa", "front"):
        figure = figures[stem]
        for ending, content in zip(("png", "svg"), save(figure), strict=True):
            assert content == (here / f"{stem}.{ending}").read_bytes()


def test_without_searches_everything_is_a_dash(workspace, params):
    results = found(params)
    assert "| CPI-U | oIoU | – | – | – |" in thresholds_markdown(grids(params, results))
    assert threshold_figures(results) == {}
    values = params.model_dump()
    values["study"]["tune"], values["study"]["runs"] = [], values["study"]["runs"][:1]
    alone = validate(values)
    assert grids(alone, found(alone)) == []


def test_a_damaged_search_is_named(own_workspace, searched, params):
    shutil.copytree(searched / "tune", own_workspace / "tune")
    folder = layout.tune_folder(key("cpi-u"))
    (folder / "seen.npz").write_bytes(b"damaged")
    with pytest.raises(CorruptCacheError, match=r"cpi-u/seed0/seen\.npz: damaged counts"):
        found(params)
    (folder / "summary.json").write_text("{}")
    with pytest.raises(CorruptCacheError, match=r"cpi-u/seed0/summary\.json: no summary"):
        read_searches(params)
    (folder / "seen.npz").unlink()  # as an earlier version wrote it
    assert read_searches(params)[key("cpi-u")] is None
