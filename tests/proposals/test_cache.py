"""Proposals on disk: what goes in comes out, and no damage passes unnoticed."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semires import files
from semires.errors import CorruptCacheError, SemiresError
from semires.proposals.cache import FORMAT, ProposalCache, Row, write_shard
from semires.refine.partition import Partition

SIZES = [(7, 9), (12, 12), (20, 31), (9, 7), (16, 10)]


def masks_of(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    height, width = SIZES[index]
    masks = np.zeros((index, height, width), bool)  # the first image has no proposals
    for mask in masks:
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = True
    return masks


def write_cache(folder: Path) -> None:
    rows = []
    for index, (height, width) in enumerate(SIZES):
        masks = masks_of(index)
        scores = np.linspace(0, 1, len(masks), dtype=np.float32)
        data = Partition.from_masks(masks).to_bytes()
        rows.append(Row(100 + index, height, width, len(masks), data, scores, scores / 2))
    shards = []
    for number, part in enumerate((rows[:3], rows[3:])):
        name = f"shard-{number:05d}.parquet"
        sha256 = write_shard(folder / name, part)
        shards.append({"file": name, "first": 3 * number, "n": len(part), "sha256": sha256})
    manifest = {"format": FORMAT, "n_images": len(rows), "shards": shards}
    files.write_json(folder / "manifest.json", manifest, seal=True)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.mark.parametrize("memory_bytes", [2**30, 1])
def test_what_goes_in_comes_out(cache_folder: Path, memory_bytes: int) -> None:
    cache = ProposalCache(cache_folder, memory_bytes)
    assert len(cache) == len(SIZES)
    assert sorted(cache) == [100 + i for i in range(len(SIZES))]
    for index in (0, 4, 1, 3, 2, 0):
        np.testing.assert_array_equal(cache[100 + index].masks(), masks_of(index))
    assert np.int64(103) in cache
    assert 99 not in cache
    with pytest.raises(SemiresError, match="no proposals for image 99"):
        cache[99]


def test_scores_are_stored(cache_folder: Path) -> None:
    table = files.read_parquet(cache_folder / "shard-00001.parquet")
    assert table["n"].tolist() == [3, 4]
    np.testing.assert_allclose(table["predicted_iou"][0], [0, 0.5, 1])
    np.testing.assert_allclose(table["stability"][0], [0, 0.25, 0.5])
    assert table["height"].dtype == np.int32
    assert table["image_id"].dtype == np.int64


def test_a_table_with_lists_can_be_written_again(cache_folder: Path, tmp_path: Path) -> None:
    table = files.read_parquet(cache_folder / "shard-00001.parquet")
    files.write_parquet(tmp_path / "again.parquet", table)
    assert files.read_parquet(tmp_path / "again.parquet", ["n"])["n"].tolist() == [3, 4]


def test_same_rows_same_bytes(cache_folder: Path, tmp_path: Path) -> None:
    write_cache(tmp_path)
    assert files.sha256_tree(tmp_path) == files.sha256_tree(cache_folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_damage_to_a_shard_passes(
    cache_folder: Path, tmp_path: Path, place: float, bit: int, cut: bool
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cache_folder, folder)
    path = folder / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    offset = int(place * len(data))
    if cut:
        data = data[:offset]
    else:
        data[offset] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CorruptCacheError, match="shard-00001"):
        ProposalCache(folder)[104]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_manifest_is_an_error_or_changes_nothing(
    cache_folder: Path, tmp_path: Path, place: float, bit: int, cut: bool
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(cache_folder, folder)
    path = folder / "manifest.json"
    data = bytearray(path.read_bytes())
    offset = int(place * len(data))
    if cut:
        data = data[:offset]
    else:
        data[offset] ^= 1 << bit
    path.write_bytes(data)
    with contextlib.suppress(SemiresError):
        cache = ProposalCache(folder)
        for index in range(len(SIZES)):
            np.testing.assert_array_equal(cache[100 + index].masks(), masks_of(index))


def test_damage_after_opening_is_noticed(cache_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(cache_folder, folder)
    cache = ProposalCache(folder)
    (folder / "shard-00000.parquet").write_bytes(b"")
    with pytest.raises(CorruptCacheError, match="shard-00000"):
        cache[100]
    assert cache[103].masks().shape == (3, *SIZES[3])
    (folder / "shard-00000.parquet").unlink()
    with pytest.raises(SemiresError, match=r"shard-00000.*no such file"):
        ProposalCache(folder)


def test_folder_without_proposals(tmp_path: Path) -> None:
    with pytest.raises(SemiresError, match="run the stage propose"):
        ProposalCache(tmp_path)
