"""Pretrains the tiny Swin of the embedded study on generated single-object images.

Claim: stands in for the paper's ImageNet-22k Swin; features for shape, colour, size and place,
nothing of RefScenes' images, expressions or masks (other seeds, one object an image, class labels
only).
Command: python experiments/pretrain/swin.py --minutes 22
Cost: 22 minutes of one core. Writes semires/weights/swin_tiny.safetensors and .json.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from semires.config.load import load_params
from semires.data.scenes import COLOURS, FIGURES, SIZES, THINGS, Scene, render, sample_scene
from semires.files import atomic_path, write_json
from semires.models.swin import new_swin
from semires.samples.augment import IMAGENET_MEAN, IMAGENET_STD

SEED = 31_337  # RefScenes' seed is params.scenes.seed
SHAPES = THINGS + FIGURES
PLACES = 3  # columns and rows that an object's place is told by
TASKS = {
    "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES),
    "column": PLACES, "row": PLACES,
}  # fmt: skip


def make_image(job: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """One scene cut down to one object: uint8 (S,S,3) and its classes."""
    index, scene_px, size = job
    rng = np.random.default_rng([SEED, index])
    scene = sample_scene(rng, scene_px)
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    image = render(Scene(scene_px, (item,), scene.seed)).image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    labels = (
        SHAPES.index(item.shape),
        list(COLOURS).index(item.colour),
        list(SIZES).index(item.size),
        int(PLACES * item.x / scene_px),
        int(PLACES * item.y / scene_px),
    )
    return np.asarray(resized), labels


def make_images(count: int, scene_px: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N,3,S,S) and labels int64 (N,5)."""
    jobs = [(i, scene_px, size) for i in range(count)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(make_image, jobs, chunksize=256))
    images = torch.from_numpy(np.stack([m[0] for m in made])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([m[1] for m in made])


def swin_stages(swin: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Tokens (B,L,C) of the four stages, before each downsampling."""
    tokens, dims = swin.embeddings(pixels)
    stages = []
    for layer in swin.encoder.layers:
        for block in layer.blocks:
            tokens = block(tokens, dims, always_partition=True)[0]
        stages.append(tokens)
        if layer.downsample is not None:
            tokens = layer.downsample(tokens, dims)
            dims = ((dims[0] + 1) // 2, (dims[1] + 1) // 2)
    return stages


class Classifier(nn.Module):
    """Swin with a linear classifier of every task on stages 2, 3 and 4.

    Stages 2 and 3 pool their tokens' logits by log-mean-exp, so that the tokens on the object learn
    to carry the evidence; stage 4 averages.
    """

    def __init__(self, swin: nn.Module, dim: int) -> None:
        super().__init__()
        self.swin = swin
        self.norms = nn.ModuleList(nn.LayerNorm(dim * 2**i) for i in (1, 2, 3))
        self.heads = nn.ModuleList(nn.Linear(dim * 2**i, sum(TASKS.values())) for i in (1, 2, 3))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Logits (N, all classes) of each of the three stages."""
        outs = []
        stages = swin_stages(self.swin, pixels)[1:]
        for i, (tokens, norm, head) in enumerate(zip(stages, self.norms, self.heads, strict=True)):
            logits = head(norm(tokens))
            count = logits.shape[1]
            outs.append(logits.mean(1) if i == 2 else logits.logsumexp(1) - math.log(count))
        return outs


def task_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropies of the tasks, summed."""
    parts = logits.split(list(TASKS.values()), dim=1)
    return sum(F.cross_entropy(p, labels[:, i]) for i, p in enumerate(parts))  # type: ignore[return-value]


def to_input(images: torch.Tensor) -> torch.Tensor:
    """Uint8 (B,3,S,S) to normalised float32."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Percent correct of the last stage, by task."""
    model.eval()
    logits = torch.cat([model(to_input(b))[-1] for b in images.split(256)])
    model.train()
    parts = logits.split(list(TASKS.values()), dim=1)
    return {
        name: round(100 * float((p.argmax(1) == labels[:, i]).float().mean()), 2)
        for i, (name, p) in enumerate(zip(TASKS, parts, strict=True))
    }


def main() -> None:
    """Train by wall clock and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=22)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--output", type=Path, default=Path("semires/weights/swin_tiny.safetensors")
    )
    options = parser.parse_args()
    params = load_params()
    torch.manual_seed(SEED)
    size = params.data.image_size
    images, labels = make_images(options.images + 1024, params.scenes.size_px, size)
    swin = new_swin(params.model.swin)
    model = Classifier(swin, params.model.swin.embed_dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    started, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = (
                options.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
            )
        chosen = torch.randint(options.images, (options.batch,))
        batch = to_input(images[chosen])
        loss = sum(task_losses(logits, labels[chosen]) for logits in model(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        share = min(1.0, (time.monotonic() - started) / 60 / options.minutes)
        if step % 200 == 0:
            held = accuracy(model, images[options.images :], labels[options.images :])
            print(f"step {step} share {share:.2f} loss {loss.item():.3f} {held}", flush=True)
    held = accuracy(model, images[options.images :], labels[options.images :])
    with atomic_path(options.output) as path:
        save_file({k: v.contiguous() for k, v in swin.state_dict().items()}, path)
    how = {
        "command": f"python experiments/pretrain/swin.py --minutes {options.minutes:g}",
        "seed": SEED, "images": options.images, "steps": step, "batch": options.batch,
        "lr": options.lr, "held_out_accuracy_percent": held,
        "config": params.model.swin.model_dump(),
    }  # fmt: skip
    write_json(options.output.with_suffix(".json"), how)
    print(held)


if __name__ == "__main__":
    main()
