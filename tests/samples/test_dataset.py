"""Samples: the stream is the same whatever the processes, workers or interruptions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from semires.config.load import load_params
from semires.errors import DataError
from semires.samples.augment import normalise, renormalise, strong_view, weak_view
from semires.samples.dataset import decode_mask
from semires.samples.stream import Stream


class Sized:
    """Just what a stream asks of a data set."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length


def stream(length: int, batch: int, steps: int, **options: int) -> list[list[tuple[int, int]]]:
    return list(Stream(Sized(length, 3), batch, steps, **options))  # type: ignore[arg-type]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 30))
def test_every_epoch_is_a_permutation(length: int, batch: int, steps: int):
    drawn = [index for step in stream(length, batch, steps) for _, index in step]
    for first in range(0, len(drawn) - length + 1, length):
        assert sorted(drawn[first : first + length]) == list(range(length))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 12), st.integers(0, 11))
def test_a_resumed_stream_goes_on_as_the_unbroken_one(length, batch, steps, first):
    first = min(first, steps)
    assert stream(length, batch, steps)[first:] == stream(length, batch, steps, first_step=first)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4))
def test_processes_together_see_the_large_batch(length, batch, steps, world):
    whole = stream(length, batch * world, steps)
    parts = [stream(length, batch, steps, rank=r, world=world) for r in range(world)]
    assert whole == [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def test_an_empty_part_is_refused():
    with pytest.raises(DataError, match="no expression"):
        stream(0, 2, 3)


def test_views_depend_on_the_generator_alone():
    settings = load_params().augment.model_copy(update={"jitter_p": 1.0, "blur_p": 1.0})
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    first, second, other = (
        strong_view(
            weak_view(image, settings, np.random.default_rng(s)), settings, np.random.default_rng(s)
        )
        for s in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()
    assert first.shape == image.shape
    assert first.dtype == np.uint8


def test_no_jitter_leaves_the_weak_view():
    settings = load_params().augment.model_copy(update={"jitter_p": 0.0})
    image = np.full((8, 8, 3), 90, dtype=np.uint8)
    assert (strong_view(image, settings, np.random.default_rng(0)) == image).all()


def test_normalise_is_imagenets():
    image = np.full((2, 2, 3), 255, dtype=np.uint8)
    assert normalise(image)[:, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-3)
    twice = renormalise(normalise(image))[0, 0, 0].item()
    assert twice == pytest.approx((2.2489 - 0.485) / 0.229, abs=1e-3)


def test_masks_are_resized_by_nearest_neighbour():
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[2:4, 3:6] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    small = decode_mask(rle["counts"].decode(), 6, 9, 3)
    assert small.tolist() == [[False] * 3, [False, True, False], [False] * 3]
