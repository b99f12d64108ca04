"""A fixed training of 20 + 20 steps whose losses and digests identify the numerics of a machine.

The probe trains a LAVT of the embedded study's sizes on random samples: burn-in, then mutual
learning with CPI-U and PWA. It reads no file and no parameter. Its bytes therefore change only with
the numerics class, the versions of the libraries, and the code of the model, losses and refinement.

`python -m semires.training.probe PROFILE` prints the result as JSON.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from semires import numerics
from semires.errors import SemiresError

if TYPE_CHECKING:
    import torch

    from semires.models import LAVT, SegmentationModel

STEPS, BATCH, SIZE, TOKENS, WORDS = 20, 4, 96, 8, 64
_LR, _EMA = 1e-3, 0.99
_MODEL: dict[str, Any] = {
    "name": "lavt",
    "swin": {
        "pretrained": None, "patch_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8], "window_size": 6, "mlp_ratio": 4.0, "drop_path_rate": 0.1,
        "absolute_embeddings": True, "position_grid": 24,
    },
    "bert": {
        "pretrained": None, "vocabulary": None, "hidden_size": 64, "num_layers": 1, "num_heads": 4,
        "intermediate_size": 128, "dropout": 0.1,
    },
    "fusion_heads": [1, 1, 1, 1], "fusion_dropout": 0.1, "decoder_width": 24,
}  # fmt: skip
_OPTIMIZER = {
    "weight_decay": 0.01, "poly_power": 0.9, "clip_grad_norm": None, "bert_layers_trained": 10,
    "swin_lr_scale": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """The result of the probe in one process.

    Args:
        numerics: the numerics class and the versions of Python and the libraries.
        cpu: vendor, family, model and name of the CPU.
        losses: the float32 loss of every step by phase, ``burn_in`` and ``mutual``.
        digests: the first 12 characters of the SHA-256 of the first step's ``logits`` and
            ``gradients``, of the weights after 1, 10 and 20 steps of burn-in (``weights_1``, ...),
            and of the teacher after mutual learning (``mutual_20``).
        ms_per_step: median time of a step of burn-in, milliseconds.
    """

    numerics: dict[str, str]
    cpu: dict[str, str]
    losses: dict[str, list[float]]
    digests: dict[str, str]
    ms_per_step: float

    @property
    def name(self) -> str:
        """The numerics class and the version of torch: ``avx2-torch2.15.0``."""
        return f"{self.numerics['class']}-torch{self.numerics['torch'].partition('+')[0]}"

    def losses_text(self) -> str:
        """One line per step: phase, step, loss; equal texts mean equal bits."""
        lines = [
            f"{phase} {step} {loss!r}\n"
            for phase, losses in self.losses.items()
            for step, loss in enumerate(losses, start=1)
        ]
        return "".join(lines)


def measure(profile: str) -> Probe:
    """Run the probe in a new process under a numerics profile (a key of `numerics.PROFILES`).

    Raises:
        SemiresError: the process failed.
    """
    command = [sys.executable, "-m", "semires.training.probe", profile]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SemiresError(f"the probe of the profile {profile} failed: {reason}")
    return Probe(**json.loads(done.stdout))


def run() -> Probe:
    """Run the probe in this process; one thread, on the CPU."""
    import torch

    from semires.config.schema import Optimizer
    from semires.process import configure_torch
    from semires.training.losses import supervised_loss

    configure_torch(threads=1, deterministic=True)
    torch.manual_seed(0)
    student, samples = _model(), _samples()
    settings = Optimizer.model_validate(_OPTIMIZER)
    groups = student.parameter_groups(settings)
    optimizer = torch.optim.AdamW(groups, lr=_LR, weight_decay=settings.weight_decay, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = _LR * group["lr_scale"]
    digests: dict[str, str] = {}
    losses: dict[str, list[float]] = {"burn_in": []}
    times = []
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        images, tokens, _, labels = next(samples)
        torch.manual_seed(step)  # dropout
        logits = student(images, tokens, torch.ones_like(tokens))
        loss = supervised_loss(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 1:
            digests["logits"] = _digest([logits])
            digests["gradients"] = _digest(p.grad for p in student.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses["burn_in"].append(float(loss.detach()))
        times.append(time.perf_counter() - began)
        if step in (1, 10, STEPS):
            digests[f"weights_{step}"] = _digest(student.state_dict().values())
    losses["mutual"], teacher = _mutual(student, optimizer, samples)
    digests[f"mutual_{STEPS}"] = _digest(teacher.state_dict().values())
    ms = round(1e3 * statistics.median(times), 1)
    return Probe(numerics.software(), numerics.cpu_model(), losses, digests, ms)


def _mutual(
    student: LAVT,
    optimizer: torch.optim.Optimizer,
    samples: Iterator[tuple[torch.Tensor, torch.Tensor, list[Any], torch.Tensor]],
) -> tuple[list[float], SegmentationModel]:
    """Train by mutual learning; returns the losses of the steps and the teacher."""
    import torch

    from semires.refine import PseudoLabelRefiner
    from semires.training.ema import make_teacher, update_ema
    from semires.training.losses import supervised_loss, unsupervised_loss

    teacher, refiner = make_teacher(student), PseudoLabelRefiner(strategy="cpi-u")
    losses = []
    for step in range(1, STEPS + 1):
        images, tokens, _, labels = next(samples)
        weak, hidden_tokens, partitions, _ = next(samples)
        with torch.no_grad():
            targets = refiner(teacher(weak, hidden_tokens, torch.ones_like(tokens)), partitions)
        torch.manual_seed(STEPS + step)
        both, texts = torch.cat([images, weak.flip(1)]), torch.cat([tokens, hidden_tokens])
        on_labelled, on_strong = student(both, texts, torch.ones_like(texts)).split(BATCH)
        loss = supervised_loss(on_labelled, labels) + unsupervised_loss(on_strong, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        update_ema(teacher, student, _EMA)
        losses.append(float(loss.detach()))
    return losses, teacher


def _model() -> LAVT:
    from semires.config.model import Lavt
    from semires.models import LAVT

    return LAVT.from_config(Lavt.model_validate(_MODEL), WORDS).train()


def _samples() -> Iterator[tuple[torch.Tensor, torch.Tensor, list[Any], torch.Tensor]]:
    """Batches of images float32 (B,3,S,S), tokens int64 (B,L), partitions, labels int64 (B,S,S).

    An image is noise with two rectangles of different brightness; the first token says which one is
    the object. All values come from integers, so that they are equal on every machine.
    """
    import numpy as np
    import torch

    from semires.refine.partition import Partition

    rng = np.random.default_rng(0)
    while True:
        images = rng.integers(0, 96, (BATCH, 3, SIZE, SIZE))
        tokens = rng.integers(2, WORDS, (BATCH, TOKENS))
        tokens[:, 0] = rng.integers(0, 2, BATCH)
        masks = np.zeros((BATCH, 2, SIZE, SIZE), dtype=bool)
        for image, pair in zip(images, masks, strict=True):
            for which, mask in enumerate(pair):
                top, left = rng.integers(0, SIZE // 2, 2)
                height, width = rng.integers(SIZE // 3, SIZE // 2, 2)
                mask[top : top + height, left + which * 4 : left + width] = True
                image[:, mask] += 60 + 100 * which
        labels = masks[np.arange(BATCH), tokens[:, 0]]
        pixels = (images.astype(np.float32) - 128) / 64
        yield (
            torch.from_numpy(pixels), torch.from_numpy(tokens),
            [Partition.from_masks(pair) for pair in masks], torch.from_numpy(labels).long(),
        )  # fmt: skip


def _digest(tensors: Iterable[torch.Tensor | None]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    numerics.select(sys.argv[1])
    print(json.dumps(asdict(run())))
