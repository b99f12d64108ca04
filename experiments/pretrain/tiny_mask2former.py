"""Train the tiny panoptic segmenter of the embedded study, a Mask2Former, on generated scenes.

Claim: its segments replace those of SEEM's promptless mode (paper Table 8): few, and none overlaps
another. It has two classes, object (one segment each) and background (one segment). The scenes have
other seeds than those of RefScenes; no name and no expression is used. The backbone starts from
swin_tiny.safetensors, as published Mask2Formers start from a pretrained Swin.
Command: python experiments/pretrain/tiny_mask2former.py --steps 1200 --images 2000
Cost: about 4 minutes on one core. Writes semires/weights/tiny_mask2former/ and, beside it,
tiny_mask2former.json. The same command gives the same bytes on CPUs of Intel and AMD with AVX2 and
the same library versions.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from semires import numerics

numerics.select("avx2")  # before numpy and torch are imported

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from semires.data.scenes import render, sample_scene
from semires.files import atomic_folder, sha256_tree, write_json
from semires.samples.augment import IMAGENET_MEAN, IMAGENET_STD

SEED = 271_828  # scene i is drawn from [SEED, i]; RefScenes has its own seed
IMAGE_PX = 96
BACKBONE = Path("semires/weights/swin_tiny.safetensors")
CLASSES = ("object", "background")
Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def make_scene(index: int) -> Scene:
    """Picture uint8 (S,S,3), and masks bool (M+1,S,S): the objects, then the background."""
    made = render(sample_scene(np.random.default_rng([SEED, index]), IMAGE_PX))
    return made.image, np.concatenate([made.masks, ~made.masks.any(0, keepdims=True)])


def new_model() -> Mask2FormerForUniversalSegmentation:
    """The model before training: the pretrained backbone, and random weights elsewhere."""
    backbone = SwinConfig(
        image_size=IMAGE_PX,
        patch_size=4,
        embed_dim=24,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=6,
        use_absolute_embeddings=True,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_layers=2,
        encoder_feedforward_dim=64,
        decoder_layers=4,  # transformers counts the prediction from the first queries as a layer
        dim_feedforward=64,
        num_attention_heads=4,
        num_queries=16,
        train_num_points=400,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    swin = model.model.pixel_level_module.encoder.swin
    swin.load_state_dict(load_file(BACKBONE))
    return model


def new_processor() -> Mask2FormerImageProcessor:
    """The preprocessing of the model: 96 px, normalised as for ImageNet."""
    return Mask2FormerImageProcessor(
        size={"height": IMAGE_PX, "width": IMAGE_PX},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Images uint8 (B,S,S,3) to normalised float32 (B,3,S,S)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def draw_batch(scenes: Sequence[Scene], size: int, rng: np.random.Generator) -> dict[str, Any]:
    """The model's inputs and targets for random scenes, half of them mirrored."""
    images, masks = [], []
    for index in rng.integers(0, len(scenes), size):
        step = -1 if rng.random() < 0.5 else 1
        image, objects = scenes[index]
        images.append(image[:, ::step])
        masks.append(torch.from_numpy(objects[:, :, ::step].astype(np.float32)))
    labels = [torch.tensor([0] * (len(m) - 1) + [1]) for m in masks]
    return {"pixel_values": to_input(np.stack(images)), "mask_labels": masks,
            "class_labels": labels}  # fmt: skip


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW; the pretrained backbone learns at 0.3 times the rate."""
    backbone = [p for name, p in model.named_parameters() if ".encoder.swin." in name]
    known = set(map(id, backbone))
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": rest, "scale": 1.0}, {"params": backbone, "scale": 0.3}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.02)


def train(
    model: Mask2FormerForUniversalSegmentation,
    scenes: Sequence[Scene],
    options: argparse.Namespace,
) -> Iterator[float]:
    """Train ``options.steps`` steps, warm-up and a half cosine; yields the model's own loss."""
    rng, optimizer = np.random.default_rng(SEED), optimizer_of(model, options.lr)
    model.train()
    for step in range(options.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * group["scale"] * min(1, (step + 1) / 50) * cosine
        loss = model(**draw_batch(scenes, options.batch, rng)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        yield loss.item()


def publish(model: Mask2FormerForUniversalSegmentation, options: argparse.Namespace) -> None:
    """Write the folder of weights and configurations, and beside it how they were made."""
    folder: Path = options.output
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        new_processor().save_pretrained(temporary)
    how = {
        "made_by": "experiments/pretrain/tiny_mask2former.py",
        "command": "python experiments/pretrain/tiny_mask2former.py "
        f"--steps {options.steps} --images {options.images}",
        "trained_on": f"scenes of semires/data/scenes.py, numpy seed [{SEED}, i]",
        "seed": SEED, "images": options.images, "steps": options.steps, "batch": options.batch,
        "lr": options.lr, "numerics": numerics.numerics_class(),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "sha256_tree": sha256_tree(folder),
    }  # fmt: skip
    write_json(folder.with_suffix(".json"), how)


def main() -> None:
    """Train for a number of steps and write the weights."""
    options = parser().parse_args()
    torch.set_num_threads(1)  # more threads would change the last digits
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    scenes = [make_scene(i) for i in range(options.images)]
    model = new_model()
    for step, loss in enumerate(train(model, scenes, options), start=1):
        if step % 25 == 0:
            print(f"{time.process_time():.0f} s step {step} loss {loss:.2f}", flush=True)
    publish(model, options)


def parser() -> argparse.ArgumentParser:
    """The command line; without options, the training of the shipped weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=Path("semires/weights/tiny_mask2former"))
    return parser


if __name__ == "__main__":
    main()
