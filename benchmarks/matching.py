"""Claim: IOM and CPI on 100 masks of 480x480 are at least 30x as fast as a loop over masks.

    python benchmarks/matching.py [--quick]

Plain: for each mask, sums of products of tensors. Ours: counts of atoms; the areas of the proposals
are not cached between repeats, as for a new image. Both use one thread and give equal labels. With
a GPU, a batch of 16 is also timed, and any synchronisation with the device is an error.
"""

from __future__ import annotations

import common
import numpy as np
import torch

from semires.refine.batch import PartitionBatch, match_batch
from semires.refine.matching import match
from semires.refine.partition import Partition
from semires.refine.strategies import get_strategy

TARGET = 30
SIZE, NUMBER, BATCH = 480, 100, 16


def plain(strategy: str, masks: torch.Tensor, label: torch.Tensor) -> torch.Tensor | None:
    """Match mask by mask like the published code; uint8 masks, and an int64 label of 0 and 1."""
    if strategy == "iom":
        scores = []
        for mask in masks:
            both = mask * label
            scores.append(both.sum() / (mask + label - both).sum())
        best = int(torch.stack(scores).argmax())
        return masks[best] > 0 if scores[best] > 0.5 else None
    union = None
    for mask in masks:
        both = (mask * label).sum()
        if both / (label.sum() + 1e-9) > 0.7 or both / mask.sum() > 0.7:
            union = mask > 0 if union is None else union | (mask > 0)
    return union


def on_gpu(strategy: str, partition: Partition, labels: torch.Tensor, repeats: int) -> None:
    batch = PartitionBatch.of([partition] * BATCH).to("cuda")
    labels = labels.expand(BATCH, -1, -1).cuda()
    rule = get_strategy(strategy)
    found, _ = match_batch(rule, batch, labels, rule.thresholds)
    wanted = match(rule, partition, labels[0].cpu().numpy(), rule.thresholds)
    if wanted is not None:
        np.testing.assert_array_equal(found[-1].cpu().numpy(), wanted)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    begin.record()
    for _ in range(repeats):
        match_batch(rule, batch, labels, rule.thresholds)
    end.record()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    took = begin.elapsed_time(end) / repeats
    print(
        f"{strategy} on {torch.cuda.get_device_name()}: batch of {BATCH} in {took:.3f} ms, no sync"
    )


def main() -> None:
    options = common.options(__doc__)
    torch.set_num_threads(1)
    masks = common.blobs(SIZE, SIZE, NUMBER, seed=0)
    partition = Partition.from_masks(masks)
    largest = masks[masks.sum((1, 2)).argmax()]
    label = largest & (np.random.default_rng(0).random((SIZE, SIZE)) < 0.9)
    tensors, target = torch.from_numpy(masks.astype(np.uint8)), torch.from_numpy(label).long()
    for strategy in ("iom", "cpi"):

        def ours(strategy: str = strategy) -> np.ndarray | None:
            fresh = Partition(partition.atoms, partition.members)
            rule = get_strategy(strategy)
            return match(rule, fresh, label, rule.thresholds)

        def loop(strategy: str = strategy) -> torch.Tensor | None:
            return plain(strategy, tensors, target)

        def limit() -> np.ndarray:
            return np.bincount(partition.atoms.ravel())

        found, wanted = ours(), loop()
        assert found is not None
        assert wanted is not None
        np.testing.assert_array_equal(found, wanted.numpy())
        times = common.in_turn({"plain": loop, "ours": ours, "limit": limit}, options.repeats)
        common.verdict(
            f"{strategy}, {NUMBER} masks at {SIZE}x{SIZE}",
            times.ratio(),
            TARGET,
            f"plain {times.ms('plain'):.1f} ms, ours {times.ms('ours'):.2f} ms, equal "
            f"labels; limit: one count of the pixels takes {times.ms('limit'):.2f} ms",
        )
        if torch.cuda.is_available():
            on_gpu(strategy, partition, torch.from_numpy(label), options.repeats)


if __name__ == "__main__":
    main()
