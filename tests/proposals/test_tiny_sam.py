"""The tiny SAM: its sizes, its weights' quality on scenes it never saw, damaged files."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from semires.config.load import load_params
from semires.data.scenes import render, sample_scene
from semires.errors import WeightsError
from semires.proposals.checkpoint import read_sam
from semires.proposals.tiny_sam import MASKS_PER_POINT, build_tiny_sam

WEIGHTS = ROOT / "semires/weights/tiny_sam.safetensors"
HELD_OUT = 2_000_000  # scenes that neither the training nor RefScenes draws
QUALITY_FLOOR = 0.90


@pytest.fixture(scope="module")
def training() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments/pretrain")
        return importlib.import_module("tiny_sam")


def best_ious(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    common = (masks[:, None] & truths[None]).sum((2, 3))
    union = (masks[:, None] | truths[None]).sum((2, 3))
    return (common / union).max(axis=0)


def test_weights_are_small_and_hold_the_positional_matrix() -> None:
    assert WEIGHTS.stat().st_size < 4_000_000
    sam = read_sam("tiny", WEIGHTS)
    saved = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    fresh = build_tiny_sam().prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert saved.shape == fresh.shape
    assert not torch.equal(saved, fresh)
    assert not sam.training


def test_proposals_cover_objects_of_unseen_scenes() -> None:
    source = load_params(ROOT / "params.yaml").proposals.sources["sam"]
    settings = {k: v for k, v in source.model_dump().items() if k != "kind"}
    generator = SamAutomaticMaskGenerator(read_sam("tiny", WEIGHTS), **settings)
    objects, counts = [], []
    for index in range(20):
        scene = render(sample_scene(np.random.default_rng([987_654, HELD_OUT + index]), 96))
        records = generator.generate(scene.image)
        assert records, f"scene {index}: no proposal"
        masks = np.stack([record["segmentation"] for record in records])
        counts.append(len(masks))
        objects.append(best_ious(masks, scene.masks))
    best = np.concatenate(objects)
    assert best.mean() > QUALITY_FLOOR
    assert (best > 0.5).mean() > 0.95
    assert np.mean(counts) <= 60


def test_a_point_gets_the_whole_and_the_part() -> None:
    predictor = SamPredictor(read_sam("tiny", WEIGHTS))
    wholes, parts, swapped = [], [], []
    for index in range(12):
        scene = render(sample_scene(np.random.default_rng([987_654, HELD_OUT + index]), 96, 1.0))
        predictor.set_image(scene.image)
        for part in scene.part_masks:
            inside = np.argwhere(part)
            y, x = inside[len(inside) // 2]
            whole = next(mask for mask in scene.masks if mask[y, x])
            found, _, _ = predictor.predict(np.array([[x, y]]), np.array([1]))
            assert len(found) == MASKS_PER_POINT
            wholes.append(best_ious(found[:1], whole[None])[0])
            parts.append(best_ious(found[1:], part[None])[0])
            swapped.append(best_ious(found[1:], whole[None])[0])
    assert np.mean(wholes) > 0.8
    assert np.mean(parts) > 0.7
    assert np.mean(wholes) > np.mean(swapped) + 0.05


def test_batched_decoder_equals_the_stock_decoder(training: ModuleType) -> None:
    torch.manual_seed(3)
    sam = training.new_sam()
    embeddings = torch.randn(2, 64, 12, 12)
    points = torch.rand(2, 3, 2) * 96
    with torch.no_grad():
        logits, iou = training.decode(sam, embeddings, points)
        for image in range(2):
            labels = torch.ones(3, 1)
            sparse, dense = sam.prompt_encoder((points[image][:, None], labels), None, None)
            expected, expected_iou = sam.mask_decoder.predict_masks(
                embeddings[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            rows = slice(3 * image, 3 * image + 3)
            torch.testing.assert_close(logits[rows], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(iou[rows], expected_iou, atol=1e-4, rtol=1e-4)


def test_training_masks_belong_to_the_point(training: ModuleType) -> None:
    scenes = training.Scenes(
        *(np.stack(c) for c in zip(*(training.make_scene(i) for i in range(3)), strict=True))
    )
    batch = training.draw_batch(scenes, np.arange(3), 5, np.random.default_rng(0))
    assert batch.masks.shape == (15, 2, 48, 48)
    for (x, y), masks, inside in zip(
        batch.points.flatten(0, 1).long().tolist(), batch.masks, batch.inside, strict=True
    ):
        assert (masks[:, y // 2, x // 2] > 0).all()
        assert (masks[1] <= masks[0]).all() or not inside  # a part lies within its object


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "nan", "shape"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "tiny.safetensors"
    state = build_tiny_sam().state_dict()
    name = "mask_decoder.iou_token.weight"
    if damage == "nan":
        state[name] = state[name] * float("nan")
    if damage == "shape":
        state[name] = torch.zeros(1, 3)
    save_file(state, path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        read_sam("tiny", path)
