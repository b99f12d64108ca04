"""One of several processes of a training; test_distributed.py runs it in two.

    rank.py train LABEL [STOP]    STOP: rank 1 gets a signal at its STOP-th poll
    rank.py gradients LABEL FILE  one backward pass; rank 0 saves the gradients that DDP computed
    rank.py evaluate FILE          predictions of the burn-in's weights; rank 0 saves them

With DOUBLE in the environment everything is float64. In float32, AdamW would turn the rounding
errors of a zero gradient into full steps. Any rank other than 0 that opens a file of the study for
writing exits with an error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from semires import process
from semires.config.load import load_params
from semires.errors import SemiresError
from semires.files import write_parquet
from semires.runs.key import RunKey
from semires.samples import augment, dataset
from semires.training.burn_in import SECTIONS, burn_in
from semires.training.context import RunContext
from semires.training.loop import Loop
from semires.training.mutual import mutual

RANK = int(os.environ["RANK"])


def watch_writes() -> None:
    """Exit as soon as this process writes, creates, moves or removes something in the study."""
    study = Path.cwd()
    changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in changes
        if event == "open":
            _, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(
                set(mode or "") & set("wax+")
            )
        if writes and isinstance(arguments[0], str | os.PathLike):
            path = Path(os.path.abspath(arguments[0]))
            if study in path.parents:
                print(f"rank {RANK} writes: {event} {path}", file=sys.stderr, flush=True)
                os._exit(99)

    sys.addaudithook(check)


def stop_at(poll: int) -> None:
    """Make rank 1 behave as if a signal arrived before its ``poll``-th poll."""
    polls = iter(range(1, 10_000))
    if RANK == 1:
        process.stop_requested = lambda: 143 if next(polls) == poll else None


def save_gradients(file: str) -> None:
    """Instead of the first backward pass of the loop, save gradients and loss, and exit."""

    def backward(loop: Loop, loss: torch.Tensor, ref_ids: list[int]) -> None:
        loss.backward()
        model = loop.modules["model"]
        found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        loss = loop.group.sum(loss.detach()) / loop.group.world
        if RANK == 0:
            torch.save({"gradients": found, "loss": loss}, file)
        loop.group.barrier()
        sys.exit(0)

    Loop.backward = backward  # type: ignore[method-assign]


def evaluate(context: RunContext, file: str) -> None:
    """Predictions of the burn-in's weights on testA, by all processes together."""
    from semires.models.weights import load_weights

    model = context.build_model(pretrained=False)
    load_weights(model, context.burn_in_folder / "model.safetensors")
    table = context.evaluate(model, context.evaluation_sets(["testA"])["testA"])
    if context.group.is_main_process:
        write_parquet(file, table)


def use_double() -> None:
    """Weights and pixels of this process are float64 from now on."""
    torch.set_default_dtype(torch.float64)
    dataset.normalise = lambda image: augment.normalise(image).double()


def main(what: str, *rest: str) -> None:
    params = load_params("params.json")
    if what == "evaluate":
        return evaluate(
            RunContext(params, RunKey("refscenes", 25, "supervised", 0), SECTIONS), rest[0]
        )
    key = RunKey.of_folder(Path("refscenes/25", rest[0], "seed0"))
    if what == "gradients":
        save_gradients(rest[1])
    elif len(rest) > 1:
        stop_at(int(rest[1]))
    burn_in(params, key) if key.method == "supervised" else mutual(params, key)


if __name__ == "__main__":
    if RANK != 0:
        watch_writes()
    if "DOUBLE" in os.environ:
        use_double()
    try:
        main(*sys.argv[1:])
    except SemiresError as error:
        print(f"semires: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
