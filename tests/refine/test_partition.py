"""Partitions: lossless, resized as torch resizes, and damage never passes for a partition."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semires.errors import CorruptCacheError, SemiresError
from semires.proposals import Partition
from semires.refine.partition import MAGIC, nearest_indices

sizes = st.integers(1, 24)


@st.composite
def some_masks(draw):
    """Rectangles, repeated and empty masks, and noise; N from 0 to 12."""
    height, width, count = draw(sizes), draw(sizes), draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = np.zeros((count, height, width), dtype=bool)
    for i, mask in enumerate(masks):
        kind = draw(st.sampled_from(["box", "noise", "empty", "full", "same"]))
        if kind == "box":
            top, left = rng.integers(0, height), rng.integers(0, width)
            mask[top : rng.integers(top, height) + 1, left : rng.integers(left, width) + 1] = True
        elif kind == "noise":
            mask[...] = rng.random((height, width)) < rng.random()
        elif kind == "full":
            mask[...] = True
        elif kind == "same" and i:
            mask[...] = masks[rng.integers(i)]
    return masks


def torch_nearest(masks, height, width):
    if not len(masks):
        return np.zeros((0, height, width), dtype=bool)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(masks).float()[None], size=(height, width), mode="nearest"
    )
    return resized[0].numpy() > 0.5


@given(some_masks())
def test_the_masks_come_back_and_atoms_are_what_they_are_said_to_be(masks):
    partition = Partition.from_masks(masks)
    assert len(partition) == len(masks)
    assert partition.shape == masks.shape[1:]
    np.testing.assert_array_equal(partition.masks(), masks)
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    patterns = {tuple(column) for column in flat.T}
    assert partition.members.shape == (len(masks), len(patterns))
    assert {tuple(column) for column in partition.members.T} == patterns
    met = list(dict.fromkeys(partition.atoms.ravel().tolist()))
    assert met == list(range(len(patterns)))
    np.testing.assert_array_equal(partition.areas, masks.sum((1, 2)))


@given(some_masks(), sizes, sizes)
def test_bytes_keep_everything_also_after_a_resize(masks, height, width):
    for partition in (
        Partition.from_masks(masks),
        Partition.from_masks(masks).resize(height, width),
    ):
        again = Partition.from_bytes(partition.to_bytes())
        np.testing.assert_array_equal(again.atoms, partition.atoms)
        np.testing.assert_array_equal(again.members, partition.members)
        assert again.atoms.dtype == partition.atoms.dtype
        assert again.members.dtype == bool


@given(some_masks(), sizes, sizes)
def test_resizing_equals_torch_on_every_mask(masks, height, width):
    resized = Partition.from_masks(masks).resize(height, width)
    assert resized.shape == (height, width)
    np.testing.assert_array_equal(resized.masks(), torch_nearest(masks, height, width))
    np.testing.assert_array_equal(resized.areas, resized.masks().sum((1, 2)))


def test_indices_equal_torchs_for_thousands_of_sizes():
    rng = np.random.default_rng(0)
    pairs = [(640, 480), (427, 480), (1028, 616), (616, 1028), *rng.integers(1, 1300, (2500, 2))]
    for source, target in pairs:
        places = torch.arange(int(source), dtype=torch.float32).view(1, 1, 1, -1)
        taken = torch.nn.functional.interpolate(places, size=(1, int(target)), mode="nearest")
        np.testing.assert_array_equal(
            nearest_indices(int(source), int(target)), taken.view(-1).numpy(), f"{source}>{target}"
        )


@given(some_masks())
def test_flipping_flips_every_mask(masks):
    partition = Partition.from_masks(masks)
    np.testing.assert_array_equal(partition.hflip().masks(), masks[:, :, ::-1])
    np.testing.assert_array_equal(partition.hflip().hflip().atoms, partition.atoms)


@given(some_masks(), st.integers(0, 2**32))
def test_counts_equal_pixel_sums(masks, seed):
    rng = np.random.default_rng(seed)
    partition = Partition.from_masks(masks)
    label = rng.random(masks.shape[1:]) < 0.4
    np.testing.assert_array_equal(
        partition.sums(partition.count(label)), (masks & label).sum((1, 2))
    )
    assert partition.count(label).sum() == label.sum()


def test_more_proposals_than_bits_in_a_word_and_more_atoms_than_16_bits_hold():
    rng = np.random.default_rng(0)
    masks = rng.random((140, 300, 300)) < 0.5
    partition = Partition.from_masks(masks)
    assert partition.members.shape[1] == 90_000
    assert partition.atoms.dtype == np.uint32
    again = Partition.from_bytes(partition.to_bytes())
    np.testing.assert_array_equal(again.masks(), masks)


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0), (0, 0, 0), (2, 1, 1)])
def test_no_masks_and_no_pixels(shape):
    partition = Partition.from_masks(np.zeros(shape, dtype=bool))
    again = Partition.from_bytes(partition.to_bytes())
    assert again.masks().shape == shape
    assert again.areas.tolist() == [0] * shape[0]


def test_other_dtypes_and_strides_are_taken_as_masks():
    masks = np.random.default_rng(0).random((4, 6, 9)) < 0.5
    for given_masks in (masks.astype(np.uint8) * 255, np.asfortranarray(masks), masks.astype(int)):
        np.testing.assert_array_equal(Partition.from_masks(given_masks).masks(), masks)


def example() -> bytes:
    yy, xx = np.mgrid[:40, :50]
    rng = np.random.default_rng(0)
    y, x, r = rng.uniform(0, 45, (3, 9, 1, 1))
    return Partition.from_masks((yy - y) ** 2 + (xx - x) ** 2 < r**2 / 4).to_bytes()


def test_every_flipped_bit_is_noticed():
    data = example()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptCacheError):
            Partition.from_bytes(bytes(damaged))


def test_every_cut_and_every_extension_is_noticed():
    data = example()
    for length in range(len(data)):
        with pytest.raises(CorruptCacheError):
            Partition.from_bytes(data[:length])
    for tail in (b"\0", b"x" * 100, data):
        with pytest.raises(CorruptCacheError):
            Partition.from_bytes(data + tail)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data):
    for prefix in (b"", MAGIC):
        with pytest.raises(CorruptCacheError):
            Partition.from_bytes(prefix + data)


def test_too_many_members_are_refused():
    members = np.broadcast_to(np.zeros((), dtype=bool), (2**14, 2**14 + 1))
    partition = Partition(np.zeros((1, 1), dtype=np.uint8), members)
    with pytest.raises(SemiresError, match="fewer proposals"):
        partition.to_bytes()


def test_the_cache_is_small():
    """Smooth overlapping masks take at most a quarter of JSON and 1.3 times COCO's strings."""
    from pycocotools import mask as coco

    yy, xx = np.mgrid[:240, :320].astype(np.float32)
    rng = np.random.default_rng(1)
    masks = np.empty((40, 240, 320), dtype=bool)
    for mask in masks:
        dy, dx, r = yy - rng.uniform(0, 240), xx - rng.uniform(0, 320), rng.uniform(8, 50)
        angle = np.arctan2(dy, dx)
        mask[...] = np.hypot(dy, dx) < r * (1 + 0.2 * np.sin(3 * angle) + 0.1 * np.cos(7 * angle))
    runs = [np.flatnonzero(np.diff(m.ravel().astype(np.int8), prepend=0, append=0)) for m in masks]
    json_size = sum(len(" ".join(map(str, r.tolist()))) for r in runs)
    strings = [coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
    size = len(Partition.from_masks(masks).to_bytes())
    assert size <= json_size / 4
    assert size <= 1.3 * sum(map(len, strings))


def test_importing_needs_no_torch():
    code = "import sys, semires.proposals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
