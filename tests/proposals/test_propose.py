"""The stage `propose`: the same bytes however it is run, resumed, shared out or damaged."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.propose_toy import N_IMAGES, make_data_set, rectangle, start, write_params
from PIL import Image
from safetensors.torch import save_file

from semires import files
from semires.config.load import load_params
from semires.errors import BusyError, DataError
from semires.process import lock
from semires.proposals.cache import ProposalCache
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.propose import propose
from semires.runs import layout


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    make_data_set()


def output(source: str = "felzenszwalb") -> str:
    return files.sha256_tree(layout.proposals("toy", source))


def expected(source: str = "felzenszwalb") -> str:
    """The output of an unbroken run in one process; it is removed again."""
    params = load_params("params.yaml")
    one = params.runtime.model_copy(update={"processes": 1})
    propose(params.model_copy(update={"runtime": one}), "toy", source)
    found = output(source)
    shutil.rmtree("proposals")
    return found


def test_one_partition_per_image_and_its_quality(capsys: pytest.CaptureFixture[str]) -> None:
    propose(write_params(1), "toy", "felzenszwalb")
    folder = layout.proposals("toy", "felzenszwalb")
    cache = ProposalCache(folder)
    assert sorted(cache) == [500 + i for i in range(N_IMAGES)]
    assert [s["n"] for s in cache.manifest["shards"]] == [3, 3, 3, 3, 2]
    assert [s["first"] for s in cache.manifest["shards"]] == [0, 3, 6, 9, 12]
    best, counts = [], []
    for index in range(1, N_IMAGES, 2):
        masks = cache[500 + index].masks()
        truth = np.zeros(masks.shape[1:], bool)
        truth[rectangle(index)] = True
        best.append(max((m & truth).sum() / (m | truth).sum() for m in masks))
        counts.append(len(masks))
    quality = files.read_json(folder / "quality.json")["val"]
    assert quality["best_iou"] == pytest.approx(np.mean(best))
    assert quality["over_half"] == pytest.approx(np.mean(np.array(best) > 0.5))
    assert quality["proposals_per_image"] == pytest.approx(np.mean(counts))
    assert quality["best_iou"] > 0.8
    assert not list(Path(".work").glob("propose-*"))
    assert "14 images" in capsys.readouterr().out


def test_processes_and_ranks_do_not_change_a_byte() -> None:
    write_params(1)
    want = expected()
    propose(write_params(2), "toy", "felzenszwalb")
    assert output() == want
    shutil.rmtree("proposals")
    ranks = [start("felzenszwalb", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    assert output() == want


def test_sam_as_a_source() -> None:
    build = pytest.importorskip("semires.proposals.tiny_sam").build_tiny_sam
    torch.manual_seed(0)
    save_file(build().state_dict(), "tiny.safetensors")
    params = write_params(1)
    prepare_checkpoint(params)
    want = expected("sam")
    propose(write_params(2), "toy", "sam")
    assert output("sam") == want
    assert len(ProposalCache(layout.proposals("toy", "sam"))) == N_IMAGES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_damaged_and_resumed_is_the_same(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = 1 if number == signal.SIGTERM else 2
    write_params(processes, scales=[20.0 + i for i in range(30)])  # slow enough to be caught
    process = start("felzenszwalb")
    deadline = time.monotonic() + 60
    while not list(Path(".work").glob("propose-*/shard-*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert not Path("proposals").exists()
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, errors
        assert "stopped by SIGTERM" in errors
        assert "Traceback" not in errors
    [work] = Path(".work").glob("propose-*")
    finished = work / "shard-00000.parquet"
    assert 0 < len(list(work.glob("shard-*.parquet"))) < 5
    if number == signal.SIGKILL:
        data = bytearray(finished.read_bytes())
        data[len(data) // 2] ^= 4
        finished.write_bytes(data)
    params = load_params("params.yaml")
    one = params.runtime.model_copy(update={"processes": 1})
    propose(params.model_copy(update={"runtime": one}), "toy", "felzenszwalb")
    said = capsys.readouterr().out
    assert ("shard-00000.parquet: damaged" in said) == (number == signal.SIGKILL)
    resumed = output()
    shutil.rmtree("proposals")
    assert expected() == resumed


def test_second_process_is_refused() -> None:
    params = write_params(1)
    from semires.proposals.propose import _plan

    work = _plan(params, "toy", "felzenszwalb").work
    with (
        lock(work / "rank0.lock", "the same"),
        pytest.raises(BusyError, match="another process is making the proposals of toy"),
    ):
        propose(params, "toy", "felzenszwalb")


def test_nothing_to_do_is_said_and_damage_is_repaired(capsys: pytest.CaptureFixture[str]) -> None:
    params = write_params(1)
    propose(params, "toy", "felzenszwalb")
    want = output()
    capsys.readouterr()
    propose(params, "toy", "felzenszwalb")
    assert "already" in capsys.readouterr().out
    (layout.proposals("toy", "felzenszwalb") / "shard-00002.parquet").write_bytes(b"")
    propose(params, "toy", "felzenszwalb")
    assert output() == want


def test_what_it_is_made_from_changes_the_fingerprint() -> None:
    def fingerprint(**settings: object) -> str:
        propose(write_params(1, **settings), "toy", "felzenszwalb")
        path = layout.proposals("toy", "felzenszwalb") / "manifest.json"
        return str(files.read_json(path)["fingerprint"])

    first = fingerprint()
    assert fingerprint(sigma=0.9) != first
    assert fingerprint() == first
    pixels = np.asarray(Image.open("pictures/003.png"))
    Image.fromarray(255 - pixels).save("pictures/003.png", compress_level=0)
    assert fingerprint() != first


def test_bad_images_are_one_line() -> None:
    params = write_params(2)
    Path("pictures/004.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"004\.png: cannot be read"):
        propose(params, "toy", "felzenszwalb")
    Image.new("RGB", (10, 20)).save("pictures/004.png")
    with pytest.raises(DataError, match="10x20 pixels, but the annotation says"):
        propose(params, "toy", "felzenszwalb")
    Path("pictures/004.png").unlink()
    Path("pictures/007.png").unlink()
    with pytest.raises(DataError, match=r"2 of 14 images are missing: 004\.png, 007\.png"):
        propose(params, "toy", "felzenszwalb")
    assert not Path("proposals").exists()
