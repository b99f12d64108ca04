"""Plausible run folders made by numpy, in the contract's file formats, for the report's tests."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from semires import files
from semires.evaluation.metrics import segmentation_metrics
from semires.runs.key import RunKey, fraction_name
from semires.runs.record import PROVENANCE as PROVENANCE_FILE
from semires.runs.record import RECORD, Provenance, RunRecord

BASE = {0.1: 15.0, 1: 37.0, 5: 50.0, 10: 54.0}
GAIN = {
    "supervised": 0.0, "control": 2.0, "baseline": 3.6, "mlt": 2.5, "baseline-pwa": 3.9,
    "baseline-95": 3.5, "iom": 4.5, "cpi": 6.4, "cpi-o": 4.0, "cpi-u": 7.0, "cpi-u-plain": 6.2,
}  # fmt: skip
SPLITS = {"val": 60, "testA": 40, "testB": 40}
NASTY = "the <b>red</b> & $100_% \\input{x} =cmd|'/c calc'!A0 {circle} ~ ^ # \"é\""


def predictions(quality, seed, sizes=SPLITS):
    """A predictions table whose overall IoU is about ``quality`` percent."""
    rows, ref, image = [], 1000, 1
    shared = np.random.default_rng(11)  # objects and difficulty: the same for all methods
    own = np.random.default_rng(seed)
    for split, n_images in sizes.items():
        for _ in range(n_images):
            for _ in range(int(shared.integers(1, 4))):
                area = int(shared.integers(40, 900))
                hard = shared.normal(0, 0.18) + (0.1 if split == "testA" else -0.05)
                for sentence in range(3):
                    iou = np.clip(quality / 100 + hard + own.normal(0, 0.12), 0, 0.98)
                    inter = int(iou * area)
                    rows.append(
                        (
                            split,
                            ref,
                            image,
                            sentence,
                            "the red circle",
                            inter,
                            area + 12,
                            area,
                            inter + 12,
                        )
                    )
                ref += 1
            image += 1
    names = ["split", "ref_id", "image_id", "sentence", "expression", "intersection", "union"]
    return pd.DataFrame(rows, columns=[*names, "object_area", "predicted_area"])


def metrics_of(table):
    return {
        split: segmentation_metrics(rows["intersection"], rows["union"])
        for split, rows in table.groupby("split", sort=False)
    }


def write_run(key, gain=None, root=Path("."), expression="the red circle", sizes=SPLITS):
    """One run folder, whole."""
    folder = root / key.folder
    folder.mkdir(parents=True)
    level = BASE.get(key.fraction, 55.0) + (GAIN.get(key.method, 5.0) if gain is None else gain)
    seed = sum(map(ord, key.label)) * 31 + key.seed * 7 + int(key.fraction * 10)
    table = predictions(level, seed, sizes)
    files.write_parquet(folder / "predictions.parquet", table)
    files.write_bytes(folder / "model.safetensors", f"{seed} {level}".encode())
    metrics = metrics_of(table)
    mutual = key.method not in ("supervised", "control")
    if mutual:
        table = corrections(seed, key.method)
        files.write_parquet(folder / "corrections.parquet", table)
        metrics["pseudo"] = pseudo_metrics(table)
        np.savez_compressed(folder / "panels.npz", **panels(seed, expression))
    files.write_json(folder / "metrics.json", metrics)
    history(metrics["val"]["oIoU"], mutual, seed).to_csv(folder / "history.csv", index=False)
    record(key, metrics).write(folder)
    seal(folder)
    PROVENANCE.write(folder)
    return folder


def write_labels(key, root=Path(".")):
    """What `semires labels` writes, for three rules and two groups of references."""
    folder = root / "labels" / key.dataset / fraction_name(key.fraction) / f"seed{key.seed}"
    folder.mkdir(parents=True)
    rows = [
        [key.dataset, fraction_name(key.fraction), key.seed, part, group, rule, 20 + i,
         *(40.0 + i, 45.0 + i, 60.0, 40.0, 10.0, 40.0), 1.5]
        for part in ("val", "unlabelled")
        for group in ("all", "small")
        for i, rule in enumerate(("teacher", "cpi-u", "best possible"))
    ]  # fmt: skip
    columns = ["dataset", "fraction", "seed", "part", "group", "rule", "references"]
    columns += ["oIoU", "mIoU", "matched", "better", "worse", "unmatched", "ece"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "labels.csv", index=False)


def record(key, metrics):
    return RunRecord(
        key=key,
        params={"data": {"image_size": 64}, "mutual": {"steps": 400, "ema": 0.98},
                "refine": {"strategy": key.method}},
        metrics=metrics, best_step=400, fingerprints={"split": "ab" * 32},
        numerics={"python": "3.11", "torch": "2.15.0", "device": "cpu", "threads": 2},
        n_refs_labelled=130, n_parameters=1234567, truncated_expressions=0, files={},
    )  # fmt: skip


def change(folder, **fields):
    """Write run.json again with other values of some of its fields."""
    replace(RunRecord.read(folder), **fields).write(folder)


def seal(folder):
    """Put the digests of a folder's files into its run.json, as they are now."""
    names = sorted(p.name for p in folder.iterdir() if p.name not in (RECORD, PROVENANCE_FILE))
    change(folder, files={name: files.sha256_file(folder / name) for name in names})


