"""Counts the operations of the paper's study and turns them into hours.

    python benchmarks/operations.py [--params experiments/refcoco.yaml] [--tflops 312] [--share 0.4]

LAVT is built by the project's own classes and runs once with random weights; SAM is built by
segment_anything on torch's meta device, which knows shapes only. `FlopCounterMode` counts products
and convolutions, a multiply-add as two. Hours are operations over ``--tflops`` times ``--share``:
the first is the device's rate on paper (312 for an A100 in bf16), the second an assumption, to be
replaced by what a first epoch shows. Cost: half a minute, one core. Prints docs/paper.md's table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything import build_sam_vit_h
from torch.utils.flop_counter import FlopCounterMode

from semires.config import Params, load_params
from semires.data.prepare import EXPRESSIONS, TOTALS
from semires.models import LAVT

BERT_VOCABULARY = 30_522
REFCOCO = ("refcoco", "unc")


@dataclass(frozen=True)
class Network:
    """Operations of one forward pass, and the number of parameters."""

    operations: float
    parameters: int


def count(call: Callable[[], object]) -> float:
    """Operations of a call on meta tensors."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def lavt(params: Params) -> Network:
    """LAVT on one image and one expression, of the parameters' sizes."""
    size, tokens = params.data.image_size, params.data.max_tokens
    model = LAVT.from_config(params.model, BERT_VOCABULARY).eval()
    pixels, ids = torch.zeros(1, 3, size, size), torch.zeros(1, tokens, dtype=torch.int64)
    operations = count(lambda: model(pixels, ids, torch.ones_like(ids)))
    return Network(operations, sum(p.numel() for p in model.parameters()))


def sam_vit_h(points: int, batch: int) -> tuple[Network, float]:
    """ViT-H's encoder on one image, and its decoder on ``points`` prompts in batches."""
    with torch.device("meta"):
        sam = build_sam_vit_h().eval()
        image = torch.empty(1, 3, 1024, 1024)
        encoder = count(lambda: sam.image_encoder(image))
        embedding = torch.empty(1, 256, 64, 64)  # the positional code has the same shape
        sparse, dense = torch.empty(batch, 2, 256), torch.empty(batch, 256, 64, 64)
        decode = partial(sam.mask_decoder, embedding, embedding, sparse, dense, True)
        decoder = count(decode) * math.ceil(points / batch)
    return Network(encoder, sum(p.numel() for p in sam.parameters())), decoder


def rows(params: Params) -> list[tuple[str, str, float]]:
    """Stage, what is counted, operations."""
    network = lavt(params)
    source = params.proposals.sources["sam"].model_dump()
    points = source["points_per_side"] ** 2
    encoder, decoder = sam_vit_h(points, source["points_per_batch"])
    images, train = TOTALS[REFCOCO]["images"], EXPRESSIONS[REFCOCO]["train"]
    held_out = sum(EXPRESSIONS[REFCOCO].values()) - train
    forward, mutual = network.operations, params.mutual
    labelled = round(0.01 * train)
    ratio = mutual.labelled_batch / mutual.unlabelled_batch
    # A student pass counts three times (its backward pass twice), the teacher's once.
    epoch = (train - labelled) * (3 * (1 + ratio) + 1) * forward
    return [
        ("SAM ViT-H, encoder", f"{images:,} images", images * encoder.operations),
        ("SAM ViT-H, decoder", f"{images:,} images x {points:,} points", images * decoder),
        ("burn-in at 1 %, one epoch", f"{labelled:,} expressions", 3 * labelled * forward),
        ("mutual learning at 1 %, one epoch", f"{train - labelled:,} unlabelled expressions and "
         "as many labelled ones", epoch),
        (f"the same, {mutual.epochs} epochs", "", (mutual.epochs or 1) * epoch),
        ("evaluation, val + testA + testB", f"{held_out:,} expressions", held_out * forward),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", default="experiments/refcoco.yaml")
    parser.add_argument("--tflops", type=float, default=312.0, help="the device's rate on paper")
    parser.add_argument("--share", type=float, default=0.4, help="of it that is reached")
    options = parser.parse_args()
    params = load_params(options.params)
    network = lavt(params)
    print(
        f"LAVT: {network.operations / 2e9:.1f} GMAC an expression, "
        f"{network.parameters / 1e6:.1f} M parameters; weights, gradients, AdamW's two moments "
        "and the teacher in float32: "
        f"{5 * 4 * network.parameters / 2**30:.1f} GiB.\n"
    )
    print("| stage | counted | operations | hours |\n| --- | --- | ---: | ---: |")
    for stage, counted, operations in rows(params):
        hours = operations / (options.tflops * 1e12 * options.share) / 3600
        print(f"| {stage} | {counted} | {operations / 1e15:,.1f} PFLOP | {hours:,.2f} |")


if __name__ == "__main__":
    main()
