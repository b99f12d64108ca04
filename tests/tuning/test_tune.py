"""The stage as a whole, in a workspace whose burn-in teacher has already labelled val."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from helpers.fake_searches import pseudo_labels
from PIL import Image

from semires.config.grid import searches
from semires.config.load import load_params
from semires.config.resolve import resolve, source_of
from semires.config.schema import Block
from semires.config.validate import read_yaml, validate
from semires.data.tables import write_tables
from semires.errors import ConfigError, CorruptCacheError, SemiresError
from semires.files import fingerprint, read_json, write_json
from semires.refine import PartitionBatch
from semires.refine.strategies import STRATEGIES, Strategy
from semires.runs import layout
from semires.runs.key import RunKey
from semires.training.mutual import make_refiner
from semires.tuning.counts import count, load, save, sources
from semires.tuning.curves import ALL_EQUAL
from semires.tuning.refined import make_table
from semires.tuning.storage import hidden
from semires.tuning.study import tune, tune_all

TUNED = "experiments/tuned"


def counts_path(params, cell):
    key = fingerprint(sources(params, cell))
    name = "-".join(["counts", cell.dataset, "1", source_of(params, cell), "seed0"])
    return layout.work(name, key) / "counts.npz", key


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Everything that the stage reads, the teacher's work included, but no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    set_teacher(b"teacher")
    made_with = load_params(ROOT / "params.yaml").proposals.sources["sam"].model_dump()
    manifest = {"format": 1, "fingerprint": "f" * 64, "n_images": 0, "shards": []}
    path = layout.proposals("refscenes", "sam") / "manifest.json"
    write_json(path, {**manifest, "params": made_with}, seal=True)
    table = pd.DataFrame({"image_id": [1]})
    write_tables("refscenes", table, table)
    return tmp_path


def set_teacher(content):
    folder = RunKey("refscenes", 1, "supervised", 0).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)


def configured(**tune_values):
    params = load_params(ROOT / "params.yaml")
    small = params.evaluation.model_copy(update={"bootstrap_samples": 200})
    settings = params.tune.model_copy(update={"trials": 30, **tune_values})
    return params.model_copy(update={"tune": settings, "evaluation": small})


def remember_counts(params, cell, seed=0):
    path, key = counts_path(params, cell)
    save(count(*pseudo_labels(seed)), path, key)


def test_stage_writes_everything_and_goes_on(workspace, capsys):
    params, cell = configured(), RunKey("refscenes", 1, "cpi", 0)
    remember_counts(params, cell)
    tune(params, cell)
    folder = Path("tune/refscenes/1/cpi/seed0")
    names = {path.name for path in folder.iterdir()}
    pictures = {"history.png", "curves.png", "importances.png", "plane.png"}
    tables = {"trials.csv", "curves.csv", "plane.csv"}
    counts = {"seen.npz", "held_out.npz"}
    assert names == pictures | tables | counts | {"best.yaml", "summary.json"}
    for name in pictures:
        assert min(Image.open(folder / name).size) > 200
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 30
    assert trials.loc[0, ["params_threshold_u", "params_threshold_o"]].tolist() == [0.7, 0.7]
    assert trials["value"].tolist() == trials["oIoU"].tolist()
    best = read_yaml(folder / "best.yaml")
    row = trials.loc[trials["value"].idxmax()]
    assert best == {k: row[f"params_{k}"] for k in ("threshold_u", "threshold_o")}
    assert read_yaml("experiments/tuned/refscenes-1-cpi.yaml") == best
    summary = read_json(folder / "summary.json")
    check_summary(summary, trials)
    check_curves(folder, summary, best)
    assert "best minus paper, held out" in capsys.readouterr().out
    # The number of trials is the total: nothing is added, and the outputs are the same bytes.
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tune(params, cell)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tune(configured(trials=36), cell)
    longer = pd.read_csv(folder / "trials.csv")
    assert len(longer) == 36
    assert longer[:30].equals(trials)


def check_summary(summary, trials):
    seen, held_out = summary["seen"], summary["held_out"]
    assert (seen["refs"], held_out["refs"]) == (30, 30)
    assert seen["images"] + held_out["images"] == 30
    assert seen["best"]["oIoU"] == pytest.approx(trials["value"].max())
    assert seen["paper"]["oIoU"] == pytest.approx(trials["value"][0])
    assert seen["best"]["oIoU"] >= seen["paper"]["oIoU"]
    assert seen["untouched"]["matched"] == 0
    for half in (seen, held_out):
        for name in ("best", "paper", "untouched"):
            interval = half[name]["oIoU_interval"]
            assert interval["low"] < half[name]["oIoU"] < interval["high"]
        difference = half["best_minus_paper"]
        assert difference["value"] == pytest.approx(half["best"]["oIoU"] - half["paper"]["oIoU"])


def check_curves(folder, summary, best):
    """The curves hold the paper's and the best values exactly, and their figures' intervals."""
    curves = pd.read_csv(folder / "curves.csv")
    assert set(curves["threshold"]) == {"threshold_u", "threshold_o", ALL_EQUAL}
    for (half, name), curve in curves.groupby(["half", "threshold"]):
        if name == ALL_EQUAL:
            paper = curve.set_index("value").loc[0.7]
            assert paper["oIoU"] == pytest.approx(summary[half]["paper"]["oIoU"])
            continue
        assert curve["value"].is_monotonic_increasing
        assert set(np.linspace(0, 1, 101)) <= set(curve["value"])
        assert (curve["low"] <= curve["oIoU"]).all()
        assert (curve["oIoU"] <= curve["high"]).all()
        marked = curve.set_index("mark")
        assert marked.loc["best", "value"] == best[name]
        assert marked.loc["paper", "value"] == 0.7
        assert marked.loc["best", "oIoU"] == pytest.approx(summary[half]["best"]["oIoU"])
        assert marked.loc["best", "mIoU"] == pytest.approx(summary[half]["best"]["mIoU"])
    plane = pd.read_csv(folder / "plane.csv")
    assert len(plane) == 41**2
    assert plane["oIoU"].max() > summary["seen"]["paper"]["oIoU"]


def test_another_teacher_is_another_study(workspace):
    params, cell = configured(trials=12), RunKey("refscenes", 1, "iom", 0)
    remember_counts(params, cell)
    tune(params, cell)
    first = Path("tune/refscenes/1/iom/seed0/trials.csv").read_bytes()
    set_teacher(b"another teacher")
    remember_counts(params, cell, seed=1)
    tune(params, cell)
    assert Path("tune/refscenes/1/iom/seed0/trials.csv").read_bytes() != first
    set_teacher(b"teacher")
    tune(params, cell)
    assert Path("tune/refscenes/1/iom/seed0/trials.csv").read_bytes() == first


def test_proposals_of_other_parameters_are_refused(workspace):
    params, cell = configured(), RunKey("refscenes", 1, "cpi", 0)
    remember_counts(params, cell)
    path = layout.proposals("refscenes", "sam") / "manifest.json"
    manifest = read_json(path)
    manifest["params"]["points_per_side"] += 1
    write_json(path, manifest, seal=True)
    with pytest.raises(CorruptCacheError, match=r"proposals\.sources\.sam has now; run the stage"):
        tune(params, cell)


def test_grid_runs_the_papers_values_alone(workspace):
    params, cell = configured(sampler="grid", trials=200), RunKey("refscenes", 1, "cpi-u", 0)
    remember_counts(params, cell)
    tune(params, cell)
    trials = pd.read_csv("tune/refscenes/1/cpi-u/seed0/trials.csv")
    assert trials["params_threshold_u"].tolist() == [0.5, 0.6, 0.7]


def searching(params, methods):
    """The parameters of a study that searches ``methods`` at 1 % with seed 0."""
    block = Block(datasets=["refscenes"], fractions=[1.0], methods=methods, seeds=[0])
    study = params.study.model_copy(update={"tune": [block], "runs": params.study.runs[:2]})
    return params.model_copy(update={"study": study})


def test_one_search_serves_all_seeds_of_a_method(workspace, capsys):
    """The tuned file has no seed in its name: only the search with the study's seed writes it."""
    tuned = Path("experiments/tuned/refscenes-1-iom.yaml")
    for seed in (0, 1):
        cell = RunKey("refscenes", 1, "iom", seed)
        teacher = RunKey("refscenes", 1, "supervised", seed).folder / "model.safetensors"
        teacher.parent.mkdir(parents=True, exist_ok=True)
        teacher.write_bytes(b"teacher %d" % seed)
        params = searching(configured(trials=5), ["iom"])
        key = fingerprint(sources(params, cell))
        path = layout.work(f"counts-refscenes-1-sam-seed{seed}", key) / "counts.npz"
        save(count(*pseudo_labels(seed)), path, key)
        tune(params, cell)
        assert "seed 0." in tuned.read_text()
        assert Path(f"tune/refscenes/1/iom/seed{seed}/best.yaml").is_file()
    assert f"{tuned}: not changed, because the seed of study.tune is 0" in capsys.readouterr().out


