"""Train the tiny SAM of the embedded study, class-agnostically, on generated scenes.

Claim: this SAM replaces SAM ViT-H. It is trained on masks of objects and of parts, without names
and expressions, and on scenes with other seeds than those of RefScenes. Prompts are single points.
Inside an object the targets are the masks of the object and of its part. On the background the
target is a predicted IoU of 0.
With random weights the decoder ignores its point for a long time. Two measures prevent this. The
token-to-image attention is initialised to attend to the position of the point. An auxiliary head,
which is not saved, trains the encoder to group the pixels of an object.
Command: python experiments/pretrain/tiny_sam.py
Cost: 33 minutes on one core. Writes semires/weights/tiny_sam.safetensors and .json. The shipped
file was made by an earlier version, whose learning rate followed the clock for 33 minutes. This
version counts steps: it gives a similar file, and the same bytes each time on the same machine with
the same library versions.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from semires.data.scenes import render, sample_scene
from semires.files import atomic_path, sha256_file, write_json
from semires.proposals.tiny_sam import GRID, IMAGE_PX, PROMPT_WIDTH, build_tiny_sam

SEED = 987_654  # scene i is drawn from [SEED, i]; RefScenes has its own seed
MASK_PX = 4 * GRID  # side of the mask logits
PLACE_SCALE = 1.5  # spread of the positional code's frequencies, cycles per half image


@dataclass
class Scenes:
    """Images uint8 (N,S,S,3); objects and parts uint8 (N,S,S): index of the mask or 0."""

    images: NDArray[np.uint8]
    objects: NDArray[np.uint8]
    parts: NDArray[np.uint8]


def label_map(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Disjoint masks (N,S,S) as one map of 1..N, 0 for none."""
    numbers = np.arange(1, len(masks) + 1, dtype=np.uint8)
    total: NDArray[np.uint8] = (masks * numbers[:, None, None]).sum(axis=0, dtype=np.uint8)
    return total


def make_scene(index: int) -> tuple[NDArray[np.uint8], ...]:
    """Image, object map and part map of scene ``index``."""
    made = render(sample_scene(np.random.default_rng([SEED, index]), IMAGE_PX))
    return made.image, label_map(made.masks), label_map(made.part_masks)


