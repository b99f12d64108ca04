"""Claim: loading 100 proposals of 640x480 and resizing them to 480x480 is at least 80x as fast.

    python benchmarks/load_proposals.py [--quick]

Plain: decode JSON run-lengths mask by mask, then resize all masks by nearest interpolation. Ours:
Partition.from_bytes and resize. Both read from memory, use one thread and give equal masks.
"""

from __future__ import annotations

import common
import numpy as np
import pyarrow as pa
import torch

from semires.refine.partition import HEADER, Partition

TARGET = 80


def main() -> None:
    options = common.options(__doc__)
    torch.set_num_threads(1)
    masks = common.blobs(480, 640, 100, seed=0)
    text, partition = common.to_json(masks), Partition.from_masks(masks)
    data = partition.to_bytes()

    def plain() -> torch.Tensor:
        decoded = torch.from_numpy(common.from_json(text))[None]
        return torch.nn.functional.interpolate(decoded, size=(480, 480), mode="nearest")[0]

    def ours() -> Partition:
        return Partition.from_bytes(data).resize(480, 480)

    *_, first, _, _ = HEADER.unpack_from(data)
    plane = data[HEADER.size : HEADER.size + first]

    def limit() -> bytes:
        return bytes(pa.Codec("zstd").decompress(plane, partition.atoms.nbytes, asbytes=True))

    np.testing.assert_array_equal(ours().masks(), plain().numpy())
    times = common.in_turn({"plain": plain, "ours": ours, "limit": limit}, options.repeats)
    milliseconds = {name: f"{times.ms(name):.2f} ms" for name in times}
    common.verdict(
        "load proposals, 100 masks of 640x480 to 480x480",
        times.ratio(),
        TARGET,
        f"plain {milliseconds['plain']}, ours {milliseconds['ours']}, equal masks; "
        f"limit: zstd alone takes {milliseconds['limit']}",
    )


if __name__ == "__main__":
    main()