def test_a_search_on_other_images_than_planned_is_kept_apart(workspace, capsys):
    """`--on labelled` changes neither the planned search's folder nor its tuned file."""
    params, cell = searching(configured(trials=5), ["cpi-u"]), RunKey("refscenes", 1, "cpi-u", 0)
    remember_counts(params, cell)
    tune(params, cell)
    planned = [*Path("tune/refscenes/1/cpi-u/seed0").iterdir(), *Path(TUNED).iterdir()]
    before = {path: path.read_bytes() for path in planned}
    assert "not changed" not in capsys.readouterr().out
    on_labelled = params.model_copy(
        update={"tune": params.tune.model_copy(update={"on": "labelled"})}
    )
    write_json(layout.split_file("refscenes", 1), {})
    key = fingerprint(sources(resolve(on_labelled, cell), cell))
    path = layout.work("folds-refscenes-1-sam-seed0", key) / "counts.npz"
    save(count(*pseudo_labels(3)), path, key)
    tune(params, cell, on="labelled")
    assert {path: path.read_bytes() for path in planned} == before
    folder = "tune/refscenes/1/cpi-u@labelled/seed0"
    assert read_json(f"{folder}/summary.json")["on"] == "labelled"
    assert sorted(path.name for path in Path(TUNED).iterdir()) == ["refscenes-1-cpi-u.yaml"]
    out = capsys.readouterr().out
    reason = "params.yaml searches cpi-u on other images than `--on`"
    line = f"{TUNED}/refscenes-1-cpi-u.yaml: not changed, because {reason}; the result is in"
    assert f"{line} {folder}\n" in out
    # The same images as in params.yaml: the planned search.
    tune(params, cell, on="val")
    assert {path: path.read_bytes() for path in planned} == before
    assert "not changed" not in capsys.readouterr().out


