"""Claim: the cost of the paper's study can be estimated from counted operations.

    python benchmarks/operations.py [--params FILE] [--model rela] [--peak 312] [--gpus 1]

torch's FlopCounterMode counts the matrix products and convolutions (a multiply-add is two
operations) of the models of this project on the meta device. This needs no weights, data or GPU,
and takes 15 seconds and 1 GB. Norms, activations, resizing and copies are not counted.
`--utilisation`, the share of the GPU's peak that the products reach, is an assumption; all other
numbers are counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from semires.config.grid import expand
from semires.config.load import load_params
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.data.prepare import PUBLISHED
from semires.rehearsal.operations import Operations, count_network, count_sam, network
from semires.runs.key import SUPERVISED, RunKey

REFCOCO = PUBLISHED["refcoco", "unc"]
GIB = 2**30


def saved_bytes(model: torch.nn.Module, work: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves for backward, without parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # references, so that no address is reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def stages(params: Params, sample: Operations, image: float) -> dict[str, float]:
    """Return the TFLOP of each stage for RefCOCO.

    Args:
        params: all parameters.
        sample: TFLOP of the model for one sample.
        image: TFLOP of the proposals of one image.
    """
    expressions = {split: row["expressions"] for split, row in REFCOCO.items()}
    images = REFCOCO["all"]["images"]
    forward, shared, train = sample.forward, sample.shared, sample.train
    split = {  # TFLOP of an evaluation: `encode_image` per image, the rest per expression
        name: REFCOCO[name]["images"] * shared + n * (forward - shared)
        for name, n in expressions.items()
        if name not in ("train", "all")
    }
    burn_in, mutual = params.burn_in.epochs or 0, params.mutual.epochs or 0
    rows = {f"proposals of {images:,} images": images * image}
    for fraction in dict.fromkeys(key.fraction for key in expand(params)):
        labelled = round(expressions["train"] * fraction / 100)
        name = f"burn-in at {fraction:g} %, {burn_in} epochs of about {labelled:,} expressions"
        rows[name] = burn_in * labelled * train
    unlabelled = round(expressions["train"] * 0.99)  # each step has as many labelled samples
    epoch = unlabelled * (2 * train + forward)
    labels = REFCOCO["val"]["refs"] + round(REFCOCO["train"]["refs"] * 0.99)
    return rows | {
        f"mutual learning at 1 %, one epoch: 2 x {unlabelled:,} samples": epoch,
        f"the same, {mutual} epochs (published code)": mutual * epoch,
        "the same, 14 epochs (the paper's Figure 7)": 14 * epoch,
        f"evaluation on val after each of {mutual} epochs": mutual * split["val"],
        "a run's last evaluation (val, val shuffled, tests)": split["val"] + sum(split.values()),
        f"label quality after a burn-in at 1 %, {labels:,} references": labels * forward,
    }


def memory(params: Params) -> dict[str, float]:
    """Return GiB of GPU memory and disk in float32; bf16 about halves the saved activations."""
    samples = params.mutual.labelled_batch + params.mutual.unlabelled_batch
    model, forward = network(params, samples)
    weights = 4 * sum(p.numel() for p in model.parameters()) / GIB
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) / GIB
    kept = []
    for checkpointing in (True, False):
        model.set_grad_checkpointing(checkpointing)
        kept.append(saved_bytes(model, forward) / GIB)
    return {
        "GPU: student, teacher, best weights": 3 * weights,
        "GPU: gradients and AdamW's two moments": 3 * trained,
        f"GPU: kept for backward, {samples} samples, with grad_checkpointing": kept[0],
        "GPU: the same without": kept[1],
        "disk: a run's `model.safetensors`": weights,
        "disk: unfinished mutual learning, two states": 2 * (3 * weights + 2 * trained),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", default="experiments/refcoco.yaml")
    parser.add_argument("--model", help="a key of `models`; default: the section `model`")
    parser.add_argument("--peak", type=float, default=312, help="TFLOP/s (an A100's, bf16)")
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--gpus", type=int, default=1)
    options = parser.parse_args()
    params, rate = load_params(options.params), options.peak * options.utilisation * options.gpus
    key = RunKey(params.study.datasets[0], 1, SUPERVISED, 0, model=options.model)
    params = resolve(params, key)
    sample, (encoder, decoder) = count_network(params), count_sam(params)
    title = f"{type(network(params, 1)[0]).__name__}, one sample"
    counted = {
        f"{title}: forward": sample.forward,
        f"{title}: forward, once per image": sample.shared,
        f"{title}: forward and backward": sample.train,
        "SAM: image encoder": encoder,
        "SAM: mask decoder, all points": decoder,
    }
    print("| counted | GFLOP |\n| --- | --- |")
    for name, value in counted.items():
        print(f"| {name} | {1e3 * value:,.0f} |")
    print(f"\n| stage | EFLOP | hours at {rate:.0f} TFLOP/s |\n| --- | --- | --- |")
    for name, value in stages(params, sample, encoder + decoder).items():
        print(f"| {name} | {value / 1e6:.3f} | {value / rate / 3600:.2f} |")
    print("\n| memory and disk, float32 | GiB |\n| --- | --- |")
    for name, value in memory(params).items():
        print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    main()
