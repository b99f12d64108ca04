"""Prompts lie where the label is, and SAM's masks become the proposals of the label."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from semires.config.sources import SamPromptsSource
from semires.data.scenes import render, sample_scene
from semires.proposals.prompted import PromptedImages, draw_prompt, inner_points, label_box
from semires.proposals.quality import best_ious
from semires.refine import PseudoLabelRefiner
from semires.refine.partition import Partition
from semires.refine.refiner import resolve_partitions

LABELS = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def settings(**changes: object) -> SamPromptsSource:
    values = {"kind": "sam_prompts", "points": 1, "box": False, "box_margin": 0.1, "masks": 3}
    return SamPromptsSource.model_validate(values | changes)


def test_points_and_box_of_a_known_label():
    label = np.zeros((12, 20), bool)
    label[1:8, 2:9] = True  # a square of 7 pixels around (5, 4)
    label[2:5, 12:17] = True  # a smaller rectangle with its middle row at 3
    certain = np.ones(label.shape)
    # The third one is as far from all others as (13, 3); the first in row-major order is taken.
    assert inner_points(label, certain, 3).tolist() == [[5, 4], [3, 2], [5, 2]]
    # A probability of 0.25 in the square divides its distances by four.
    doubted = np.where(np.arange(20) < 10, 0.25, 1.0) * np.ones((12, 1))
    assert inner_points(label, doubted, 1).tolist() == [[13, 3]]
    assert label_box(label, 0.0).tolist() == [2, 1, 16, 7]
    assert label_box(label, 0.2).tolist() == [0, 0, 19, 8]  # 3 and 1 pixels, cut at the image


@given(LABELS, st.integers(1, 6), st.floats(0, 1), st.randoms(use_true_random=False))
def test_points_are_distinct_pixels_of_the_label_and_the_box_encloses_it(
    label, count, margin, draw
):
    probability = np.array([draw.random() for _ in range(label.size)]).reshape(label.shape)
    prompted = draw_prompt(label, probability, settings(points=count, box=True, box_margin=margin))
    if not label.any():
        assert prompted is None
        return
    assert len(prompted.points) == min(count, label.sum())
    assert len({tuple(point) for point in prompted.points.tolist()}) == len(prompted.points)
    assert label[prompted.points[:, 1], prompted.points[:, 0]].all()
    left, top, right, bottom = prompted.box.tolist()
    assert 0 <= left <= right < label.shape[1]
    assert 0 <= top <= bottom < label.shape[0]
    outside = label.copy()
    outside[top : bottom + 1, left : right + 1] = False
    assert not outside.any()


def test_a_prompt_needs_points_or_a_box():
    with pytest.raises(ValueError, match="no prompt"):
        settings(points=0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory):
    """Scenes 0 to 3 of a seed as images that the tiny SAM is prompted with, and their masks."""
    from semires.config.load import load_params
    from semires.proposals.checkpoint import prepare_checkpoint

    scenes = [render(sample_scene(np.random.default_rng([99, i]), 96)) for i in range(4)]
    root = Path(__file__).parents[2]
    params = load_params(root / "params.yaml")
    weights = str(root / params.sam.checkpoint)
    sam = params.sam.model_copy(update={"checkpoint": weights})
    folder = tmp_path_factory.mktemp("prompted")
    pictures = dict(enumerate(scene.image for scene in scenes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_checkpoint(params.model_copy(update={"sam": sam}))
        yield PromptedImages(pictures, settings()), [scene.masks for scene in scenes]


def test_sam_finds_the_object_that_the_label_covers_in_part(images):
    prompted, truths = images
    found = []
    for index, masks in enumerate(truths):
        for truth in masks:
            label = truth & (np.arange(96) % 3 > 0)  # a third of the columns is missing
            partition = prompted[index].prompt(label, label.astype(np.float32))
            assert 1 <= len(partition) <= 2  # the tiny SAM has two masks a prompt
            found.append(best_ious(partition, truth[None])[0])
    assert np.mean(found) > 0.8


def test_masks_are_limited_to_the_best_predicted(images):
    prompted, truths = images
    truth = truths[0][0]
    both = prompted[0].prompt(truth, truth.astype(np.float32)).masks()
    fewer = PromptedImages(prompted.pictures, settings(masks=1))
    one = fewer[0].prompt(truth, truth.astype(np.float32)).masks()
    assert len(one) == 1
    np.testing.assert_array_equal(one[0], both[0])


def test_a_batch_of_labels_is_refined_by_sams_masks(images):
    prompted, truths = images
    logits = torch.zeros(2, 2, 96, 96)
    logits[0, 1] = torch.from_numpy(truths[0][0] & (np.arange(96) % 3 > 0)).float() * 4 - 2
    logits[1, 1] = -1.0  # an empty label
    partitions = resolve_partitions([prompted[0], prompted[1]], logits)
    assert [len(p) > 0 for p in partitions] == [True, False]
    refined = PseudoLabelRefiner("cpi-u")(logits, partitions)
    assert refined.matched.tolist() == [True, False]
    label, truth = refined.labels[0].bool().numpy(), truths[0][0]
    assert (label & truth).sum() / (label | truth).sum() > 0.8
    assert not refined.labels[1].any()


def test_partitions_are_not_prompted():
    partition = Partition.from_masks(np.ones((1, 4, 4), bool))
    assert resolve_partitions([partition], torch.full((1, 2, 4, 4), float("nan")))[0] is partition