def test_all_searches_of_the_study_in_one_process(workspace, capsys):
    methods = ["iom", "cpi", "cpi-o", "cpi-u"]
    params = searching(configured(trials=8), methods)
    keys = searches(params)
    assert [key.name for key in keys] == [f"{method}-1-seed0" for method in methods]
    remember_counts(params, keys[0])
    tune_all(params, keys)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "oIoU of the refined labels, percent"
    assert [line.split()[2] for line in lines[3:]] == methods
    assert all("seen half of val" in line for line in lines[3:])
    for method in methods:
        summary = read_json(f"tune/refscenes/1/{method}/seed0/summary.json")
        (row,) = [line for line in lines if f" {method} " in line]
        for half in ("seen", "held_out"):
            assert f"{summary[half]['best']['oIoU']:.2f}" in row
        assert Path(f"experiments/tuned/refscenes-1-{method}.yaml").is_file()


def test_a_rule_of_ones_own_is_searched(workspace, monkeypatch):
    """One entry in STRATEGIES, then a method in params.yaml: nothing else is edited."""
    rule = Strategy(
        {"least_f": 0.6},
        choose=lambda overlaps, least_f: (
            2 * overlaps.intersections / (overlaps.areas + overlaps.label_area).clip(min=1)
            > least_f
        ),
    )
    monkeypatch.setitem(STRATEGIES, "dice", rule)
    tree = configured(trials=20).model_dump()
    tree["refine"]["mine"] = {"strategy": "dice", "least_f": 0.6, "pwa": True}
    params, key = validate(tree), RunKey("refscenes", 1, "mine", 0)
    remember_counts(params, key)
    tune(params, key)
    folder = Path("tune/refscenes/1/mine/seed0")
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["params_least_f"].nunique() == 20
    assert trials.loc[0, "params_least_f"] == 0.6
    best = read_yaml("experiments/tuned/refscenes-1-mine.yaml")
    assert best == {"least_f": trials.loc[trials["value"].idxmax(), "params_least_f"]}
    assert set(pd.read_csv(folder / "curves.csv")["threshold"]) == {"least_f"}
    # Mutual learning with the tuned value: both paths of the refiner use it.
    tree["refine"]["mine"]["thresholds"] = "tuned"
    tuned = resolve(validate(tree), key)
    refiner = make_refiner(tuned, tuned.refine["mine"])
    assert refiner.thresholds == best
    labels, partitions = pseudo_labels()
    hard = torch.from_numpy(np.stack([item.label for item in labels])).float()
    logits = torch.stack([1 - hard, hard], dim=1)
    parts = [partitions[item.image_id] for item in labels]
    single, at_once = refiner(logits, parts), refiner(logits, PartitionBatch.of(parts))
    assert torch.equal(single.labels, at_once.labels)
    assert 0 < int(single.matched.sum()) < len(labels)


