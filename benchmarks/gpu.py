"""Claims on a GPU: a step is 2.5x as fast as the published structure, segment-everything 3x.

    python benchmarks/gpu.py [--seconds 420] [--only tests,step,sam,matching]

Runs the tests marked `gpu` and three comparisons at the paper's sizes with random weights, and
writes reports/gpu.md with the device's name. Without torch or a GPU it says so. semires does not
have to be installed. The parts need torch, transformers, pydantic and ruamel.yaml; `sam` also needs
segment-anything, and `tests` also pytest, pandas, pyarrow, scipy, scikit-image and pycocotools.
None needs DVC, MLflow or Optuna; the page says what is missing. Each part has its own process and a
limit of time, so that a part that fails leaves the others.

The step: 3 labelled and 3 unlabelled samples of 480 pixels, LAVT with Swin-B and BERT-base, without
dropout. Plain is the structure of the published code (`training_step.py`) in float32 with TF32.
Ours is bf16 with torch.compile. Both together need about 30 GiB. SAM: ViT-H on an image of 640x480.
Its random weights get a threshold that a tenth of the masks pass.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parent.parent
sys.path.insert(0, str(ROOT))  # semires may be missing from the environment
STEP_TARGET, SAM_TARGET = 2.5, 3.0
REPEATS = 5


def synchronised(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work, finished on the device."""
    import torch

    def run() -> Any:
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}


