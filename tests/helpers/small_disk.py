"""`small_disk.py FOLDER full|limited|read-only`: every way this package writes, made to fail.

Started in a mount namespace of its own (``full``: a tmpfs of 1 MB on FOLDER; ``read-only``: the
same, remounted), or with a bound on the size of files (``limited``). Prints a JSON line per writer:
what was said, whether the earlier content is whole, what was left behind.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from semires import files
from semires.data.refscenes import _write_annotations
from semires.errors import SemiresError
from semires.evaluation.predict import _save
from semires.proposals.cache import Row, write_shard
from semires.refine.partition import Partition
from semires.training.record import save_model, write_history
from semires.training.state import load_state, save_state
from semires.tuning.counts import Counts, fields
from semires.tuning.counts import save as save_counts

LIMIT = 200_000  # bytes of a file
RNG = np.random.default_rng(0)


def shard(path: Path, size: int) -> None:
    masks = RNG.random((3, 8, 8)) > 0.5
    scores = RNG.random(max(size // 4, 1)).astype(np.float32)
    write_shard(path, [Row(1, 8, 8, 3, Partition.from_masks(masks).to_bytes(), scores, scores)])


def counts(path: Path, size: int) -> None:
    arrays = {f.name: RNG.integers(0, 2**60, max(size // 64, 1)) for f in fields(Counts)}
    save_counts(Counts(**arrays), path, "key")


def run_folder(path: Path, size: int) -> None:
    with files.atomic_folder(path) as folder:
        write_history([{"step": i, "val/oIoU": i / 7} for i in range(size // 20 + 1)],
                      folder / "history.csv")  # fmt: skip


def annotations(path: Path, size: int) -> None:
    with files.atomic_folder(path) as folder:
        (folder / "more").write_bytes(bytes(size))
        _write_annotations([], "unc", folder)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "text": lambda p, n: files.write_text(p, "x" * n),
    "json": lambda p, n: files.write_json(p, {"x": "y" * n}, seal=True),
    "parquet": lambda p, n: files.write_parquet(p, pd.DataFrame({"x": RNG.random(n // 8 + 1)})),
    "shard": shard,
    "safetensors": lambda p, n: save_model(torch.nn.Linear(n // 4 + 1, 1), p),
    "state": lambda p, n: save_state(p, {"step": n, "x": torch.zeros(n // 4)}),
    "picture": lambda p, n: _save(RNG.integers(0, 255, (n // 100 + 1, 100), np.uint8), p),
    "counts": counts,
    "run folder": run_folder,
    "data set": annotations,
}  # fmt: skip


def content(path: Path) -> str:
    """Digest of what a reader would find; a training state may be the previous one."""
    if path.name == "state":
        state = load_state(path)
        return str(state and state["step"])
    return files.sha256_tree(path) if path.exists() else "nothing"


def attempt(name: str, path: Path, size: int) -> dict[str, object]:
    before, others = content(path), {p.name for p in path.parent.iterdir()}
    try:
        WRITERS[name](path, size)
        said = "it was written"
    except SemiresError as error:
        said = str(error)
    left = (
        {p.name for p in path.parent.iterdir()} - others - {path.with_suffix(".previous.pt").name}
    )
    return {"writer": name, "said": said, "whole": content(path) == before, "left": sorted(left)}


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    if mode != "limited":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "x", folder], check=True)
    for name in WRITERS:
        WRITERS[name](folder / name, 100)
    if mode == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    if mode == "limited":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    for name in WRITERS:
        print(json.dumps(attempt(name, folder / name, 3_000_000)))


if __name__ == "__main__":
    main()
