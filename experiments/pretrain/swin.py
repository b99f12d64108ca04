"""Pretrain the tiny Swin of the embedded study to name the object in every cell of a picture.

Claim: this Swin replaces the paper's Swin of ImageNet-22k. It learns shape, colour, size, part
colour and centre of the object in each cell. The targets come from the masks and attributes of
generated scenes, whose seeds differ from those of RefScenes. No picture, mask, expression or split
of RefScenes is used.
Command: python experiments/pretrain/swin.py --steps 3500 --images 14000
Cost: about 13 minutes on one core. Writes semires/weights/swin_tiny.safetensors and .json. The
same command gives the same bytes on the same machine with the same library versions.
"""

from __future__ import annotations

import argparse
import math
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from semires.config.load import load_params
from semires.config.schema import Params
from semires.data.scenes import (
    COLOURS,
    COUNTS,
    FIGURES,
    PART_COLOURS,
    SIZES,
    THINGS,
    render,
    sample_scene,
)  # fmt: skip
from semires.files import atomic_path, sha256_file, write_json
from semires.models import swin as swin_ops
from semires.samples.augment import IMAGENET_MEAN, IMAGENET_STD

SEED = 31_337  # scene i is drawn from [SEED, i]; RefScenes has its own seed
MAX_OBJECTS = max(COUNTS)
# Classes of each task; class 0 is "none" (background, or a thing without a second part).
CLASSES: dict[str, tuple[str, ...]] = {
    "shape": THINGS + FIGURES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "part_colour": tuple(PART_COLOURS),
}
WIDTHS = [len(names) + 1 for names in CLASSES.values()]
Row = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]


def make_scene(job: tuple[int, int]) -> Row:
    """Picture uint8 (S,S,3), object map uint8 (S,S), classes (M+1,4) and centres (M+1,2)."""
    index, size_px = job
    scene = sample_scene(np.random.default_rng([SEED, index]), size_px)
    made = render(scene)
    numbers = np.arange(1, len(made.masks) + 1, dtype=np.uint8)
    objects = (made.masks * numbers[:, None, None]).sum(0, dtype=np.uint8)
    classes = np.zeros((MAX_OBJECTS + 1, len(CLASSES)), dtype=np.int64)
    centres = np.zeros((MAX_OBJECTS + 1, 2), dtype=np.float32)
    for i, item in enumerate(scene.objects, start=1):
        for j, (task, names) in enumerate(CLASSES.items()):
            value = getattr(item, task)
            classes[i, j] = 0 if value is None else names.index(value) + 1
        centres[i] = item.x / size_px, item.y / size_px
    return made.image, objects, classes, centres


def make_scenes(count: int, size_px: int) -> list[Tensor]:
    """The four outputs of :func:`make_scene` as stacked tensors, computed on all cores."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [(i, size_px) for i in range(count)]
        made = list(pool.map(make_scene, jobs, chunksize=64))
    return [torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True)]


def swin_stages(swin: Any, pixels: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
    """Tokens (B,L,C) and grid of the four stages, before each downsampling."""
    tokens, grid = swin_ops.embed(swin, pixels)
    stages = []
    for stage in swin.encoder.layers:
        for block in stage.blocks:
            tokens = swin_ops.run_block(block, tokens, grid)
        stages.append((tokens, grid))
        tokens, grid = swin_ops.downsample(stage, tokens, grid)
    return stages


class CellTargets:
    """The targets of each cell of a grid, from object maps (B,S,S), classes and centres."""

    def __init__(self, objects: Tensor, classes: Tensor, centres: Tensor) -> None:
        one_hot = F.one_hot(objects.long(), MAX_OBJECTS + 1).permute(0, 3, 1, 2).float()
        self.cover = F.avg_pool2d(one_hot, 4)  # (B,M+1,S/4,S/4): share of the cell by object
        parts = [F.one_hot(classes[..., j], width) for j, width in enumerate(WIDTHS)]
        self.attributes = torch.cat(parts, dim=-1).float()  # (B,M+1,sum of WIDTHS)
        self.centres = centres

    def at(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Class shares (B,L,K), offset to the object's centre (B,L,2), object's share (B,L)."""
        side = self.cover.shape[-1] // grid[0]
        cover = F.avg_pool2d(self.cover, side).flatten(2).transpose(1, 2)  # (B,L,M+1)
        inside = cover[..., 1:].sum(-1)
        centre = (cover[..., 1:] @ self.centres[:, 1:]) / inside.clamp(min=1e-3)[..., None]
        y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
        place = torch.stack([x, y], dim=-1).view(-1, 2)
        return cover @ self.attributes, 4 * (centre - place), inside


