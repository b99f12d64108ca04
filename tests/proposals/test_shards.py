"""Shards of proposals made by several machines: ranges, a killed process, S3, the merge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import propose_toy as toy

from semires import files
from semires.errors import ConfigError, CorruptCacheError, SemiresError
from semires.proposals.propose import merge_shards, propose, propose_shards
from semires.runs import layout

SOURCE = "felzenszwalb"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    toy.make_data_set()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of an S3-compatible server on this machine."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem().mkdir("proposals")
        yield "s3://proposals/toy"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def expected() -> str:
    """The output of an ordinary run; it is removed again."""
    propose(toy.write_params(1), "toy", SOURCE)
    found = files.sha256_tree(layout.proposals("toy", SOURCE))
    shutil.rmtree("proposals")
    return found


def output() -> str:
    return files.sha256_tree(layout.proposals("toy", SOURCE))


def test_ranges_merge_to_the_same_bytes_without_a_url(capsys: pytest.CaptureFixture[str]):
    want, params = expected(), toy.write_params(1)
    propose_shards(params, "toy", SOURCE, 3, 9, None)  # 5 shards: 3 and 4
    assert not Path("proposals").exists()
    with pytest.raises(SemiresError, match=r"3 of 5 shards are missing.*: 0:1 1:2 2:3$"):
        merge_shards(params, "toy", SOURCE, None)
    propose_shards(params, "toy", SOURCE, 0, 4, None)
    said = capsys.readouterr().out
    assert "resuming from shard 1 of 4" in said
    assert "shards 0:4 of 5 are finished" in said
    merge_shards(params, "toy", SOURCE, None)
    assert output() == want
    assert not list(Path(".work").glob("propose-*"))


@pytest.mark.parametrize("first", [0, 1], ids=["empty", "beyond"])
def test_a_range_without_shards_is_refused(first: int):
    with pytest.raises(ConfigError, match="has none of the 5 shards 0:5"):
        propose_shards(toy.write_params(1), "toy", SOURCE, 5 * first, 9 * first, None)


def test_an_unknown_place_is_one_line():
    params = toy.write_params(1)
    with pytest.raises(ConfigError, match="--output: nowhere://x: Protocol not known"):
        propose_shards(params, "toy", SOURCE, 0, 1, "nowhere://x")
    Path("file").write_text("")
    with pytest.raises(SemiresError, match=r"file/x/propose-toy.*cannot be written"):
        propose_shards(params, "toy", SOURCE, 0, 1, "file/x")


def test_damage_at_the_url_is_named_and_not_published(tmp_path: Path):
    params, url = toy.write_params(1), f"file://{tmp_path}/store"
    propose_shards(params, "toy", SOURCE, 0, 9, url)
    [place] = Path("store").iterdir()
    shard = place / "shard-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptCacheError, match=r"shard-00002.parquet: damaged.*shard-00002.json"):
        merge_shards(params, "toy", SOURCE, url)
    assert not Path("proposals").exists()
    (place / "shard-00002.json").unlink()
    propose_shards(params, "toy", SOURCE, 2, 3, url)
    merge_shards(params, "toy", SOURCE, url)
    assert len(list(layout.proposals("toy", SOURCE).glob("*.parquet"))) == 5


def test_three_machines_one_killed_share_a_bucket(bucket: str):
    toy.write_params(1)

    def machine(shards: str, folder: str) -> subprocess.Popen[str]:
        """A process with its own work folder, and links to the data."""
        Path(folder).mkdir(exist_ok=True)
        for name in ("data", "pictures", "params.yaml"):
            if not Path(folder, name).exists():
                Path(folder, name).symlink_to(Path(name).absolute())
        return toy.start(SOURCE, "--shards", shards, "--output", bucket, folder=folder)

    def finish(process: subprocess.Popen[str]) -> str:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return out

    machines = [machine("0:2", "a"), machine("2:4", "b"), machine("4:9", "c")]
    deadline = time.monotonic() + 120
    while not list(Path("b").glob(".work/propose-*")):  # it has begun its shards
        assert time.monotonic() < deadline
        assert machines[1].poll() is None
        time.sleep(0.01)
    machines[1].send_signal(signal.SIGKILL)
    machines[1].communicate(timeout=60)
    for other in (machines[0], machines[2]):
        finish(other)
    merge = ("--merge", "--output", bucket)
    failed = toy.start(SOURCE, *merge)
    _, errors = failed.communicate(timeout=120)
    assert failed.returncode == 2
    assert "of 5 shards are missing" in errors
    assert errors.count("\n") == 1, errors
    finish(machine("2:4", "b"))
    finish(toy.start(SOURCE, *merge))
    merged = output()
    shutil.rmtree("proposals")
    propose(toy.load(), "toy", SOURCE)
    assert output() == merged
