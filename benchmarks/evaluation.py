"""Claim: batched expressions over shared image features evaluate at least 2x as fast as one by one.

    python benchmarks/evaluation.py [--images 24] [--expressions 3]

The plain way encodes the image again for every expression. Ours batches expressions; where the
model allows it, the tokens that no expression touches (LAVT: the first Swin stage) are computed
once per image. All give the same masks. The limit is the rate of the largest batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from semires.config import load_params
from semires.models import LAVT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--expressions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    params = load_params("experiments/demo.yaml")
    size, tokens = params.data.image_size, params.data.max_tokens
    model = LAVT.from_config(params.model, 120).eval()
    images = torch.randn(options.images, 3, size, size)
    image_of = torch.arange(options.images).repeat_interleave(options.expressions)
    ids = torch.randint(5, 100, (len(image_of), tokens))
    attention = (torch.arange(tokens) < torch.randint(4, tokens, (len(image_of), 1))).long()
    ids *= attention

    def one_by_one() -> torch.Tensor:
        return torch.cat([
            model(images[image_of[i]][None], ids[i : i + 1], attention[i : i + 1])
            for i in range(len(image_of))
        ])  # fmt: skip

    def batched() -> torch.Tensor:
        parts = torch.arange(len(image_of)).split(options.batch)
        return torch.cat([model(images[image_of[p]], ids[p], attention[p]) for p in parts])

    def shared() -> torch.Tensor:
        out = []
        for part in torch.arange(len(image_of)).split(options.batch):
            which, inverse = image_of[part].unique(return_inverse=True)
            first, grid = model.begin(images[which])
            text = model.encode_text(ids[part], attention[part])
            out.append(model.finish((first[inverse], grid), text, attention[part], (size, size)))
        return torch.cat(out)

    times: dict[Callable[[], torch.Tensor], list[float]] = {one_by_one: [], batched: [], shared: []}
    with torch.inference_mode():
        expected = one_by_one()
        for way in (batched, shared):
            logits = way()
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
        for _ in range(5):
            for way, taken in times.items():
                started = time.perf_counter()
                way()
                taken.append(time.perf_counter() - started)
    plain = statistics.median(times[one_by_one])
    for way in (batched, shared):
        seconds = statistics.median(times[way])
        print(
            f"evaluation, {way.__name__}: {len(image_of) / seconds:.0f} expressions/s against "
            f"{len(image_of) / plain:.0f} one by one: {plain / seconds:.2f}x, equal logits"
        )


if __name__ == "__main__":
    main()
