"""The stage as a whole, in a workspace whose burn-in teacher has already labelled val."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from semires.config.load import load_params
from semires.config.resolve import source_of
from semires.config.validate import read_yaml
from semires.errors import ConfigError, CorruptCacheError, SemiresError
from semires.files import fingerprint, read_json, write_json, write_parquet
from semires.refine.partition import Partition
from semires.runs import layout
from semires.runs.key import RunKey
from semires.tuning.counts import PseudoLabel, count, save, sources
from semires.tuning.results import without_password
from semires.tuning.study import tune

ROOT = Path(__file__).parents[2]


def ellipses(rng, number, size=24):
    yy, xx = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0, size, (2, number, 1, 1)), rng.uniform(2, 9, (2, number, 1, 1))
    return ((yy - centre[0]) / radius[0]) ** 2 + ((xx - centre[1]) / radius[1]) ** 2 <= 1


def pseudo_labels(seed=0, images=30, refs=2):
    rng = np.random.default_rng(seed)
    partitions, labels = {}, []
    for image in range(images):
        masks = ellipses(rng, 8)
        partitions[image] = Partition.from_masks(masks)
        for ref in range(refs):
            truth = masks[rng.integers(8)]
            label = np.roll(truth, rng.integers(-3, 4, 2), (0, 1)) & (rng.random((24, 24)) < 0.8)
            labels.append(PseudoLabel(image * refs + ref, image, 0, label, truth))
    return labels, partitions


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
    write_json(path, {**manifest, "params": made_with})
    table = pd.DataFrame({"image_id": [1]})
    for name in ("images", "refs"):
        write_parquet(layout.prepared("refscenes") / f"{name}.parquet", table)
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
    pictures = {"history.png", "slices.png", "importances.png", "contour.png"}
    assert names == pictures | {"best.yaml", "trials.csv", "summary.json"}
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


def test_another_teacher_is_another_study(workspace):
    params, cell = configured(trials=12), RunKey("refscenes", 1, "iom", 0)
    remember_counts(params, cell)
    tune(params, cell)
    first = Path("tune/refscenes/1/iom/seed0/trials.csv").read_bytes()
    set_teacher(b"another teacher")
    remember_counts(params, cell, seed=1)
    tune(params, cell)
    assert Path("tune/refscenes/1/iom/seed0/trials.csv").read_bytes() != first
    # A storage that the user gave is refused instead, with both teachers' digests.
    shared = configured(trials=12, storage=f"sqlite:///{workspace / 'shared.db'}")
    tune(shared, cell)
    set_teacher(b"teacher")
    with pytest.raises(SemiresError, match=r"teacher \w{12} there, \w{12} here"):
        tune(shared, cell)


def test_proposals_of_other_parameters_are_refused(workspace):
    params, cell = configured(), RunKey("refscenes", 1, "cpi", 0)
    remember_counts(params, cell)
    path = layout.proposals("refscenes", "sam") / "manifest.json"
    manifest = read_json(path)
    manifest["params"]["points_per_side"] += 1
    write_json(path, manifest)
    with pytest.raises(CorruptCacheError, match=r"proposals\.sources\.sam has now; run the stage"):
        tune(params, cell)


def test_grid_runs_the_papers_values_alone(workspace):
    params, cell = configured(sampler="grid", trials=200), RunKey("refscenes", 1, "cpi-u", 0)
    remember_counts(params, cell)
    tune(params, cell)
    trials = pd.read_csv("tune/refscenes/1/cpi-u/seed0/trials.csv")
    assert trials["params_threshold_u"].tolist() == [0.5, 0.6, 0.7]


def test_one_search_speaks_for_a_method(workspace, capsys):
    """Its file has no seed in its name: the seed that the study names writes it, no other one."""
    tuned = Path("experiments/tuned/refscenes-1-iom.yaml")
    for seed in (0, 1):
        cell = RunKey("refscenes", 1, "iom", seed)
        teacher = RunKey("refscenes", 1, "supervised", seed).folder / "model.safetensors"
        teacher.parent.mkdir(parents=True, exist_ok=True)
        teacher.write_bytes(b"teacher %d" % seed)
        params = configured(trials=5)
        assert [block.seeds for block in params.study.tune] == [[0]]
        key = fingerprint(sources(params, cell))
        path = layout.work(f"counts-refscenes-1-sam-seed{seed}", key) / "counts.npz"
        save(count(*pseudo_labels(seed)), path, key)
        tune(params, cell)
        assert "seed 0." in tuned.read_text()
        assert Path(f"tune/refscenes/1/iom/seed{seed}/best.yaml").is_file()
    assert f"{tuned}: not changed, since the seed of study.tune is 0" in capsys.readouterr().out


def test_no_password_leaves_the_parameters():
    shown = without_password(configured(storage="mysql://me:secret@host/db"))
    assert shown.tune.storage == "mysql://me:***@host/db"
    assert without_password(configured()) == configured()


def test_bad_input_is_one_line(workspace):
    cell = RunKey("refscenes", 1, "baseline", 0)
    with pytest.raises(ConfigError, match=r"refine\.baseline: .* strategy none has none"):
        tune(configured(), cell)
    (RunKey("refscenes", 1, "supervised", 0).folder / "model.safetensors").unlink()
    with pytest.raises(SemiresError, match=r"model\.safetensors: no such file; run the burn-in"):
        tune(configured(), RunKey("refscenes", 1, "iom", 0))
