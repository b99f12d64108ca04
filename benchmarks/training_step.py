"""Claim: a mutual-learning step is at least 1.5x as fast as the structure of the published code.

    python benchmarks/training_step.py [--models tiny,swin-t] [--threads 2] [--repeats 5]

A step has 3 labelled and 3 unlabelled samples; the teacher sees the 3 unlabelled ones. Plain:
transformers' blocks with eager attention and masks built in every block, PWAM as 1x1 convolutions
with InstanceNorm1d, a loop over masks for CPI-U, PWA in NumPy, a new state dict per EMA update,
AdamW tensor by tensor, and `gc.collect()` after each step. Both start from the same weights, use
the same batches, and must give the same losses over 5 steps. The limit is the time of the forward
and backward passes alone, and of their counted operations at the rate of one large matrix product.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import math
from typing import Any

import common
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from semires.models import LAVT
from semires.refine import PseudoLabelRefiner
from semires.refine.partition import Partition
from semires.training.ema import make_teacher, update_ema
from semires.training.losses import supervised_loss, unsupervised_loss

TARGET = 1.5


class PlainFusion(nn.Module):
    """PWAM with channel-first 1x1 convolutions and the weights of our module."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.ours, self.norm = ours, nn.InstanceNorm1d(ours.visual.out_features)

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a, heads = self.ours.attention, self.ours.attention.heads
        x, text, words = x.permute(0, 2, 1), text.permute(0, 2, 1), (mask[:, 0] == 0).float()

        def conv(layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
            return F.conv1d(tokens, layer.weight.unsqueeze(-1), layer.bias)

        batch, dim, length = x.shape
        query = self.norm(conv(a.query, x)).permute(0, 2, 1).reshape(batch, length, heads, -1)
        key = (conv(a.key, text) * words).reshape(batch, heads, dim // heads, -1)
        value = (conv(a.value, text) * words).reshape(batch, heads, dim // heads, -1)
        scores = query.permute(0, 2, 1, 3) @ key * dim**-0.5 + mask
        out = (scores.softmax(-1) @ value.permute(0, 1, 3, 2)).permute(0, 2, 1, 3)
        out = self.norm(conv(a.out, out.reshape(batch, length, dim).permute(0, 2, 1)))
        fused = F.gelu(conv(self.ours.visual, x)) * out
        return F.gelu(conv(self.ours.project, fused)).permute(0, 2, 1)


class PlainLAVT(LAVT):
    """The same network with the structure of the published code."""

    @classmethod
    def of(cls, model: LAVT) -> PlainLAVT:
        plain = copy.deepcopy(model)
        plain.__class__ = cls
        plain.swin.config._attn_implementation = "eager"
        plain.bert.config._attn_implementation = "eager"
        plain.fusions = nn.ModuleList(PlainFusion(f) for f in plain.fusions)
        plain.decoder.to(memory_format=torch.contiguous_format)
        return plain

    def _blocks(self, i: int, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        for block in self.swin.encoder.layers[i].blocks:
            tokens = block(tokens, grid, always_partition=True)[0]
        return tokens


def plain_unsupervised(
    teacher_logits: torch.Tensor, student_logits: torch.Tensor, masks: list[Any]
) -> torch.Tensor:
    """Compute CPI-U by a loop over masks and PWA in NumPy, sample by sample."""
    device = teacher_logits.device
    weights = torch.tensor([0.9, 1.1], device=device)
    p = teacher_logits.softmax(1)[:, 1].cpu().numpy()
    matched, others = [], []
    for i, label in enumerate(teacher_logits.argmax(1)):
        union = torch.zeros_like(label, dtype=torch.bool)
        for mask in masks[i]:
            proposal = torch.from_numpy(mask).to(device, torch.float32)
            if (proposal * label).sum() / (label.sum() + 1e-9) > 0.7:
                union |= proposal.bool()
        logits = student_logits[i : i + 1]
        if union.any():
            target = union.long()[None]
            matched.append(F.cross_entropy(logits, target, weights, reduction="none").mean())
        else:
            psi = 1.3 - np.exp(-((p[i] - 0.5) ** 2) / 0.2) / (math.sqrt(2 * math.pi * 0.1))
            ce = F.cross_entropy(logits, label[None], reduction="none")
            others.append((ce[0] * torch.from_numpy(psi).to(device)).mean())
    parts = [torch.stack(group).mean() for group in (matched, others) if group]
    return torch.stack(parts).mean()


def plain_step(student: LAVT, teacher: LAVT, optimizer: Any, batch: Any) -> float:
    with torch.no_grad():
        teacher_logits = teacher(batch["weak"], batch["ids"][3:], batch["attention"][3:])
    logits = student(batch["pixels"], batch["ids"], batch["attention"])
    weights = torch.tensor([0.9, 1.1], device=logits.device)
    ce = F.cross_entropy(logits[:3], batch["truth"], weights, reduction="none")
    loss = ce.mean() + plain_unsupervised(teacher_logits, logits[3:], batch["masks"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    old, new = teacher.state_dict(), student.state_dict()
    teacher.load_state_dict({
        k: 0.996 * old[k] + 0.004 * new[k] if new[k].is_floating_point() else new[k] for k in new
    })  # fmt: skip
    gc.collect()
    return loss.item()


REFINER = PseudoLabelRefiner(strategy="cpi-u")


def our_step(student: LAVT, teacher: LAVT, optimizer: Any, batch: Any) -> float:
    with torch.no_grad():
        teacher_logits = teacher(batch["weak"], batch["ids"][3:], batch["attention"][3:])
    targets = REFINER(teacher_logits, batch["partitions"])
    logits = student(batch["pixels"], batch["ids"], batch["attention"])
    loss = supervised_loss(logits[:3], batch["truth"]) + unsupervised_loss(logits[3:], targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    update_ema(teacher, student, 0.996)
    return loss.item()


def make_batch(size: int, seed: int) -> dict[str, Any]:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    yy, xx = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0, size, (2, 3, 30, 1, 1)), rng.uniform(4, size / 3, (3, 30, 1, 1))
    masks = (yy - centre[0]) ** 2 + (xx - centre[1]) ** 2 <= radius**2
    ids = torch.randint(5, 100, (6, 20), generator=generator)
    attention = (torch.arange(20) < torch.tensor([[9], [5], [20], [7], [12], [4]])).long()
    return {
        "pixels": torch.randn(6, 3, size, size, generator=generator),
        "weak": torch.randn(3, 3, size, size, generator=generator),
        "ids": ids * attention, "attention": attention, "masks": masks,
        "truth": torch.from_numpy(masks[:, 0].astype(np.int64)),
        "partitions": [Partition.from_masks(m) for m in masks],
    }  # fmt: skip


def compare(name: str, options: argparse.Namespace) -> None:
    """Check that the losses over 5 steps are equal, then time both implementations alternately."""
    settings, size = common.lavt(name)
    torch.manual_seed(0)
    student = LAVT.from_config(settings, 120).train()
    ways = {}
    for way, model, step in (
        ("plain", PlainLAVT.of(student), plain_step),
        ("ours", student, our_step),
    ):
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=5e-5, weight_decay=0.01, fused=way == "ours",
        )  # fmt: skip
        ways[way] = functools.partial(step, model, make_teacher(model), optimizer)
    batches = [make_batch(size, seed) for seed in range(5)]
    losses = {way: [step(batch) for batch in batches] for way, step in ways.items()}
    np.testing.assert_allclose(losses["ours"], losses["plain"], rtol=1e-3)
    batch = batches[0]
    times = common.in_turn(
        {way: functools.partial(step, batch) for way, step in ways.items()}, options.repeats
    )
    teacher = make_teacher(student)

    def network() -> None:
        with torch.no_grad():
            teacher(batch["weak"], batch["ids"][3:], batch["attention"][3:])
        student(batch["pixels"], batch["ids"], batch["attention"]).mean().backward()

    operations, alone, rate = common.network_limit(network, options.repeats)
    common.verdict(
        f"training step, {name} LAVT, {size} px, {options.threads} threads",
        times.ratio(),
        TARGET,
        f"plain {times.ms('plain'):.0f} ms, ours {times.ms('ours'):.0f} ms, "
        f"equal losses (5 steps); limit: the networks alone take {1e3 * alone:.0f} ms for "
        f"{operations:.0f} GFLOP, {1e3 * operations / rate:.0f} ms at one large product's "
        f"{rate:.0f} GFLOP/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="tiny,swin-t")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.models.split(","):
        compare(name, options)


if __name__ == "__main__":
    main()