class CellNamer(nn.Module):
    """Swin with a linear head on the cells of every stage."""

    def __init__(self, swin: nn.Module, dim: int) -> None:
        super().__init__()
        self.swin = swin
        self.norms = nn.ModuleList(nn.LayerNorm(dim * 2**i) for i in range(4))
        self.heads = nn.ModuleList(nn.Linear(dim * 2**i, sum(WIDTHS) + 2) for i in range(4))

    def forward(self, pixels: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
        """Class logits and offsets (B,L,K+2) of each stage, and its grid."""
        stages = swin_stages(self.swin, pixels)
        return [
            (head(norm(tokens)), grid)
            for (tokens, grid), norm, head in zip(stages, self.norms, self.heads, strict=True)
        ]


def new_model(params: Params) -> tuple[Any, CellNamer]:
    """The settings of the Swin, and the model with its first weights."""
    torch.manual_seed(SEED)
    settings = params.model.swin.model_copy(update={"drop_path_rate": 0.0})
    return settings, CellNamer(swin_ops.new_swin(settings), settings.embed_dim)


def cell_loss(outs: list[tuple[Tensor, tuple[int, int]]], targets: CellTargets) -> Tensor:
    """Cross-entropy of class shares and absolute error of offsets; cells of objects weigh most.

    Stage 1 has weight 1/3, because its cells see too little of an object to name it.
    """
    total = torch.zeros(())
    for i, (out, grid) in enumerate(outs):
        shares, offsets, inside = targets.at(grid)
        found = torch.zeros_like(inside)
        for logits, share in zip(
            out[..., :-2].split(WIDTHS, dim=-1), shares.split(WIDTHS, dim=-1), strict=True
        ):
            found = found - (share * logits.log_softmax(-1)).sum(-1)
        weight = 0.2 + inside
        loss = (weight * found).sum() / weight.sum()
        wrong = (out[..., -2:] - offsets).abs().sum(-1)
        loss = loss + 0.5 * (inside * wrong).sum() / inside.sum()
        total = total + loss * (0.33 if i == 0 else 1.0)
    return total


def to_input(images: Tensor) -> Tensor:
    """Uint8 (B,S,S,3) to normalised float32 (B,3,S,S)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def batch_of(scenes: list[Tensor], chosen: Tensor, mirrored: bool) -> tuple[Tensor, CellTargets]:
    """Normalised pixels and targets of the chosen scenes; ``mirrored`` flips them left to right."""
    images, objects, classes, centres = (column[chosen] for column in scenes)
    if mirrored:
        images, objects = images.flip(2), objects.flip(2)
        centres = torch.stack([1 - centres[..., 0], centres[..., 1]], dim=-1)
    return to_input(images), CellTargets(objects, classes, centres)


@torch.no_grad()
def accuracy(model: nn.Module, scenes: list[Tensor]) -> dict[str, list[float]]:
    """Percentage of correct names, by task and stage, over cells mostly covered by an object."""
    model.eval()
    right = torch.zeros(len(WIDTHS), 4)
    count = torch.zeros(4)
    for chosen in torch.arange(len(scenes[0])).split(64):
        pixels, targets = batch_of(scenes, chosen, False)
        for i, (out, grid) in enumerate(model(pixels)):
            shares, _, inside = targets.at(grid)
            mostly = inside > 0.5
            count[i] += mostly.sum()
            pairs = zip(
                out[..., :-2].split(WIDTHS, dim=-1), shares.split(WIDTHS, dim=-1), strict=True
            )
            for j, (logits, share) in enumerate(pairs):
                right[j, i] += (logits.argmax(-1) == share.argmax(-1))[mostly].sum()
    model.train()
    percent = (100 * right / count).tolist()
    return {task: [round(v, 1) for v in percent[j]] for j, task in enumerate(CLASSES)}


def train(model: CellNamer, scenes: list[Tensor], held: list[Tensor], steps: int, batch: int,
          lr: float, total: int) -> list[float]:  # fmt: skip
    """Train ``steps`` steps; the learning-rate schedule has ``total`` steps. Returns the losses."""
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    draw = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        for group in optimizer.param_groups:
            share = step / total
            group["lr"] = lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
        chosen = torch.randint(len(scenes[0]), (batch,), generator=draw)
        pixels, targets = batch_of(scenes, chosen, bool(step % 2))
        loss = cell_loss(model(pixels), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            print(f"step {step + 1} loss {losses[-1]:.3f} {accuracy(model, held)}", flush=True)
    return losses


def parser() -> argparse.ArgumentParser:
    """The command line; without options, the training of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--images", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--cache", type=Path, help=".pt file to cache the rendered scenes")
    parser.add_argument(
        "--output", type=Path, default=Path("semires/weights/swin_tiny.safetensors")
    )
    return parser


def main() -> None:
    """Train for a number of steps and write the weights."""
    options = parser().parse_args()
    params = load_params()
    torch.set_num_threads(1)  # more threads would change the last digits
    if options.cache and options.cache.is_file():
        scenes = torch.load(options.cache, weights_only=True)
    else:
        scenes = make_scenes(options.images + 256, params.data.image_size)
        if options.cache:
            torch.save(scenes, options.cache)
    settings, model = new_model(params)
    swin = model.swin
    held = [column[options.images :] for column in scenes]
    scenes = [column[: options.images] for column in scenes]
    train(model, scenes, held, options.steps, options.batch, options.lr, options.steps)
    with atomic_path(options.output) as path:
        save_file({k: v.contiguous() for k, v in swin.state_dict().items()}, path)
    how = {
        "command": "python experiments/pretrain/swin.py "
        f"--steps {options.steps} --images {options.images}",
        "seed": SEED, "images": options.images, "steps": options.steps, "batch": options.batch,
        "lr": options.lr, "held_out_accuracy_percent": accuracy(model, held),
        "sha256": sha256_file(options.output),
        "config": settings.model_dump(),
    }  # fmt: skip
    write_json(options.output.with_suffix(".json"), how)


if __name__ == "__main__":
    main()
