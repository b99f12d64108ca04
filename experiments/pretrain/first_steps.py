"""Losses of the first steps of the pretrainings whose weights are shipped, for a test.

Command: python experiments/pretrain/first_steps.py [--add]
It runs the first 20 steps (10 of the panoptic segmenter) that the scripts beside it run without
options, and renders only the scenes of these steps. The first line of the output is the numerics
class, the others are weights, step and loss. --add writes the losses to tests/golden/pretrain/.
Cost: about 20 seconds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semires import numerics

STEPS = 20
GOLDEN = Path(__file__).parents[2] / "tests/golden/pretrain"


class Column:
    """One column of ``count`` scenes, or all; a scene is rendered when it is asked for."""

    def __init__(
        self, make: Callable[[int], tuple[Any, ...]], which: int | slice, count: int
    ) -> None:
        self.make, self.which, self.count = make, which, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        import numpy as np
        import torch

        if isinstance(index, torch.Tensor):
            return torch.from_numpy(np.stack([self[i] for i in index.tolist()]))
        return self.make(int(index))[self.which]


def swin_losses() -> list[float]:
    """The losses of the Swin, as `swin.py` computes them."""
    import swin

    from semires.config.load import load_params

    options, params = swin.parser().parse_args([]), load_params()
    make = functools.cache(lambda i: swin.make_scene((i, params.data.image_size)))
    scenes = [Column(make, which, options.images) for which in range(4)]
    _, model = swin.new_model(params)
    return swin.train(model, scenes, [], STEPS, options.batch, options.lr, options.steps)


def tiny_sam_losses() -> list[float]:
    """The losses of the mask, of the predicted IoU and of the affinity of the SAM, added up."""
    import tiny_sam

    options = tiny_sam.parser().parse_args([])
    make = functools.cache(tiny_sam.make_scene)
    scenes = tiny_sam.Scenes(*(Column(make, which, options.scenes) for which in range(3)))
    states = tiny_sam.train(scenes, tiny_sam.by_steps(options.steps), options)
    return [s.mask + s.predicted_iou + s.affinity for s in itertools.islice(states, STEPS)]


def tiny_mask2former_losses() -> list[float]:
    """The losses of the panoptic segmenter, as the model computes them."""
    import tiny_mask2former
    import torch

    options = tiny_mask2former.parser().parse_args([])
    make = functools.cache(tiny_mask2former.make_scene)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(tiny_mask2former.SEED)
    model = tiny_mask2former.new_model()
    losses = tiny_mask2former.train(model, Column(make, slice(None), options.images), options)
    return [*itertools.islice(losses, STEPS // 2)]


def main() -> None:
    """Print the losses, or add them to the golden ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--add", action="store_true", help="write tests/golden/pretrain/CLASS.txt")
    options = parser.parse_args()
    numerics.select("avx2")  # before torch is imported
    import torch

    from semires.files import write_text

    torch.set_num_threads(1)
    trained = {
        "swin_tiny": swin_losses,
        "tiny_sam": tiny_sam_losses,
        "tiny_mask2former": tiny_mask2former_losses,
    }
    lines = [
        f"{name} {step} {loss!r}\n"
        for name, losses in trained.items()
        for step, loss in enumerate(losses(), start=1)
    ]
    name = f"{numerics.numerics_class()}-torch{torch.__version__.partition('+')[0]}"
    print(name, "".join(lines), sep="\n", end="")
    if options.add:
        write_text(GOLDEN / f"{name}.txt", "".join(lines))


if __name__ == "__main__":
    main()
