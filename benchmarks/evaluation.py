"""Claim: batched expressions with shared image features are evaluated at least 2x as fast.

    python benchmarks/evaluation.py [--models tiny,swin-t] [--images N] [--repeats 5]

Plain: encode the image again for every expression, one expression at a time. Ours:
`SegmentationModel.forward_shared` on batches of expressions; the text-independent part (LAVT: the
first Swin stage) is computed once per image. Both use one thread and give equal masks. The limit is
the time of the counted operations of ours at the rate of one large matrix product.
"""

from __future__ import annotations

import argparse

import common
import torch

from semires.models import LAVT

TARGET = 2
IMAGES = {"tiny": 12, "swin-t": 2}
BATCH = 32


def compare(name: str, images: int, expressions: int, repeats: int) -> None:
    settings, size = common.lavt(name)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = LAVT.from_config(settings, 120).eval()
    pixels = torch.randn(images, 3, size, size, generator=generator)
    image_of = torch.arange(images).repeat_interleave(expressions)
    ids, attention = common.expressions(len(image_of), generator)

    def plain() -> torch.Tensor:
        return torch.cat([
            model(pixels[i][None], ids[e : e + 1], attention[e : e + 1]).argmax(1)
            for e, i in enumerate(image_of.tolist())
        ])  # fmt: skip

    def batched(share: bool = False) -> torch.Tensor:
        found = []
        for part in torch.arange(len(image_of)).split(BATCH):
            if share:
                which, place = image_of[part].unique(return_inverse=True)
                logits = model.forward_shared(pixels[which], place, ids[part], attention[part])
            else:
                logits = model(pixels[image_of[part]], ids[part], attention[part])
            found.append((logits[:, 1] > logits[:, 0]).long())
        return torch.cat(found)

    with torch.inference_mode():
        masks = plain()
        for found in (batched(), batched(share=True)):
            # The order of float32 sums differs, so a pixel with almost equal logits may change.
            assert (found != masks).float().mean() < 1e-4, "other masks"
        times = common.in_turn(
            {"plain": plain, "batched": batched, "ours": lambda: batched(share=True)}, repeats
        )
        operations, _, rate = common.network_limit(lambda: batched(share=True), 1)
    count, ours = len(image_of), times.seconds("ours")
    common.verdict(
        f"evaluation, {name} LAVT, {size} px, {images} images with {expressions} expressions each",
        times.ratio(),
        TARGET,
        f"plain {count / times.seconds('plain'):.1f} expressions/s, ours {count / ours:.1f}, "
        f"batches alone {times.ratio(ours='batched'):.2f}x, equal masks; limit: "
        f"{operations / count:.2f} GFLOP an expression, so {rate * count / operations:.1f} "
        f"expressions/s at one large product's {rate:.0f} GFLOP/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="tiny,swin-t")
    parser.add_argument("--images", type=int, help="default: 12 for tiny, 2 for swin-t")
    parser.add_argument("--expressions", type=int, default=7, help="per image; RefCOCO val: 7.2")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models.split(","):
        images = options.images or IMAGES[name]
        compare(name, images, options.expressions, options.repeats)


if __name__ == "__main__":
    main()
