"""Claims judged on runs whose truth is known, and what the file of claims may say."""

import csv
import io
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import ROOT, fake_runs
from helpers.report_study import with_study
from hypothesis import given
from hypothesis import strategies as st

from semires.config.load import load_params
from semires.errors import ConfigError
from semires.reporting.claims import Judge, load_claims, verdict_of
from semires.reporting.claims_render import CLAIM_COLUMNS, claims_csv, claims_markdown, count_line
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.records import load_records
from semires.reporting.report import build
from semires.runs.key import RunKey

CLAIMS = ROOT / "experiments/claims.yaml"


def judge(params):
    return build(params).judgements


def one(judgements, id_, fraction="1", right=None):
    (found,) = [
        j for j in judgements if j.id == id_ and j.fraction == fraction and right in (None, j.right)
    ]
    return found


@given(st.floats(-50, 50), st.floats(0, 50), st.floats(0, 10))
def test_a_verdict_follows_from_the_interval(low, width, margin):
    high = low + width
    verdict = verdict_of(low, high, margin)
    assert (verdict == "supported") == (low > margin)
    assert (verdict == "contradicted") == (high < margin)
    # the opposite claim has the opposite verdict
    opposite = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}
    assert verdict_of(-high, -low, -margin) == opposite[verdict]


def test_no_interval_is_undecided():
    assert verdict_of(None, None) == "undecided"


def test_every_claim_of_the_paper_is_there():
    claims = load_claims(*load_definitions(ROOT / "experiments/tables"), CLAIMS)
    places = {claim.where.partition(" (")[0] for claim in claims if claim.in_paper}
    assert places == {*(f"Table {n}" for n in range(1, 10)), "Figure 6", "Figure 7"}
    assert [claim.id for claim in claims if not claim.in_paper] == [
        "baseline-above-longer-supervised",
        *(f"tuning-helps-{method}" for method in ("cpi-u", "iom", "cpi")),
        "expected-iou-one-above-cpi-u",
    ]


def test_the_papers_own_differences_are_those_of_its_tables(own_workspace):
    """Every claim holds in the paper, and the differences are the typed ones."""
    datasets = ["refscenes", "coco", "coco+"]
    params = load_params(ROOT / "params.yaml")
    params = with_study(params, datasets=datasets, fractions=[0.1, 1.0, 5.0])
    judged = [j for j in judge(params) if j.paper is not None]
    papers = {(j.id, j.dataset, j.fraction, j.left, j.right): j.paper for j in judged}
    assert min(papers.values()) > 0
    assert len(papers) > 60

    def paper(id_, dataset="coco", fraction="1", n=0):
        return [v for k, v in papers.items() if k[:3] == (id_, dataset, fraction)][n]

    assert paper("semires-far-above-supervised") == pytest.approx(18.64)
    assert paper("semires-above-baseline", "coco+", "5") == pytest.approx(47.00 - 46.29)
    assert paper("semires-above-baseline", "refscenes", "5") == pytest.approx(61.31 - 60.58)
    assert paper("cpi-u-best", n=2) == pytest.approx(50.90 - 50.37)
    assert paper("sam-above-second-source") == pytest.approx(50.90 - 47.61)
    assert paper("labels-100", fraction="100") == pytest.approx(72.73 - 69.45)
    assert paper("better-than-worse") == pytest.approx(100 * (14628 - 6504) / 41972)
    assert paper("better-than-worse", "coco+") == pytest.approx(100 * (10243 - 5764) / 41830)
    assert paper("above-from-the-first-evaluation") == pytest.approx(41.7 - 35.88)
    assert not [k for k in papers if k[1] == "coco+" and k[0].startswith(("cpi", "labels", "pwa"))]


def test_a_difference_is_the_tables(workspace, small_params):
    results = build(small_params)
    (pairs,) = [d for t, d in results.tables if t.name == "main"]
    row = next(r for r in pairs.sections[1].rows if r.label == "SemiRES (CPI-U) − Baseline")
    value, found = row.values["val"], one(results.judgements, "semires-above-baseline", "10")
    assert (found.ours, found.low, found.high) == (value.value, value.low, value.high)


def written(params, gains, seeds=(0, 1, 2, 3, 4), spread=0.0):
    """Runs at 1 % whose methods are ``gains`` points apart, with a deviation between seeds."""
    shutil.rmtree("runs")
    rng = np.random.default_rng(5)
    for seed in seeds:
        shared = rng.normal(0, 3)
        for method, gain in gains.items():
            own = rng.normal(0, spread) if spread else 0.0
            fake_runs.write_run(RunKey("refscenes", 1, method, seed), gain=gain + shared + own)
    return judge(with_study(params, fractions=[1.0], seeds=list(seeds)))