def make_scenes(count: int) -> Scenes:
    """Scenes 0 .. count-1, on all cores."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = tqdm(pool.map(make_scene, range(count), chunksize=64), "scenes", count, disable=None)
        columns = list(zip(*jobs, strict=True))
    return Scenes(*(np.stack(column) for column in columns))


def new_sam() -> Sam:
    """The tiny SAM before training: position codes, and attention to the point's position."""
    sam = build_tiny_sam()
    place = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    place *= PLACE_SCALE
    encoder = sam.image_encoder
    with torch.no_grad():
        code = sam.prompt_encoder.get_dense_pe()[0].permute(1, 2, 0)
        encoder.pos_embed[0, ..., :PROMPT_WIDTH] = 0.3 * code
        encoder.pos_embed += 0.02 * torch.randn_like(encoder.pos_embed)
        transformer = sam.mask_decoder.transformer
        crossings = [layer.cross_attn_token_to_image for layer in transformer.layers]
        for attention in [*crossings, transformer.final_attn_token_to_image]:
            rows = attention.q_proj.weight.shape[0]
            chosen = torch.zeros(rows, PROMPT_WIDTH)
            waves = torch.arange(rows) // 2  # sine and cosine of the same wave side by side
            chosen[torch.arange(rows), waves + (torch.arange(rows) % 2) * (PROMPT_WIDTH // 2)] = 1.5
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.mul_(0.3).add_(chosen)
    return sam


class AffinityHead(nn.Module):
    """For training only: features (B,D,48,48) whose distance tells objects and parts apart."""

    def __init__(self, dimension: int = 12) -> None:
        super().__init__()
        self.dimension = dimension
        self.features = nn.Conv2d(PROMPT_WIDTH, 2 * dimension * 16, 1)
        self.bias = nn.Parameter(torch.full((2,), 2.0))

    def forward(self, embedding: Tensor, maps: Tensor, queries: Tensor) -> Tensor:
        """Loss of embeddings (B,C,12,12) at pixels ``queries`` (B,Q) of maps (B,2,48,48)."""
        features = F.pixel_shuffle(self.features(embedding), 4)
        features = features.view(len(features), 2, self.dimension, -1)  # (B,2,D,48*48)
        where = queries[:, None, None].expand(-1, 2, self.dimension, -1)
        asked = features.gather(3, where)
        product = asked.transpose(2, 3) @ features
        distance = (
            asked.square().sum(2)[..., None] + features.square().sum(2)[:, :, None] - 2 * product
        )
        logits = self.bias[None, :, None, None] - distance  # (B,2,Q,48*48)
        flat = maps.flatten(2)
        asked_for = flat.gather(2, queries[:, None].expand(-1, 2, -1))
        same = (flat[:, :, None] == asked_for[..., None]).float()
        loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
        inside = (same * loss).sum(-1) / same.sum(-1).clamp(min=1)
        outside = ((1 - same) * loss).sum(-1) / (1 - same).sum(-1).clamp(min=1)
        return (inside + outside).mean()


def decode(sam: Sam, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Stock `MaskDecoder.predict_masks` for several images at once.

    Args:
        sam: the model.
        embedding: (B,C,h,w), the encoder's output.
        points: float (B,P,2), foreground points as x, y in pixels of the 96-pixel image.

    Returns:
        logits (B*P,K,4h,4w) and predicted IoU (B*P,K) of all masks, the single one first.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    flat = points.flatten(0, 1)[:, None]
    sparse, dense = prompts((flat, torch.ones(flat.shape[:2])), None, None)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(flat), -1, -1), sparse], dim=1)
    image = embedding.repeat_interleave(points.shape[1], dim=0) + dense
    place = prompts.get_dense_pe().expand(len(flat), -1, -1, -1)
    out, image_out = decoder.transformer(image, place, tokens)
    enlarged = decoder.output_upscaling(image_out.transpose(1, 2).reshape(image.shape))
    hyper = torch.stack(
        [mlp(out[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    logits = (hyper @ enlarged.flatten(2)).unflatten(2, enlarged.shape[2:])
    return logits, decoder.iou_prediction_head(out[:, 0])


@dataclass
class Batch:
    """pixels (B,3,S,S), points (B,P,2) as x, y; masks (B*P,2,48,48) whole and part in 0..1.

    Also inside bool (B*P,), maps (B,2,48,48) and queries (B,Q) of the auxiliary loss.
    """

    pixels: Tensor
    points: Tensor
    masks: Tensor
    inside: Tensor
    maps: Tensor
    queries: Tensor


def turn(arrays: list[NDArray[Any]], rng: np.random.Generator) -> list[NDArray[Any]]:
    """The same random flip and quarter turns for arrays (S,S,...)."""
    quarters, flip = int(rng.integers(4)), bool(rng.integers(2))
    turned = [np.rot90(a, quarters) for a in arrays]
    return [a[:, ::-1] if flip else a for a in turned]


def draw_point(
    objects: NDArray[np.uint8], parts: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[int, int]:
    """A random pixel (row, column): 15 % background, else in an object, half of these in a part."""
    if rng.random() < 0.15:
        chosen = objects == 0
    else:
        chosen = objects == rng.integers(1, objects.max() + 1)
        inside = np.unique(parts[chosen])
        if len(inside) > 1 and rng.random() < 0.5:
            chosen &= parts == rng.choice(inside)
    rows, columns = np.nonzero(chosen)
    if len(rows) == 0:
        return 0, 0
    pick = int(rng.integers(len(rows)))
    return int(rows[pick]), int(columns[pick])


def draw_batch(
    scenes: Scenes, indices: NDArray[np.int64], n_points: int, rng: np.random.Generator
) -> Batch:
    """A batch of randomly flipped and rotated scenes, with points and their masks."""
    rows = []
    masks, inside, points = [], [], []
    for index in indices:
        image, objects, parts = turn(
            [scenes.images[index], scenes.objects[index], scenes.parts[index]], rng
        )
        parts = np.where(parts > 0, parts + 16, objects)  # a thing has one part: itself
        rows.append((image, objects, parts))
        for _ in range(n_points):
            y, x = draw_point(objects, parts, rng)
            points.append((x, y))
            inside.append(objects[y, x] > 0)
            masks.append(np.stack([objects == objects[y, x], parts == parts[y, x]]))
    images, objects, parts = (np.stack(column) for column in zip(*rows, strict=True))
    scale = IMAGE_PX // MASK_PX
    maps = np.stack([objects, parts], 1)[:, :, ::scale, ::scale].astype(np.int64)
    return Batch(
        pixels=torch.from_numpy(images).permute(0, 3, 1, 2).float(),
        points=torch.tensor(points, dtype=torch.float32).view(len(indices), n_points, 2),
        masks=F.avg_pool2d(torch.from_numpy(np.stack(masks)).float(), scale),
        inside=torch.tensor(np.array(inside)),
        maps=torch.from_numpy(maps),
        queries=torch.from_numpy(rng.integers(0, MASK_PX**2, (len(indices), 16))),
    )


def mask_losses(
    logits: Tensor, predicted_iou: Tensor, batch: Batch
) -> tuple[Tensor, Tensor, float]:
    """Mask loss, loss of the predicted IoU, and the mean IoU at points inside objects."""
    target = batch.masks[:, [0, 0, 1]]  # the single mask is the whole object
    weight = torch.tensor([0.3, 1.0, 1.0]) * batch.inside[:, None]
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    share = logits.sigmoid()
    overlap = (share * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (share.sum((2, 3)) + target.sum((2, 3)) + 1)
    mask_loss = (weight * (4 * cross + dice)).sum() / weight.sum()
    with torch.no_grad():
        hard, truth = logits > 0, target > 0.5
        union = (hard | truth).sum((2, 3)).clamp(min=1)
        iou = (hard & truth).sum((2, 3)) / union * batch.inside[:, None]
    return mask_loss, F.mse_loss(predicted_iou, iou), float(iou[batch.inside, 1:].mean())


def learning_rate(share: float, peak: float) -> float:
    """Warm-up over the first 3 % of the time, then a half cosine down to 2 % of the peak."""
    if share < 0.03:
        return peak * max(share, 1e-3) / 0.03
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def publish(sam: Sam, path: Path, facts: dict[str, Any]) -> None:
    """Write the weights and, beside them, how they were made."""
    state = {name: value.detach().contiguous() for name, value in sam.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary)
    write_json(path.with_suffix(".json"), {**facts, "sha256": sha256_file(path)})


def by_steps(steps: int) -> Iterator[float]:
    """The share 0..1 of the training that is over before each step."""
    return (step / steps for step in range(steps))


@dataclass
class State:
    """Losses and mean IoU of the last step, the averaged weights, and the number of steps."""

    mask: float
    predicted_iou: float
    affinity: float
    iou: float
    average: Sam
    step: int


def train(scenes: Scenes, shares: Iterable[float], options: argparse.Namespace) -> Iterator[State]:
    """Train one step for each of ``shares``, which set the learning rate and the loss' weights."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    sam, head = new_sam().train(), AffinityHead()
    average = copy.deepcopy(sam)
    optimizer = torch.optim.AdamW(
        [*sam.parameters(), *head.parameters()], lr=options.lr, weight_decay=0.02, betas=(0.9, 0.98)
    )
    for step, share in enumerate(shares, start=1):
        batch = draw_batch(
            scenes, rng.integers(0, len(scenes.images), options.images), options.points, rng
        )
        pixels = (batch.pixels - sam.pixel_mean) / sam.pixel_std
        embedding = sam.image_encoder(pixels)
        logits, predicted_iou = decode(sam, embedding, batch.points)
        mask_loss, iou_loss, iou = mask_losses(logits, predicted_iou, batch)
        affinity = head(embedding, batch.maps, batch.queries)
        auxiliary = 1.0 if share < 0.3 else max(0.1, 1.0 - 3 * (share - 0.3))
        loss = mask_loss + iou_loss + auxiliary * affinity
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(share, options.lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, step / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), sam.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        yield State(mask_loss.item(), iou_loss.item(), affinity.item(), iou, average, step)


def run(scenes: Scenes, options: argparse.Namespace) -> None:
    """Train; write the averaged weights every 4 minutes and at the end."""
    started = published = time.monotonic()
    shares = by_steps(options.steps)
    seen = 0.0
    for state in tqdm(train(scenes, shares, options), disable=None, desc="tiny SAM", unit="step"):
        seen = 0.98 * seen + 0.02 * state.iou
        if state.step % 25 == 0:
            print(
                f"{time.monotonic() - started:.0f}s {state.step} mask {state.mask:.3f} iou-loss "
                f"{state.predicted_iou:.4f} affinity {state.affinity:.3f} IoU "
                f"{seen / (1 - 0.98**state.step):.3f}",
                flush=True,
            )
        if time.monotonic() - published > 240:
            published = time.monotonic()
            publish(state.average, options.output, facts(options, state, started))
    publish(state.average, options.output, facts(options, state, started))


def facts(options: argparse.Namespace, state: State, started: float) -> dict[str, Any]:
    """How the weights were made."""
    return {
        "made_by": "experiments/pretrain/tiny_sam.py",
        "command": f"python experiments/pretrain/tiny_sam.py --steps {options.steps} "
        f"--scenes {options.scenes} --images {options.images} --points {options.points} "
        f"--lr {options.lr:g}",
        "trained_on": "scenes of semires/data/scenes.py, numpy seed [987654, i]",
        "seed": SEED,
        "steps": state.step,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": "one CPU core, no accelerator",
        "n_parameters": sum(p.numel() for p in state.average.parameters()),
    }


def main() -> None:
    """Train as the command line says."""
    options = parser().parse_args()
    torch.set_num_threads(1)  # more threads would change the last digits
    if options.cache and options.cache.is_file():
        with np.load(options.cache) as kept:
            scenes = Scenes(**{name: kept[name] for name in ("images", "objects", "parts")})
    else:
        scenes = make_scenes(options.scenes)
        if options.cache:
            np.savez(options.cache, **vars(scenes))
    run(scenes, options)


def parser() -> argparse.ArgumentParser:
    """The command line; without options, as many steps as the shipped weights had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5314)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--images", type=int, default=16, help="images per step")
    parser.add_argument("--points", type=int, default=4, help="points per image")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--cache", type=Path, help=".npz file to cache the rendered scenes")
    parser.add_argument("--output", type=Path, default=Path("semires/weights/tiny_sam.safetensors"))
    return parser


if __name__ == "__main__":
    main()
