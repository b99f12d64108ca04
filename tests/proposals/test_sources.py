"""Every source of proposals for real, and what may come in as an image."""

import json
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.segmentation import felzenszwalb

from semires.config import sources as config
from semires.config.sources import FelzenszwalbSource, TransformersSource
from semires.data.pictures import read_image
from semires.errors import DataError, WeightsError
from semires.proposals.base import SOURCES, build_source


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Two flat rectangles on a flat ground."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[8:24, 8:30] = (220, 40, 40)
    image[28:44, 30:60] = (40, 60, 220)
    return image


def test_every_kind_of_the_parameters_has_a_source() -> None:
    union = typing.get_args(typing.get_args(config.ProposalSource)[0])
    kinds = {typing.get_args(member.model_fields["kind"].annotation)[0] for member in union}
    assert kinds == set(SOURCES)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_image_files_of_any_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(picture()).convert(mode).save(path)
    assert read_image(path).shape == (48, 64, 3)


def test_bad_image_files_are_one_line(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(picture()).save(good)
    for name, data in {
        "cut.jpg": good.read_bytes()[:300],
        "empty.jpg": b"",
        "text.jpg": b"not an image",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such image"):
        read_image(tmp_path / "absent.jpg")
    Image.fromarray(picture()[:7]).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"thin\.png: 64x7 pixels"):
        read_image(tmp_path / "thin.png")


def test_felzenszwalb_gives_every_segment_once() -> None:
    settings = FelzenszwalbSource(
        kind="felzenszwalb", scales=[20.0, 100.0, 100.0, 900.0], sigma=0.5, min_size_px=20
    )
    found = build_source(settings).propose(picture())
    keys = {mask.tobytes() for mask in found.masks}
    assert len(keys) == len(found) == len(found.predicted_iou) == len(found.stability)
    for scale in settings.scales:
        labels = felzenszwalb(picture() / 255.0, scale=scale, sigma=0.5, min_size=20)
        expected = {(labels == label).tobytes() for label in np.unique(labels)}
        assert expected <= keys
    truth = np.zeros((48, 64), bool)
    truth[8:24, 8:30] = True
    overlap = [(m & truth).sum() / (m | truth).sum() for m in found.masks]
    assert max(overlap) > 0.75  # smoothing blurs the edge


def sam_folder(folder: Path, high_quality: bool) -> None:
    from transformers import SamConfig, SamHQConfig, SamHQModel, SamImageProcessor, SamModel

    vision = {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1],
        "num_pos_feats": 16, "mlp_dim": 64,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32
    }  # fmt: skip
    if high_quality:
        decoder["vit_dim"] = 32
    make_config, model = (SamHQConfig, SamHQModel) if high_quality else (SamConfig, SamModel)
    model(
        make_config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    ).save_pretrained(folder)


def sam2_folder(folder: Path) -> None:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1,
        "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32
    }  # fmt: skip
    Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    processor = Sam2ImageProcessor(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    )
    processor.save_pretrained(folder)


def transformers_source(model: str | Path) -> TransformersSource:
    return TransformersSource(
        kind="transformers",
        model=str(model),
        points_per_side=4,
        points_per_batch=8,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
    )


@pytest.mark.parametrize("name", ["sam", "sam_hq", "sam2"])
def test_transformers_models(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    if name == "sam2":
        sam2_folder(tmp_path)
    else:
        sam_folder(tmp_path, high_quality=name == "sam_hq")
    source = build_source(transformers_source(tmp_path))
    found = source.propose(picture())
    assert len(found) > 0
    assert found.masks.shape == (len(found), 48, 64)
    assert found.masks.dtype == bool
    assert found.predicted_iou.shape == found.stability.shape == (len(found),)
    again = source.propose(picture())
    np.testing.assert_array_equal(found.masks, again.masks)
    source.settings = source.settings.model_copy(update={"pred_iou_thresh": 1.0})
    assert source.propose(picture()).masks.shape == (0, 48, 64)


def test_hub_id_without_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"some-group/some-sam .*set the source's `model`") as e:
        build_source(transformers_source("some-group/some-sam"))
    assert "\n" not in str(e.value)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="transformers' layout"):
        build_source(transformers_source(tmp_path))


def damaged_folders(root: Path) -> dict[str, str]:
    """Folders of a SAM that cannot be used as it is, by name, with words of the message."""
    sam_folder(root / "whole", high_quality=False)
    wanted = {
        "pointer": "Git LFS pointer", "cut": "cannot be read", "empty": "is empty",
        "other sizes": "wrong shape: vision_encoder.layers.", "missing": "missing: mask_decoder.",
        "unknown": "unknown: mask_decoder.surplus", "no weights": "holds no model",
        "bad json": "not a valid JSON", "no processor": "image processor", "bert": "BertConfig",
    }  # fmt: skip
    for name in wanted:
        shutil.copytree(root / "whole", root / name)
    weights = {name: root / name / "model.safetensors" for name in wanted}
    state = load_file(root / "whole/model.safetensors")
    weights["pointer"].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    weights["cut"].write_bytes(weights["cut"].read_bytes()[:5000])
    weights["empty"].write_bytes(b"")
    weights["no weights"].unlink()
    first = next(n for n in sorted(state) if n.startswith("mask_decoder.") and n.endswith("bias"))
    meta = {"format": "pt"}
    save_file({k: v for k, v in state.items() if k != first}, weights["missing"], metadata=meta)
    surplus = {"mask_decoder.surplus": torch.zeros(2)}
    save_file(state | surplus, weights["unknown"], metadata=meta)
    config = json.loads((root / "whole/config.json").read_text())
    config["vision_config"]["mlp_dim"] += 16
    (root / "other sizes/config.json").write_text(json.dumps(config))
    (root / "bert/config.json").write_text('{"model_type": "bert"}')
    (root / "bad json/config.json").write_text("{")
    for path in (root / "no processor").glob("p*config.json"):
        path.unlink()
    return wanted


def test_damaged_folders_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = damaged_folders(tmp_path)
    capfd.readouterr()
    for name, says in wanted.items():
        with pytest.raises(WeightsError) as caught:
            build_source(transformers_source(tmp_path / name))
        text = str(caught.value)
        assert says in text, name
        assert str(tmp_path / name) in text
        assert text.isprintable()
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