def test_a_clear_difference_is_supported_or_contradicted(own_workspace, small_params):
    judged = written(small_params, {"supervised": 0, "baseline": 6, "cpi-u": -8})
    assert one(judged, "baseline-above-supervised").verdict == "supported"
    assert one(judged, "semires-above-baseline").verdict == "contradicted"
    assert one(judged, "semires-far-above-supervised").verdict == "contradicted"


def test_seeds_that_disagree_leave_a_claim_undecided(own_workspace, small_params):
    """Each seed's images are clear, but seeds differ by more than methods."""
    gains = {"supervised": 0, "baseline": 2}
    agreeing = one(written(small_params, gains, seeds=range(3)), "baseline-above-supervised")
    differing = written(small_params, gains, seeds=range(3), spread=6)
    differing = one(differing, "baseline-above-supervised")
    assert differing.verdict == "undecided"
    assert differing.high - differing.low > 2 * (agreeing.high - agreeing.low)
    single = one(written(small_params, gains, seeds=[0], spread=6), "baseline-above-supervised")
    assert single.seeds == 1
    assert single.high - single.low < differing.high - differing.low


def test_a_margin_must_be_exceeded(own_workspace, small_params):
    judged = written(small_params, {"supervised": 0, "cpi-u": 4})
    assert one(judged, "semires-far-above-supervised").verdict == "undecided"
    judged = written(small_params, {"supervised": 0, "cpi-u": 14})
    assert one(judged, "semires-far-above-supervised").verdict == "supported"


def test_a_claim_without_runs_names_the_command(workspace, small_params):
    judged = judge(small_params)
    found = one(judged, "cpi-o-above-baseline")
    assert (found.verdict, found.ours, found.seeds) == ("not run", None, 0)
    block = "{datasets: [refscenes], fractions: [1], methods: [cpi-o], seeds: [0, 1]}"
    assert found.reason == f"add `- {block}` to `study.runs` in params.yaml, then `make repro`"
    assert "seeds: [0, 1], model: rela}" in one(judged, "second-model-semires").reason
    text = claims_markdown(small_params, judged)
    (line,) = [line for line in text.splitlines() if line.endswith(f"; {found.reason}.")]
    assert "cpi-o-above-baseline" in line


def test_a_claim_of_our_own_is_left_out_unless_the_study_has_its_runs(own_workspace, small_params):
    id_ = "expected-iou-one-above-cpi-u"
    for seed in (0, 1):
        fake_runs.write_run(RunKey("refscenes", 1, "expected-iou-one", seed), gain=20)
    # Runs of another study change nothing, so that equal studies have equal reports.
    assert not [j for j in judge(small_params) if j.id == id_]
    planned = with_study(small_params, methods=["baseline", "cpi-u", "expected-iou-one"])
    val, test_a, *others = (j for j in judge(planned) if j.id == id_)  # 5 % is not planned
    assert (val.fraction, val.split, test_a.split) == ("1", "val", "testA")
    assert val.verdict == test_a.verdict == "supported"
    assert [(j.fraction, j.verdict) for j in others] == [("10", "not run")] * 2


def rewrite(seed, method, **columns):
    folder = RunKey("refscenes", 1, method, seed).folder
    table = pd.read_parquet(folder / "corrections.parquet")
    table.assign(**columns).to_parquet(folder / "corrections.parquet")
    fake_runs.seal(folder)


def test_corrections_count_by_iou_with_the_hidden_truth(own_workspace, small_params):
    n = 300
    # 180 better, 60 worse, 30 equal, 30 better but not matched
    before = {"intersection_before": np.full(n, 50), "union_before": np.full(n, 100)}
    after = np.r_[np.full(180, 60), np.full(60, 40), np.full(30, 50), np.full(30, 60)]
    rows = {**before, "intersection_after": after, "union_after": np.full(n, 100)}
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(n)
        shuffled = {name: values[order] for name, values in rows.items()}
        rewrite(seed, "cpi-u", **shuffled, matched=(np.arange(n) < 270)[order])
    judged = judge(small_params)
    (found,) = [j for j in judged if j.id == "better-than-worse" and j.left == "CPI-U: better"]
    assert found.ours == pytest.approx(100 * (180 - 60) / n)
    assert found.verdict == "supported"
    assert found.low < found.ours < found.high


def with_histories(params, curves):
    """Runs at 1 % with given val oIoU by evaluation: curves[method][seed]."""
    for method, by_seed in curves.items():
        for seed, curve in enumerate(by_seed):
            key = RunKey("refscenes", 1, method, seed)
            if not key.folder.exists():
                fake_runs.write_run(key)
            table = pd.DataFrame({"step": 100 * np.arange(1, len(curve) + 1), "val/oIoU": curve})
            table.to_csv(key.folder / "history.csv", index=False)
            fake_runs.seal(key.folder)
    return one(judge(params), "above-from-the-first-evaluation")


