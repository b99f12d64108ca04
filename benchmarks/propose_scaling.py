"""Claim: `propose` is 1.8x as fast with 2 processes, and its memory does not grow with the images.

    python benchmarks/propose_scaling.py [--images 400] [--many 10000] [--source sam] [--repeats 5]

The stage runs in a temporary folder on images of RefScenes, with the source of params.yaml that
`--source` names. The peak memory of the stage and its workers together is sampled.
"""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import common
import numpy as np
import pandas as pd
import psutil
from PIL import Image
from safetensors.torch import save_file

from semires import files
from semires.config.load import load_params
from semires.config.validate import read_yaml, validate
from semires.data.scenes import render, sample_scene
from semires.data.tables import write_tables
from semires.proposals.checkpoint import prepare_checkpoint
from semires.proposals.propose import propose
from semires.proposals.tiny_sam import build_tiny_sam
from semires.runs import layout

TARGET = 1.8
MEMORY_BOUND = 1.25


class PeakMemory(threading.Thread):
    """Sample the peak resident memory of this process and its children, MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib, self.done = 0.0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_mib = max(self.peak_mib, total / 2**20)


def make_images(count: int, side: int) -> None:
    Path("pictures").mkdir()
    base = [render(sample_scene(np.random.default_rng(s), side)).image for s in range(16)]
    names = [f"{i:06d}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(np.roll(base[i % 16], i, axis=1)).save(Path("pictures", name))
    table = pd.DataFrame({"image_id": range(count), "file_name": names})
    table["height"] = table["width"] = np.int32(side)
    write_tables("bench", table, table)


def run(params, source: str, count: int) -> tuple[float, float, str]:
    """Run the stage on the first `count` images; return seconds, peak MiB and the output's hash."""
    path = layout.prepared("bench") / "images.parquet"
    everything = files.read_parquet(path)
    write_tables("bench", everything.head(count), everything)
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        propose(params, "bench", source)
    taken = time.perf_counter() - start
    memory.done.set()
    memory.join()
    digest = files.sha256_tree(layout.proposals("bench", source))
    shutil.rmtree("proposals")
    files.write_parquet(path, everything)
    return taken, memory.peak_mib, digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--source", default="sam")
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    values = read_yaml("params.yaml")
    values["datasets"]["bench"] = {**values["datasets"]["refscenes"], "images": "pictures"}
    trained = Path(load_params().sam.checkpoint).absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.pop("DVC_ROOT", None)
        if not trained.is_file():
            trained = Path("tiny.safetensors").absolute()
            save_file(build_tiny_sam().state_dict(), trained)
        values["sam"].update(model="tiny", checkpoint=str(trained), sha256=None)
        with_processes = {}
        for count in (1, 2):
            values["runtime"]["processes"] = count
            with_processes[count] = validate(values)
        prepare_checkpoint(with_processes[1])
        make_images(max(options.images, options.many), values["scenes"]["size_px"])
        turns = common.Turns({"plain": [], "ours": []})
        for _ in range(options.repeats):
            one = run(with_processes[1], options.source, options.images)
            two = run(with_processes[2], options.source, options.images)
            assert one[2] == two[2], "the output depends on the number of processes"
            turns["plain"].append(one[0])
            turns["ours"].append(two[0])
        common.verdict(
            f"propose, {options.images} images, two processes against one",
            turns.ratio(),
            TARGET,
            f"{turns.seconds('plain'):.1f} s and {turns.seconds('ours'):.1f} s, the same bytes; "
            "limit: 2 cores",
        )
        _, many, _ = run(with_processes[2], options.source, options.many)
        common.within(
            f"peak memory of {options.many} images against that of {options.images}",
            many / two[1], MEMORY_BOUND, "x", f"; {many:.0f} and {two[1]:.0f} MiB",
        )  # fmt: skip
        os.chdir("/")


if __name__ == "__main__":
    main()
