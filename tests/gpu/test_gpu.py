"""Training, matching and proposals on a GPU against the CPU.

`make gpu` runs these tests on a machine with a GPU. Without one, the tests that can run on the CPU
do so, and the others are skipped. They need no DVC, MLflow or Optuna.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HELPERS, ROOT
from helpers.small_study import made_study, small_params
from segment_anything import SamAutomaticMaskGenerator
from torch import distributed, nn

from semires import process
from semires.dist import Group
from semires.errors import Interrupted
from semires.files import sha256_file, write_json
from semires.models import LAVT, ReLA
from semires.models.base import TrainingForward
from semires.models.encoder import new_bert
from semires.proposals.fast_amg import AutomaticMasks
from semires.proposals.tiny_sam import build_tiny_sam
from semires.refine import PartitionBatch, PseudoLabelRefiner
from semires.refine.partition import Partition
from semires.refine.strategies import STRATEGIES
from semires.runs.key import RunKey
from semires.training.burn_in import SECTIONS, burn_in
from semires.training.context import RunContext
from semires.training.losses import supervised_loss

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
pytestmark = pytest.mark.gpu
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
BURN_IN = RunKey("refscenes", 25, "supervised", 0)


@pytest.fixture(autouse=True)
def _plain_arithmetic() -> Iterator[None]:
    """float32 without TF32, whatever an earlier test left."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("study")
    with made_study(folder):
        yield folder


