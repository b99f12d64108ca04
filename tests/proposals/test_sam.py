"""The fast generator against upstream's own, and checkpoints."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from semires import files, numerics
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import CorruptCacheError, SemiresError, WeightsError
from semires.proposals.checkpoint import checkpoint_sha256, load_sam, prepare_checkpoint
from semires.proposals.fast_amg import AutomaticMasks

ROOT = Path(__file__).parents[2]


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_sam(seed: int, width: int = 32, side: int = 64, patch: int = 8) -> Sam:
    """A real, small SAM whose random weights are scaled so that masks and scores vary."""
    torch.manual_seed(seed)
    grid = side // patch
    sam = Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
        ),
        PromptEncoder(width, (grid, grid), (side, side), 4),
        MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(2, width, 2, 64),
            iou_head_depth=2,
            iou_head_hidden_dim=width,
        ),
    )
    decoder = sam.mask_decoder
    with torch.no_grad():
        for module in decoder.transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight *= 2.5  # sharper attention: prompts matter
    sam.eval()
    calibrate(sam, side)
    return sam


@torch.no_grad()
def calibrate(sam: Sam, side: int) -> None:
    """Scale scores to 0.6 +- 0.2 and logits to a spread of 25, so that thresholds keep some."""
    decoder = sam.mask_decoder
    predictor = SamPredictor(sam)
    predictor.set_image(image(side, side))
    points = torch.rand(40, 1, 2) * side
    _, scores, logits = predictor.predict_torch(points, torch.ones(40, 1), return_logits=True)
    head = decoder.iou_prediction_head.layers[-1]
    factor = 0.2 / scores.std()
    head.weight *= factor
    head.bias.mul_(factor).add_(0.6 - factor * scores.mean())
    factor = 25 / logits.std()
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1].weight *= factor
        network.layers[-1].bias *= factor
    sam.mask_threshold = float(torch.quantile(logits * factor, 0.8))


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.set_num_threads(1)
    return random_sam(3)


def assert_equal_to_upstream(sam: Sam, picture: np.ndarray, **settings: object) -> int:
    records = SamAutomaticMaskGenerator(sam, **settings).generate(picture)
    found = AutomaticMasks(sam, **settings).propose(picture)
    assert len(found) == len(records)
    assert found.masks.shape == (len(records), *picture.shape[:2])
    # Under other profiles than native, MKL rounds a row of a product by the number of rows. The
    # batches of the two implementations differ, so a pixel at the threshold may differ, too.
    exact = numerics.active() == "native"
    for record, mask in zip(records, found.masks, strict=True):
        assert (record["segmentation"] != mask).sum() <= (0 if exact else 2)
    scores = np.array([r["predicted_iou"] for r in records], np.float32)
    np.testing.assert_allclose(found.predicted_iou, scores, rtol=0 if exact else 1e-5)
    stability = np.array([r["stability_score"] for r in records], np.float32)
    np.testing.assert_allclose(found.stability, stability, atol=0 if exact else 0.01)
    return len(records)


THRESHOLDS = [(0.0, 0.0), (0.0, 0.7), (0.5, 0.0), (0.5, 0.7), (0.9, 0.95), (1.0, 1.0)]


@pytest.mark.parametrize(("iou", "stability"), THRESHOLDS)
@pytest.mark.parametrize("size", [(64, 64), (40, 64), (50, 37), (96, 130)])
def test_same_masks_as_upstream(
    sam: Sam, iou: float, stability: float, size: tuple[int, int]
) -> None:
    settings = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
    for batch, nms in ((64, 0.7), (13, 1.0)):
        kept = assert_equal_to_upstream(
            sam, image(*size), points_per_side=6, points_per_batch=batch, box_nms_thresh=nms,
            **settings,
        )  # fmt: skip
        if nms == 1.0 and (iou, stability) == (0.0, 0.0):
            assert kept > 50  # the comparison is not about nothing


@pytest.mark.parametrize("seed", range(4))
def test_same_masks_for_other_weights_and_shapes(seed: int) -> None:
    other = random_sam(seed, width=48, side=96, patch=(8, 16)[seed % 2])
    settings = {"points_per_side": 7, "points_per_batch": 20, "pred_iou_thresh": 0.4}
    for nms in (0.5, 0.95):
        assert_equal_to_upstream(
            other, image(80, 100, seed), stability_score_thresh=0.3, box_nms_thresh=nms, **settings
        )


def test_the_thresholds_bite(sam: Sam) -> None:
    def count(iou: float, stability: float) -> int:
        settings = {"points_per_side": 6, "box_nms_thresh": 1.0}
        generator = AutomaticMasks(
            sam, pred_iou_thresh=iou, stability_score_thresh=stability, **settings
        )
        return len(generator.propose(image(64, 64)))

    assert count(0.0, 0.0) == 3 * 36
    assert 0 < count(0.5, 0.0) < count(0.0, 0.0)
    assert 0 < count(0.0, 0.7) < count(0.0, 0.0)
    assert count(1.0, 1.0) == 0


def test_crops_are_upstreams_own(sam: Sam) -> None:
    assert_equal_to_upstream(
        sam, image(64, 64), points_per_side=4, crop_n_layers=1, pred_iou_thresh=0.3,
        stability_score_thresh=0.3,
    )  # fmt: skip


# --- checkpoints ---------------------------------------------------------------------------------


def params_with(**sam_settings: object) -> Params:
    values = read_yaml(ROOT / "params.yaml")
    values["sam"] = {"model": "tiny", "checkpoint": "tiny.safetensors", "sha256": None}
    values["sam"].update(sam_settings)
    return validate(values)


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build = pytest.importorskip("semires.proposals.tiny_sam").build_tiny_sam
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_file(build().state_dict(), path)
    return path


def test_tiny_checkpoint_is_copied_and_loads(tiny_weights: Path) -> None:
    prepare_checkpoint(params_with())
    record = files.read_json("sam/sam.json")
    assert record["model"] == "tiny"
    assert record["sha256"] == files.sha256_file(tiny_weights) == checkpoint_sha256()
    assert record["size"] == tiny_weights.stat().st_size
    tiny_weights.unlink()  # the copy is enough
    loaded = load_sam().state_dict()
    assert not load_sam().training
    torch.manual_seed(0)
    from semires.proposals.tiny_sam import build_tiny_sam

    for name, tensor in build_tiny_sam().state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_changed_weights_are_noticed(tiny_weights: Path) -> None:
    prepare_checkpoint(params_with())
    path = Path("sam/tiny_sam.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # safetensors itself would not notice
    path.write_bytes(data)
    with pytest.raises(CorruptCacheError, match="tiny_sam"):
        load_sam()


def test_wrong_digest_is_refused(tiny_weights: Path) -> None:
    with pytest.raises(WeightsError, match=r"SHA-256 is .* not 0{64}"):
        prepare_checkpoint(params_with(sha256="0" * 64))
    assert not Path("sam").exists()


def test_damaged_weights_are_one_line(tiny_weights: Path) -> None:
    tiny_weights.write_bytes(tiny_weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="tiny") as caught:
        prepare_checkpoint(params_with())
    assert "\n" not in str(caught.value)
    assert not Path("sam").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("vit_b", "sam_vit_b_01ec64.pth"),
        ("vit_l", "sam_vit_l_0b3195.pth"),
        ("vit_h", "sam_vit_h_4b8939.pth"),
    ],
)
def test_missing_published_file_says_what_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"download {name}"):
        prepare_checkpoint(params_with(model=model, checkpoint=f"weights/{name}"))
    Path("weights").mkdir()
    Path("weights", name).write_bytes(b"half a download")
    with pytest.raises(WeightsError, match="SHA-256"):
        prepare_checkpoint(params_with(model=model, checkpoint="weights"))


MOBILE = {
    "image_encoder.patch_embed.seq.0.c.weight": torch.zeros(4, 3, 3, 3),
    "mask_decoder.iou_token.weight": torch.zeros(1, 256),
}
LORA = {"image_encoder.blocks.0.attn.qkv.linear_a_q.weight": torch.zeros(4, 768)}
HQ = {"mask_decoder.hf_token.weight": torch.zeros(1, 256)}
LARGE = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (MOBILE, ["missing: image_encoder.pos_embed and", "unknown: image_encoder.", "MobileSAM"]),
        ({"model": MOBILE, "optimizer": {"state": {0: {}}}}, ["its entry `model`", "MobileSAM"]),
        ({"best": np.float64(0.5), "model": MOBILE}, ["its entry `model`", "MobileSAM"]),
        ({f"module.{k}": v for k, v in MOBILE.items()}, ["begin with `module.`", "MobileSAM"]),
        ({f"net.{k}": v for k, v in HQ.items()}, ["begin with `net.`", "unknown: net.", "SAM-HQ"]),
        (HQ, ["unknown: mask_decoder.hf_token.weight", "SAM-HQ"]),
        (LORA, ["unknown: image_encoder.blocks.0.attn.qkv.linear_a_q.weight", "LoRA"]),
        (LARGE, ["wrong shape: image_encoder.pos_embed is (1, 64, 64, 1024)", "sam.model to it"]),
        ({"vision_encoder.pos_embed": torch.zeros(1)}, ["unknown: vision_encoder", "transformers"]),
        ({"memory_encoder.x": torch.zeros(1)}, ["unknown: memory_encoder.x", "SAM 2"]),
        (torch.nn.Linear(2, 2), ["would run torch.nn.modules.linear.Linear", "weights_only"]),
        ([1, 2], ["weights are a list"]),
        ({"image_encoder.pos_embed": 3}, ["is a int, not a tensor"]),
    ],
)
def test_weights_that_are_no_sam_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, says: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pth")
    settings = {"model": "vit_b", "checkpoint": "x.pth", "sha256": files.sha256_file("x.pth")}
    with pytest.raises(WeightsError) as caught:
        prepare_checkpoint(params_with(**settings))
    text = str(caught.value)
    assert text.startswith("x.pth: ")
    assert text.isprintable()
    for words in says:
        assert words in text
    assert not Path("sam").exists()


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b""]
)
def test_files_that_are_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, name in (("vit_b", "x.pth"), ("tiny", "x.safetensors")):
        Path(name).write_bytes(content)
        settings = {"model": model, "checkpoint": name, "sha256": files.sha256_file(name)}
        with pytest.raises(WeightsError, match=r"LFS pointer|web page|is empty"):
            prepare_checkpoint(params_with(**settings))


class _Hostile:
    def __reduce__(self) -> object:
        return (Path.touch, (Path("ran"),))


def test_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("sam_vit_b_01ec64.pth")
    torch.save({"weight": _Hostile()}, path)
    settings = {"model": "vit_b", "checkpoint": str(path), "sha256": files.sha256_file(path)}
    with pytest.raises(WeightsError, match="sam_vit_b_01ec64"):
        prepare_checkpoint(params_with(**settings))
    path.write_bytes(pickle.dumps(_Hostile()))
    settings["sha256"] = files.sha256_file(path)
    with pytest.raises(WeightsError, match="sam_vit_b_01ec64"):
        prepare_checkpoint(params_with(**settings))
    assert not Path("ran").exists()
    assert not Path("sam").exists()


def test_stage_that_has_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SemiresError, match="run the stage sam"):
        load_sam()
