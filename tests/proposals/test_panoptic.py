"""Panoptic segmenters: the shipped weights, and folders in the layout of published ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_sources import picture, sam_folder

from semires.config.load import load_params
from semires.config.sources import PanopticSource
from semires.data.scenes import render, sample_scene
from semires.errors import WeightsError
from semires.files import read_json, sha256_tree
from semires.proposals.base import build_source
from semires.proposals.quality import best_ious
from semires.refine.partition import Partition

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "semires/weights/tiny_mask2former"
HELD_OUT = 4_000_000  # scenes that neither the training nor RefScenes draws
QUALITY_FLOOR = 0.7
SIZES = {
    "hidden_dim": 32, "mask_feature_size": 32, "encoder_layers": 1, "encoder_feedforward_dim": 32,
    "decoder_layers": 2, "dim_feedforward": 32, "num_attention_heads": 2, "num_queries": 9,
}  # fmt: skip
SWIN = {
    "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
    "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip


def source(model: str | Path, **changes: float) -> PanopticSource:
    values = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0}
    return PanopticSource.model_validate(
        {"kind": "panoptic", "model": str(model), **values, **changes}
    )


def mask2former_folder(folder: Path) -> None:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    sizes = {**SIZES, "feature_size": 32}
    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN), num_labels=5, **sizes)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def oneformer_folder(folder: Path) -> None:
    from transformers import (
        CLIPTokenizer,
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        SwinConfig,
    )

    sizes = {
        **SIZES,
        "conv_dim": 32,
        "mask_dim": 32,
        "task_seq_len": 24,
        "max_seq_len": 24,
        "is_training": False,
    }
    sizes |= {"query_dec_layers": 1, "text_encoder_width": 32}
    config = OneFormerConfig(backbone_config=SwinConfig(**SWIN), num_labels=5, **sizes)
    OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    processor = OneFormerImageProcessor(size={"height": 64, "width": 64})
    # As in published folders: the classes' names are a file of another repository of the hub.
    processor.class_info_file = "coco_panoptic.json"
    processor.save_pretrained(folder)


def test_shipped_weights_are_those_of_the_record() -> None:
    record = read_json(WEIGHTS.with_suffix(".json"))
    assert record["sha256_tree"] == sha256_tree(WEIGHTS)
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 4_000_000


def test_segments_cover_the_objects_of_unseen_scenes_and_do_not_overlap() -> None:
    settings = load_params(ROOT / "params.yaml").proposals.sources["mask2former"]
    segmenter = build_source(settings.model_copy(update={"model": str(WEIGHTS)}))
    best, counts = [], []
    for index in range(20):
        scene = render(sample_scene(np.random.default_rng([271_828, HELD_OUT + index]), 96))
        found = segmenter.propose(scene.image)
        assert (found.masks.sum(0) <= 1).all()
        assert found.masks.any((1, 2)).all()
        assert ((found.predicted_iou > 0.5) & (found.predicted_iou <= 1)).all()
        counts.append(len(found))
        best.append(best_ious(Partition.from_masks(found.masks), scene.masks))
    assert np.concatenate(best).mean() > QUALITY_FLOOR
    assert 3 < np.mean(counts) < 8  # 3 to 5 objects, and the background


@pytest.mark.parametrize("write", [mask2former_folder, oneformer_folder])
def test_folders_of_published_models(tmp_path: Path, write) -> None:
    torch.manual_seed(2)
    write(tmp_path)
    segmenter = build_source(source(tmp_path))
    found = segmenter.propose(picture())
    assert len(found) > 0
    assert found.masks.shape == (len(found), 48, 64)
    assert found.masks.dtype == bool
    assert (found.masks.sum(0) <= 1).all()
    assert found.predicted_iou.shape == found.stability.shape == (len(found),)
    np.testing.assert_array_equal(found.masks, segmenter.propose(picture()).masks)
    nothing = build_source(source(tmp_path, threshold=1.0)).propose(picture())
    assert nothing.masks.shape == (0, 48, 64)


def test_another_kind_of_model_is_one_line(tmp_path: Path) -> None:
    sam_folder(tmp_path, high_quality=False)
    with pytest.raises(WeightsError, match="SamConfig") as caught:
        build_source(source(tmp_path))
    assert "\n" not in str(caught.value)