PROVENANCE = Provenance(
    started="2026-11-23T00:00:00+00:00", finished="2026-11-23T00:01:00+00:00", duration_s=60.25,
    peak_rss_mb=512.0, platform="Linux x86_64", python="3.11.7", cpu={"name": "CPU"},
    git_commit="0" * 40, code="cd" * 32,
)  # fmt: skip


def corrections(seed, method, n=300):
    rng = np.random.default_rng(seed)
    union = rng.integers(80, 600, n)
    before = np.floor(rng.beta(3, 2, n) * union).astype(int)
    matched = rng.random(n) < {"cpi": 0.9, "iom": 0.5}.get(method, 0.55)
    change = np.where(rng.random(n) < 0.68, 0.15, -0.12) * union * matched
    after = np.clip(before + change, 0, union).astype(int)
    return pd.DataFrame({
        "ref_id": np.arange(n), "image_id": np.arange(n) // 2, "matched": matched,
        "intersection_before": before, "union_before": union,
        "intersection_after": after, "union_after": union,
    })  # fmt: skip


def pseudo_metrics(table):
    before = table.intersection_before / table.union_before
    after = table.intersection_after / table.union_after
    return {
        "raw_oIoU": 100 * table.intersection_before.sum() / table.union_before.sum(),
        "refined_oIoU": 100 * table.intersection_after.sum() / table.union_after.sum(),
        "matched": 100 * table.matched.mean(),
        "better": 100 * (after > before).mean(),
        "worse": 100 * (after < before).mean(),
        "unmatched": 100 * (~table.matched).mean(),
    }


def history(final, mutual, seed):
    rng = np.random.default_rng(seed)
    steps = np.arange(1, 6) * (80 if mutual else 160)
    curve = final - 4 * np.exp(-np.arange(5)) + rng.normal(0, 0.3, 5)
    curve[-1] = final
    return pd.DataFrame({
        "step": steps, "epoch": steps / 100, "train/loss": 1 / steps, "val/oIoU": curve,
        "pseudo/raw_oIoU": curve - 2 if mutual else np.nan,
        "time/samples_per_s": rng.random(5),
    })  # fmt: skip


def panels(seed, expression, k=4, size=64):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]
    image = np.zeros((k, size, size, 3), np.uint8)
    truth = np.zeros((k, size, size), bool)
    atoms = np.zeros((k, size, size), np.int32)
    for i in range(k):
        image[i] = rng.integers(90, 130, 3)
        for obj in range(1, 5):
            cy, cx, r = (
                rng.integers(12, size - 12),
                rng.integers(12, size - 12),
                rng.integers(6, 13),
            )
            disc = (yy - cy) ** 2 + (xx - cx) ** 2 < r**2
            image[i][disc] = rng.integers(0, 255, 3)
            atoms[i][disc] = obj
            truth[i] = disc
        image[i] = np.clip(image[i] + rng.normal(0, 8, image[i].shape), 0, 255).astype(np.uint8)
    shifted = np.roll(truth, 4, axis=2)
    return {
        "image": image, "truth": truth, "pseudo": shifted | np.roll(truth, 7, axis=1),
        "refined": truth | np.roll(truth, 1, axis=1), "prediction": shifted, "atoms": atoms,
        "matched": np.arange(k) % 3 != 2, "ref_id": np.arange(k) + 100,
        "rule": np.array(["best", "worst", "random", "random"][:k]),
        "expression": np.array([expression, "the leftmost of the two small striped circles",
                                "square right of the big blue ring", NASTY][:k]),
    }  # fmt: skip


def write_study(root, params, seeds=(0,), ablations=False):
    """Runs of the whole study, a split file per fraction and proposals' quality."""
    methods = ["supervised", *params.study.methods]
    for dataset in params.study.datasets:
        for fraction in params.study.fractions:
            n = int(2000 * fraction / 100)
            split = {"dataset": dataset, "fraction": fraction, "n_labelled": n,
                     "n_refs_labelled": 3 * n}  # fmt: skip
            name = f"data/splits/{dataset}/{fraction_name(fraction)}.json"
            files.write_json(root / name, split)
            for method in methods:
                for seed in seeds:
                    write_run(RunKey(dataset, fraction, method, seed), root=root)
        if ablations:
            for method in set(params.refine) - set(methods):
                write_run(RunKey(dataset, 1, method, 0), root=root)
            write_run(RunKey(dataset, 1, "cpi-u", 0, "felzenszwalb"), gain=5.5, root=root)
        for source, best in (("sam", 0.81), ("felzenszwalb", 0.79)):
            values = {"val": {"best_iou": best, "over_half": 0.91, "proposals_per_image": 41.2}}
            files.write_json(root / f"proposals/{dataset}/{source}/quality.json", values)


if __name__ == "__main__":
    import sys

    from semires.config.load import load_params

    write_study(Path(sys.argv[1]), load_params(), ablations="ablations" in sys.argv,
                seeds=(0, 1, 2) if "seeds" in sys.argv else (0,))  # fmt: skip
    print(json.dumps({"written": sys.argv[1]}))