def adamw(model: Any, fused: bool) -> Any:
    """The optimizer of the comparison."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.01, fused=fused)


def training_step(params: Any, device: Any, compiled: bool = True) -> None:
    """Compare the steps of mutual learning and print a verdict and the peak memory of ours."""
    import common
    import torch
    import training_step as steps

    from semires.config.model import parse_model
    from semires.models import LAVT
    from semires.models.base import TrainingForward
    from semires.process import autocast
    from semires.refine import PartitionBatch
    from semires.training.ema import make_teacher, update_ema
    from semires.training.losses import supervised_loss, unsupervised_loss

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    tree = params.model.model_dump()
    tree["swin"]["drop_path_rate"] = tree["bert"]["dropout"] = tree["fusion_dropout"] = 0.0
    student = LAVT.from_config(parse_model(tree), 30_522).to(device).train()
    plain = steps.PlainLAVT.of(student)
    batch = to_device(steps.make_batch(params.data.image_size, 0), device)
    partitions = PartitionBatch.of(batch["partitions"]).to(device)
    teacher = make_teacher(student)
    forward = TrainingForward(student)
    if compiled:
        forward.compile()

    optimizer, plain_optimizer = adamw(student, True), adamw(plain, False)
    plain_teacher = make_teacher(plain)

    def ours() -> float:
        with torch.no_grad(), autocast(device, "bf16"):
            teacher_logits = teacher(batch["weak"], batch["ids"][3:], batch["attention"][3:])
        targets = steps.REFINER(teacher_logits.float(), partitions)
        with autocast(device, "bf16"):
            logits = forward(batch["pixels"], batch["ids"], batch["attention"]).logits
        logits = logits.float()
        loss = supervised_loss(logits[:3], batch["truth"])
        loss = loss + unsupervised_loss(logits[3:], targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        update_ema(teacher, student, 0.996)
        return float(loss.detach())

    def published() -> float:
        return steps.plain_step(plain, plain_teacher, plain_optimizer, batch)

    first = {"ours": ours(), "plain": published()}  # the same weights, before any update
    assert abs(first["ours"] / first["plain"] - 1) < 0.05, first
    ways = {"plain": synchronised(published), "ours": synchronised(ours)}
    times = common.in_turn(ways, REPEATS)
    common.verdict(
        f"training step, LAVT of refcoco.yaml, {params.data.image_size} px, bf16, compiled",
        times.ratio(), STEP_TARGET,
        f"published structure {times.ms('plain'):.0f} ms, ours {times.ms('ours'):.0f} ms; first "
        f"losses {first['plain']:.4f} and {first['ours']:.4f}",
    )  # fmt: skip


def segment_everything(params: Any, device: Any, size: tuple[int, int] = (480, 640)) -> None:
    """Compare segment-everything with the original generator on one image."""
    import common
    import numpy as np
    import segment_everything as everything
    import torch
    from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

    from semires.proposals.fast_amg import AutomaticMasks
    from semires.proposals.tiny_sam import build_tiny_sam

    torch.manual_seed(0)
    model = params.sam.model
    build = build_tiny_sam if model == "tiny" else sam_model_registry[model]
    sam = build().eval().to(device)
    settings = params.proposals.sources["sam"].model_dump(exclude={"kind"})
    settings.update(pred_iou_thresh=0.0, stability_score_thresh=0.0)
    image = everything.scene(0, *size)
    some = AutomaticMasks(sam, **{**settings, "points_per_side": 8, "box_nms_thresh": 1.0})
    found = some.propose(image).predicted_iou
    settings["pred_iou_thresh"] = float(np.quantile(found, 0.9)) if len(found) else 0.0
    upstream, ours = SamAutomaticMaskGenerator(sam, **settings), AutomaticMasks(sam, **settings)
    ways = {
        "plain": synchronised(lambda: upstream.generate(image)),
        "ours": synchronised(lambda: ours.propose(image)),
    }
    counts = len(ways["plain"]()), len(ways["ours"]())
    times = common.in_turn(ways, 2)
    common.verdict(
        f"segment everything, SAM {model}, {size[1]}x{size[0]}", times.ratio(), SAM_TARGET,
        f"upstream {times.ms('plain'):.0f} ms with {counts[0]} masks, ours "
        f"{times.ms('ours'):.0f} ms with {counts[1]} masks",
    )  # fmt: skip


def matching() -> None:
    """The time of matching a batch, without any synchronisation."""
    import common
    import numpy as np
    import torch
    from matching import NUMBER, SIZE, on_gpu

    from semires.refine.partition import Partition

    masks = common.blobs(SIZE, SIZE, NUMBER, seed=0)
    label = masks[masks.sum((1, 2)).argmax()] & (
        np.random.default_rng(0).random((SIZE, SIZE)) < 0.9
    )
    for strategy in ("iom", "cpi"):
        on_gpu(strategy, Partition.from_masks(masks), torch.from_numpy(label), 20)


def part(name: str) -> None:
    """Run one comparison in this process and print its lines and the peak memory."""
    import torch

    from semires.config.load import load_params

    params, device = load_params(ROOT / "experiments/refcoco.yaml"), torch.device("cuda")
    if name == "matching":
        matching()
    else:
        {"step": training_step, "sam": segment_everything}[name](params, device)
    print(f"peak memory of both together: {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB")


COMMANDS: dict[str, list[str]] = {
    "tests": ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-rs", "-m", "gpu",
              "tests/gpu"],
    **{name: ["benchmarks/gpu.py", "--part", name] for name in ("step", "sam", "matching")},
}  # fmt: skip
TITLES = {
    "tests": "Tests marked `gpu`",
    "step": "A step of mutual learning",
    "sam": "Segment everything",
    "matching": "Matching a batch",
}


def run(name: str, seconds: float) -> tuple[str, bool]:
    """Run one part in a process of its own; return its text, and whether it succeeded."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    command = [sys.executable, *COMMANDS[name]]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"FAILED: not finished after {seconds:.0f} s", False
    text = done.stdout.strip()
    if done.returncode:
        text += f"\nFAILED: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    return text, done.returncode == 0


def main() -> int:
    """Run all parts and write the page; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=420, help="limit of all parts together")
    parser.add_argument("--only", default=",".join(COMMANDS), help="parts, in this order")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        print(f"gpu: {sys.executable} cannot import torch ({error}); nothing was run")
        return 0
    if not torch.cuda.is_available():
        print("gpu: torch finds no GPU on this machine; nothing was run")
        return 0
    if options.part:
        part(options.part)
        return 0
    from semires.files import write_text

    end, good, count = time.monotonic() + options.seconds, True, torch.cuda.device_count()
    lines = [
        "# On a GPU", "",
        f"`make gpu` on {count} x {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}. Random weights of the paper's sizes.", "",
    ]  # fmt: skip
    for name in options.only.split(","):
        started = time.monotonic()
        text, succeeded = run(name, max(10.0, end - started))
        good = good and succeeded
        print(text, flush=True)
        lines += [f"## {TITLES[name]}", "", "```", text, "```", ""]
        lines += [f"{time.monotonic() - started:.0f} s.", ""]
        write_text(ROOT / "reports/gpu.md", "\n".join(lines))  # kept if a later part is killed
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
