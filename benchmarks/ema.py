"""Claim: the EMA update of a 120 M-parameter model is at least 4x as fast as a new state dict.

    python benchmarks/ema.py [--quick]

Plain: average into a new state dict, key by key, and load it. Ours: update_ema, in place. Both use
one thread and give equal weights. The memory that torch allocates in one update is also reported.
"""

from __future__ import annotations

from collections.abc import Callable

import common
import torch
from torch import nn

from semires.training.ema import make_teacher, update_ema

TARGET = 4
DECAY = 0.996


def student_of_120m() -> nn.Module:
    """Build a model with the shapes of BERT-base, two convolutions and a batch norm."""
    layers = [nn.TransformerEncoderLayer(768, 12, 3072) for _ in range(12)]
    decoder = [nn.Conv2d(1024, 1024, 3), nn.BatchNorm2d(1024), nn.Conv2d(1024, 512, 1)]
    return nn.ModuleList([nn.Embedding(30522, 768), *layers, *decoder]).train()


def plain(teacher: nn.Module, student: nn.Module) -> None:
    """Average key by key into a new state dict."""
    source, averaged = student.state_dict(), {}
    for key, value in teacher.state_dict().items():
        new = source[key]
        if value.is_floating_point():
            averaged[key] = value * DECAY + new * (1 - DECAY)
        else:
            averaged[key] = new
    teacher.load_state_dict(averaged)


def allocated_mb(step: Callable[[], None]) -> float:
    """Return the memory that torch allocates during a step, the sum over all tensors, MiB."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    return sum(size for size in sizes if size > 0) / 2**20


def main() -> None:
    options = common.options(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = student_of_120m()
    count = sum(p.numel() for p in student.parameters())
    ours, theirs = make_teacher(student), make_teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    allocated = allocated_mb(lambda: update_ema(ours, student, DECAY))
    theirs_allocated = allocated_mb(lambda: plain(theirs, student))
    for mine, its in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)
    flat, other = torch.zeros(count), torch.zeros(count)

    def limit() -> None:
        """Read two floats and write one per parameter, in one flat tensor."""
        flat.lerp_(other, 1 - DECAY)

    times = common.in_turn(
        {
            "plain": lambda: plain(theirs, student),
            "ours": lambda: update_ema(ours, student, DECAY),
            "limit": limit,
        },
        options.repeats,
    )
    speed = 12 * count / times.seconds("limit") / 1e9
    common.verdict(
        f"EMA update of {count / 1e6:.0f} M parameters",
        times.ratio(),
        TARGET,
        f"plain {times.ms('plain'):.0f} ms, ours {times.ms('ours'):.0f} ms, equal weights; "
        f"limit: one flat tensor takes {times.ms('limit'):.0f} ms ({speed:.1f} GB/s); "
        f"allocated: plain {theirs_allocated:.0f} MB, ours {allocated:.1f} MB",
    )


if __name__ == "__main__":
    main()
