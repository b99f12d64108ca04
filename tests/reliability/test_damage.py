"""Every kind of artefact, damaged in `damage.WAYS` seeded ways: refused by name, or unharmed.

Of our own making (sealed, or with a digest elsewhere): the same content or an error. Inputs of
formats without a checksum: a well-formed result or an error; nothing else is ever raised.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, TESTS, study_worker
from helpers.damage import WAYS, damaged
from helpers.small_study import small_params
from PIL import Image

from semires import files
from semires.config.load import load_params
from semires.config.schema import Params
from semires.data.pictures import read_picture
from semires.data.refer import read_refer
from semires.data.tables import Tables
from semires.errors import CorruptCacheError, SemiresError
from semires.models import load_official_lavt
from semires.models.weights import load_weights
from semires.proposals.cache import ProposalCache
from semires.proposals.checkpoint import checkpoint_sha256
from semires.reporting.records import load_records
from semires.runs import layout
from semires.runs.key import RunKey
from semires.training.state import load_state, save_state

CELL = RunKey("refscenes", 25, "supervised", 0)
RUN = str(CELL.folder)


def cache() -> Any:
    found = ProposalCache(layout.proposals("refscenes", "felzenszwalb"))
    return [found[i].to_bytes() for i in found]


def tables() -> Any:
    found = Tables.load("refscenes")
    return [found.images.to_json(), found.refs.to_json()]


def labelled() -> Any:
    one, other = Tables.load("refscenes").labelled_and_unlabelled("refscenes", 25)
    return [one["ref_id"].tolist(), other["ref_id"].tolist()]


def record() -> Any:
    (run,) = load_records().all
    panels = {} if run.panels is None else {k: v.tolist() for k, v in run.panels.items()}
    values = {k: v for k, v in asdict(run.record).items() if k != "files"}
    parts = [run.metrics, run.predictions.to_json(), run.history.to_json(), panels, values]
    return json.dumps([run.key.__dict__, parts], sort_keys=True)


def weights() -> Any:
    model = torch.nn.Linear(40, 30)
    load_weights(model, "weights/model.safetensors")
    return model.weight.tolist()


@dataclass(frozen=True)
class Kind:
    """``read`` returns what a stage would work with; ``refused`` is the folder or file named."""

    path: str
    read: Callable[[], Any]
    named: str = ""


KINDS = {
    "shard": Kind("proposals/refscenes/felzenszwalb/shard-00000.parquet", cache),
    "manifest": Kind("proposals/refscenes/felzenszwalb/manifest.json", cache),
    "images table": Kind("data/prepared/refscenes/images.parquet", tables),
    "refs table": Kind("data/prepared/refscenes/refs.parquet", tables),
    "split": Kind("data/splits/refscenes/25.json", labelled),
    "run.json": Kind(f"{RUN}/run.json", record, RUN),
    "metrics.json": Kind(f"{RUN}/metrics.json", record),
    "history.csv": Kind(f"{RUN}/history.csv", record),
    "predictions": Kind(f"{RUN}/predictions.parquet", record),
    "panels": Kind(f"{RUN}/panels.npz", record),
    "safetensors": Kind("weights/model.safetensors", weights),
    "sam.json": Kind("sam/sam.json", checkpoint_sha256),
}  # fmt: skip


@pytest.fixture(scope="module")
def artefacts(small_study: Path) -> Path:
    """The study, and the artefacts that it lacks."""
    from safetensors.torch import save_file

    Path("weights").mkdir()
    torch.manual_seed(0)
    save_file(torch.nn.Linear(40, 30).state_dict(), "weights/model.safetensors")
    digest = files.sha256_file("weights/model.safetensors")
    Path("weights/model.safetensors.sha256").write_text(digest + "\n")
    np.savez_compressed(f"{RUN}/panels.npz", image=np.arange(3000).reshape(3, 10, 100) % 251)
    run = files.read_json(f"{RUN}/run.json")
    run["files"]["panels.npz"] = files.sha256_file(f"{RUN}/panels.npz")
    files.write_json(f"{RUN}/run.json", run, seal=True)
    sam = {"model": "tiny", "sha256": "ab" * 32, "path": "x.safetensors"}
    files.write_json("sam/sam.json", sam, seal=True)
    return small_study


def one_line(error: SemiresError, named: str) -> None:
    assert named in str(error), error
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", KINDS)
def test_what_we_wrote_is_the_same_or_refused(artefacts: Path, name: str):
    kind = KINDS[name]
    path = Path(kind.path)
    good, want, refused = path.read_bytes(), kind.read(), 0
    try:
        for way, bad in damaged(good, name):
            path.write_bytes(bad)
            try:
                assert kind.read() == want, way
            except SemiresError as error:
                refused += 1
                one_line(error, kind.named or kind.path)
    finally:
        path.write_bytes(good)
    assert kind.read() == want
    assert refused > 0.8 * WAYS, "nearly all damage is noticed, the rest harms nothing"


def test_a_training_state_falls_back_and_says_so(tmp_path: Path, capsys: Any):
    path = tmp_path / "last.pt"
    states = [{"step": step, "weights": torch.full((50, 9), float(step))} for step in (1, 2)]
    for state in states:
        save_state(path, state)
    good, previous = path.read_bytes(), (tmp_path / "last.previous.pt").read_bytes()
    for _, bad in damaged(good, "state"):
        path.write_bytes(bad)
        found = load_state(path)
        assert found is not None
        assert found["step"] == 1
        assert torch.equal(found["weights"], states[0]["weights"])
        assert "last.pt: damaged training state" in capsys.readouterr().out
    for _, bad in damaged(previous, "both"):
        path.write_bytes(bad)
        (tmp_path / "last.previous.pt").write_bytes(bad)
        assert load_state(path) is None


def test_a_cache_is_made_again(artefacts: Path, capsys: Any):
    """Of the 120 ways, all are noticed by `propose`; in three of them it is let do its work."""
    from semires.proposals.propose import _is_published, _plan, propose

    params = small_params()
    folder = layout.proposals("refscenes", "felzenszwalb")
    job, whole = _plan(params, "refscenes", "felzenszwalb"), files.sha256_tree(folder)
    for number, (way, bad) in enumerate(damaged((folder / "shard-00000.parquet").read_bytes(), "")):
        path = folder / ("shard-00000.parquet" if number % 2 else "manifest.json")
        good = path.read_bytes()
        path.write_bytes(bad)
        assert not _is_published(job), way
        if number % 40 == 0:
            propose(params, "refscenes", "felzenszwalb")
            assert "making them again" in capsys.readouterr().out
        else:
            path.write_bytes(good)
        assert files.sha256_tree(folder) == whole


def test_annotations_are_tables_or_refused(artefacts: Path, tmp_path: Path):
    shutil.copytree("data/raw/refscenes", tmp_path / "refscenes")
    for name in ("instances.json", "refs(unc).p"):
        path = tmp_path / "refscenes" / name
        good = path.read_bytes()
        for way, bad in damaged(good, name):
            path.write_bytes(bad)
            try:
                images, refs = read_refer(tmp_path, "refscenes", "unc")
            except SemiresError as error:
                one_line(error, str(tmp_path / "refscenes"))
            else:
                assert set(refs["image_id"]) == set(images["image_id"]), way
                assert (refs["area"] > 0).all()
        path.write_bytes(good)


PICTURES = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "TIFF": "tif", "WEBP": "webp", "BMP": "bmp"}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_arrays_or_refused(tmp_path: Path, kind: str, capfd: Any):
    path = tmp_path / f"x.{PICTURES[kind]}"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(np.repeat(pixels, 2, axis=1)).save(path, format=kind)
    good, want = path.read_bytes(), read_picture(path)
    for way, bad in damaged(good, kind):
        path.write_bytes(bad)
        try:
            found = read_picture(path)
        except SemiresError as error:
            one_line(error, str(path))
        else:
            assert found.dtype == np.uint8
            assert found.ndim == want.ndim
            if kind == "PNG":  # it carries checksums, the others do not
                assert np.array_equal(found, want), way


def test_parameters_are_valid_or_refused(tmp_path: Path):
    path = tmp_path / "params.yaml"
    good = (ROOT / "experiments/demo.yaml").read_bytes()
    for _, bad in damaged(good, "params"):
        path.write_bytes(bad)
        try:
            assert isinstance(load_params(path), Params)
        except SemiresError as error:
            one_line(error, str(path))


def test_published_weights_are_the_same_or_refused(tmp_path: Path):
    good = (TESTS / "golden/lavt_w7.pth").read_bytes()
    want = load_official_lavt(TESTS / "golden/lavt_w7.pth").state_dict()
    path, refused = tmp_path / "x.pth", 0
    for way, bad in damaged(good, "pth"):
        path.write_bytes(bad)
        try:
            found = load_official_lavt(path).state_dict()
        except SemiresError as error:
            refused += 1
            one_line(error, str(path))
        else:
            assert all(torch.equal(found[name], want[name]) for name in want), way
    assert refused > 0.8 * WAYS


def run_study(path: Path) -> int:
    """Four trials, or as many as are missing; how many there are."""
    search, table = study_worker.make_search(f"sqlite:///{path}", 4), study_worker.make_table(10, 4)

    def objective(trial: Any) -> float:
        outcome = table.outcome(study_worker.suggest(trial, study_worker.AXES))
        return float(study_worker.summarise(outcome, table.labels)["oIoU"])

    with study_worker.storage.explained(search.url):
        study = study_worker.studies.open_study(search)
        study_worker.studies.run_in_memory(study, search, objective)
        return len(study_worker.studies.finished(study))


def test_a_study_s_database_is_usable_or_refused(tmp_path: Path):
    assert run_study(tmp_path / "good.db") == 4
    with contextlib.closing(sqlite3.connect(tmp_path / "good.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    refused = 0
    for number, (_, bad) in enumerate(damaged((tmp_path / "good.db").read_bytes(), "sqlite")):
        path = tmp_path / str(number) / "study.db"
        path.parent.mkdir()
        path.write_bytes(bad)
        try:
            assert run_study(path) >= 4
        except SemiresError as error:
            refused += 1
            one_line(error, str(path))
    assert refused > 0.4 * WAYS, "pages without a checksum: values may change, order may not"


def test_counts_of_a_search_are_the_same_or_counted_again(tmp_path: Path):
    from semires.tuning import counts as module

    arrays = {f.name: np.arange(7) for f in module.fields(module.Counts)}
    counts, made = module.Counts(**arrays), []
    path = tmp_path / "counts.npz"
    module.save(counts, path, "key")
    for _, bad in damaged(path.read_bytes(), "counts"):
        path.write_bytes(bad)
        found = module.cached(path, "key", lambda: made.append(1) or counts)
        assert np.array_equal(found.area, counts.area)
    assert len(made) == WAYS


def test_foreign_tables_are_refused(tmp_path: Path):
    """Parquet of somebody else's, whole, but not what a stage wants."""
    for columns in (["a"], [], ["image_id"]):
        pd.DataFrame({name: [1] for name in columns}).to_parquet(tmp_path / "x.parquet")
        with pytest.raises(SemiresError, match=r"x\.parquet: .*image_id"):
            files.read_parquet(tmp_path / "x.parquet", ["image_id", "mask"])
    with contextlib.suppress(SemiresError):
        files.read_parquet(tmp_path / "x.parquet")


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1, "seal": null}', "[1]"])
def test_a_sealed_file_without_its_seal_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "made.json"
    path.write_text(text)
    with pytest.raises(CorruptCacheError, match=r"made\.json: damaged"):
        files.read_json(path, sealed=True)
    if "seal" in text:
        with pytest.raises(CorruptCacheError, match=r"made\.json: damaged"):
            files.read_json(path)
    else:
        assert files.read_json(path) == json.loads(text)