def scene(seed: int, count: int = 3, side: int = 64) -> tuple[torch.Tensor, list[Partition]]:
    """Teacher logits (count,2,side,side) and partitions of overlapping discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre, radius = (
        rng.uniform(0, side, (2, count, 12, 1, 1)),
        rng.uniform(4, 20, (count, 12, 1, 1)),
    )
    masks = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    noise = rng.normal(0, 0.7, (count, 2, side, side))
    noise[:, 1] += 2.0 * masks[:, 0] - 1.0
    return torch.from_numpy(noise).float(), [Partition.from_masks(m) for m in masks]


def network(name: str) -> tuple[LAVT | ReLA, tuple[torch.Tensor, ...], torch.Tensor]:
    """A small model without dropout, on the CPU, its inputs and a ground truth."""
    params = small_params()
    torch.manual_seed(0)
    if name == "lavt":
        model: LAVT | ReLA = LAVT.from_config(params.model, 100)
    else:
        section = params.models[name].model
        model = ReLA(section, new_bert(section.bert, 100))
    model.train()
    pixels = torch.randn(4, 3, 64, 64)
    ids = torch.randint(5, 100, (4, 12))
    attention = (torch.arange(12) < torch.tensor([[12], [5], [7], [9]])).long()
    truth = (torch.nn.functional.avg_pool2d(pixels[:, :1], 9, 1, 4)[:, 0] > 0).long()
    return model, (pixels, ids * attention, attention), truth


def gradients(
    name: str, device: torch.device, precision: str, compiled: bool = False
) -> tuple[float, torch.Tensor]:
    """The loss of one step and all gradients as one vector, on the CPU."""
    model, inputs, truth = network(name)
    forward: nn.Module = TrainingForward(model.to(device))
    if compiled:
        forward.compile()
    with process.autocast(device, precision):
        outputs = forward(*(tensor.to(device) for tensor in inputs))
    truth = truth.to(device)
    extra = model.extra_losses(outputs, truth).values()
    loss = sum(extra, supervised_loss(outputs.logits.float(), truth))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", init_scale=1024.0)
    scaler.scale(loss).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), 0.1))
    flat = [p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(flat)


@pytest.mark.parametrize("model", ["lavt", "rela"])
@pytest.mark.parametrize(
    ("precision", "loss_tolerance", "least_cosine"),
    [("fp32", 1e-5, 0.99999), ("bf16", 2e-2, 0.97), ("fp16", 3e-3, 0.999)],
)
def test_a_step_on_the_device_agrees_with_float32(
    model: str, precision: str, loss_tolerance: float, least_cosine: float
):
    """bf16 has 8 bits of mantissa and fp16 has 11: relative rounding errors of 4e-3 and 5e-4."""
    if precision == "fp16" and not HAS_GPU:
        pytest.skip("fp16 on the CPU is not used")
    wanted_loss, wanted = gradients(model, torch.device("cpu"), "fp32")
    loss, found = gradients(model, DEVICE, precision)
    assert loss == pytest.approx(wanted_loss, rel=loss_tolerance)
    assert torch.isfinite(found).all()
    assert torch.cosine_similarity(found, wanted, dim=0) > least_cosine


@needs_gpu
def test_a_compiled_step_agrees_with_the_eager_one():
    wanted_loss, wanted = gradients("lavt", DEVICE, "fp32")
    loss, found = gradients("lavt", DEVICE, "fp32", compiled=True)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.9999


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_labels_on_the_device_equal_those_of_the_cpu(strategy: str):
    refiner = PseudoLabelRefiner(strategy=strategy)
    for seed in range(4):
        logits, partitions = scene(seed)
        wanted = refiner(logits, partitions)
        found = refiner(logits.to(DEVICE), PartitionBatch.of(partitions))
        assert torch.equal(found.labels.cpu(), wanted.labels)
        assert torch.equal(found.matched.cpu(), wanted.matched)
        torch.testing.assert_close(found.weights.cpu(), wanted.weights, rtol=0, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_refining_never_waits_for_the_device(strategy: str):
    refiner = PseudoLabelRefiner(strategy=strategy)
    logits, partitions = scene(0)
    batch, on_device = PartitionBatch.of(partitions).to(DEVICE), logits.to(DEVICE)
    refiner(on_device, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        refiner(on_device, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_and_copied_without_waiting(study: Path, workers: int):
    params = small_params(runtime={"workers": workers})
    context = RunContext(params, BURN_IN, SECTIONS)
    batch = next(context.loader(context.labelled_dataset(context.labelled_refs), 3, range(2)))
    assert batch.image.is_pinned()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(DEVICE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.equal(moved.image.cpu(), batch.image)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in folder.iterdir() if p.name != "provenance.json"}


def test_a_deterministic_run_repeats_after_an_interruption(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    """The unbroken run and the resumed one have the same bytes on this device."""
    params = small_params(runtime={"deterministic": True})
    burn_in(params, BURN_IN)
    wanted = digests(BURN_IN.folder)
    polls = iter(range(1, 100))
    monkeypatch.setattr(process, "stop_requested", lambda: 143 if next(polls) == 3 else None)
    with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
        burn_in(params, BURN_IN)
    burn_in(params, BURN_IN)
    assert digests(BURN_IN.folder) == wanted


@needs_gpu
@pytest.mark.parametrize("model", [None, "rela"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_mixed_precision_ends(study: Path, precision: str, model: str | None):
    """Its parameters stay finite; with fp16, GradScaler takes part."""
    key = replace(BURN_IN, model=model)
    burn_in(small_params(runtime={"precision": precision, "deterministic": False}), key)
    from safetensors.torch import load_file

    weights = load_file(key.folder / "model.safetensors")
    assert all(bool(torch.isfinite(w).all()) for w in weights.values() if w.is_floating_point())


def test_masks_of_segment_everything_agree_with_the_original_on_the_device():
    """On the CPU they are equal. On a GPU, kernels depend on the size of a batch."""
    torch.manual_seed(0)
    sam = build_tiny_sam().eval().to(DEVICE)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    settings = {"points_per_side": 4, "points_per_batch": 5, "pred_iou_thresh": 0.0,
                "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}  # fmt: skip
    wanted = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    found = AutomaticMasks(sam, **settings).propose(image)
    assert len(wanted) > 0
    assert abs(len(found) - len(wanted)) <= (max(1, len(wanted) // 20) if HAS_GPU else 0)
    originals = np.stack([record["segmentation"] for record in wanted])
    for mask in found.masks:
        both, either = (originals & mask).sum((1, 2)), (originals | mask).sum((1, 2))
        assert (both / np.maximum(either, 1)).max() >= (0.98 if HAS_GPU else 1.0) or not mask.any()


def test_one_process_in_a_group_of_its_own():
    """nccl (gloo on the CPU) with one process: sums, gathers, and DDP's gradients."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    backend = "nccl" if HAS_GPU else "gloo"
    distributed.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1
    )
    try:
        values = torch.arange(3.0, device=DEVICE)
        distributed.all_reduce(values)
        assert values.tolist() == [0, 1, 2]
        gathered: list[object] = [None]
        distributed.all_gather_object(gathered, {"rows": 3})
        assert gathered == [{"rows": 3}]
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(DEVICE)
        wrapped = Group(0, 2, DEVICE).wrap(layer)  # as if there were another process
        wrapped(torch.randn(2, 3, 8, 8, device=DEVICE)).square().sum().backward()
        assert all(p.grad is not None for p in wrapped.parameters())
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
def test_two_gpus_train_one_run(study: Path):
    write_json("params.json", small_params().model_dump())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HELPERS / "rank.py"), "train", "supervised"], check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (BURN_IN.folder / "run.json").is_file()