def test_no_password_of_a_storage_is_shown():
    assert hidden("mysql://me:secret@host/db") == "mysql://me:***@host/db"
    assert hidden("sqlite:///a.db") == "sqlite:///a.db"


def test_bad_input_is_one_line(workspace):
    cell = RunKey("refscenes", 1, "baseline", 0)
    with pytest.raises(
        ConfigError, match=r"refine\.baseline: the strategy `none` has no thresholds; search the"
    ):
        tune(configured(), cell)
    (RunKey("refscenes", 1, "supervised", 0).folder / "model.safetensors").unlink()
    with pytest.raises(SemiresError, match=r"model\.safetensors: no such file; run the burn-in"):
        tune(configured(), RunKey("refscenes", 1, "iom", 0))


def test_front_of_quality_and_share(workspace, capsys):
    """Two objectives: the same search, and the trials that no other trial dominates."""
    params, cell = (
        configured(objective="labels-and-share", trials=40),
        RunKey("refscenes", 1, "cpi-u", 0),
    )
    remember_counts(params, cell)
    tune(params, cell)
    folder = Path("tune/refscenes/1/cpi-u/seed0")
    front, trials = (pd.read_csv(folder / f"{name}.csv") for name in ("front", "trials"))
    values = trials[["replaced_oIoU", "matched"]].to_numpy()
    expected = [
        i
        for i, value in enumerate(values)
        if not ((values >= value).all(1) & ((values > value).any(1) | (np.arange(40) < i))).any()
    ]
    assert sorted(front["number"]) == expected
    assert 3 < len(front) < 40
    assert front["seen_share"].is_monotonic_decreasing
    assert (np.diff(front["seen_oIoU"]) > 0).all()
    # The pixels of replaced labels alone count.
    first = front.iloc[0]
    table = make_table(load(folder / "held_out.npz", made_from=""), "cpi-u")
    outcome = table.outcome({"threshold_u": first["params_threshold_u"]})
    pixels = (part[outcome.matched].sum() for part in (outcome.intersection, outcome.union))
    assert first["held_out_oIoU"] == pytest.approx(100 * next(pixels) / next(pixels))
    assert first["held_out_share"] == 100 * outcome.matched.mean()
    # The best trial is the one that is best for all labels, as with `objective: labels`.
    best = trials.loc[trials["oIoU"].idxmax(), "params_threshold_u"]
    assert read_yaml("experiments/tuned/refscenes-1-cpi-u.yaml") == {"threshold_u": best}
    assert min(Image.open(folder / "front.png").size) > 200
    out = capsys.readouterr().out
    assert f"front: {len(front)} of 40 trials" in out
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    tune(configured(objective="labels-and-share", trials=20), cell)
    tune(params, cell)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ConfigError, match=r"cmaes. has one objective"):
        validate({**params.model_dump(), "tune": {**params.tune.model_dump(), "sampler": "cmaes"}})