def test_curves_are_judged_where_their_difference_is_smallest(own_workspace, small_params):
    base = np.array([30.0, 31, 32])
    params = with_study(small_params, seeds=[0, 1, 2])
    found = with_histories(
        params,
        {
            "baseline": [base, base, base],
            "cpi-u": [np.add(base, [3, 2, 4]), np.add(base, [3.2, 2.2, 4]), base + 2.4],
        },
    )
    assert found.ours == pytest.approx((2 + 2.2 + 2.4) / 3)
    assert found.seeds == 3
    assert found.verdict == "supported"
    found = with_histories(
        params, {"cpi-u": [np.add(base, [-3, 2, 4]), np.add(base, [-3.2, 2, 4]), base - 3.1]}
    )
    assert found.verdict == "contradicted"
    found = with_histories(
        params, {"cpi-u": [np.add(base, [9, 2, 4]), np.add(base, [1, 2, 4]), base - 1]}
    )
    assert found.verdict == "undecided"


def test_curves_of_one_seed_are_undecided(own_workspace, small_params):
    for method in ("baseline", "cpi-u"):
        shutil.rmtree(RunKey("refscenes", 1, method, 1).folder)
    found = one(judge(small_params), "above-from-the-first-evaluation")
    assert (found.verdict, found.low, found.seeds) == ("undecided", None, 1)
    assert "one seed" in found.reason


def test_csv_has_exactly_the_promised_columns(workspace, small_params):
    judged = judge(small_params)
    lines = list(csv.DictReader(io.StringIO(claims_csv(judged))))
    columns = "id dataset fraction split metric left right paper ours low high seeds verdict"
    assert list(lines[0]) == columns.split() == CLAIM_COLUMNS
    assert len(lines) == len(judged)
    keys = [tuple(line[c] for c in CLAIM_COLUMNS[:7]) for line in lines]
    assert len(set(keys)) == len(keys)
    found, line = judged[0], lines[0]
    assert line["ours"] == f"{found.ours:.2f}"
    assert line["verdict"] == found.verdict


def test_one_file_judges_several_data_sets(own_workspace, small_params):
    for method in ("supervised", "baseline"):
        for seed in (0, 1):
            fake_runs.write_run(RunKey("coco", 1, method, seed))
    params = with_study(small_params, datasets=["refscenes", "coco"])
    judged = judge(params)
    assert {j.dataset for j in judged if j.verdict != "not run"} == {"refscenes", "coco"}
    text = claims_markdown(params, judged)
    assert "## RefScenes" in text
    assert "## RefCOCO" in text


def test_counts():
    line = count_line(["supported", "supported", "undecided", "not run", "contradicted"])
    assert line == "2 of 4 claims supported (1 contradicted, 1 undecided, 1 not run)"
    assert count_line([]) == "0 of 0 claims supported"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "table22"}, "table22.yaml is not there"),
        ({"left": "Basline"}, "'Basline' is not in experiments/tables/main.yaml"),
        ({"id": "iom-above-baseline"}, "two claims have this id"),
        ({"margn": 1}, "margn"),
        ({"kind": "row"}, "kind|row"),
        ({"right": []}, "right"),
    ],
)
def test_a_wrong_claim_is_refused_in_one_line(own_workspace, small_params, change, message):
    claims = yaml.safe_load(CLAIMS.read_text())
    claims[0] |= change
    (own_workspace / "experiments/claims.yaml").write_text(yaml.safe_dump(claims))
    with pytest.raises(ConfigError, match=r"claims\.yaml") as caught:
        judge(small_params)
    assert message.split("|")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_file_there_are_no_claims(own_workspace, small_params):
    (own_workspace / "experiments/claims.yaml").unlink()
    assert judge(small_params) == []


def test_a_new_claim_is_an_entry(workspace, small_params):
    tables, figures = load_definitions()
    claims = load_claims(tables, figures)
    extra = claims[0].model_copy(
        update={"id": "mine", "metric": "mIoU", "splits": ["val", "testA"]}
    )
    records = load_records(default_source="sam", seeds=[0, 1])
    judged = Judge(small_params, records, PaperValues(), tables, figures).judge([extra])
    assert {j.metric for j in judged} == {"mIoU"}
    expected = [("val", "1"), ("testA", "1"), ("val", "10"), ("testA", "10")]
    assert [(j.split, j.fraction) for j in judged] == expected
    assert all(j.ours is not None and j.paper is None for j in judged)
