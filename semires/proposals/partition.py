"""All proposals of an image as one partition of its pixels, lossless.

Atoms are sets of pixels that lie in exactly the same proposals. ``atoms`` (H,W) numbers them,
``members`` (N, n_atoms) says which proposal holds which atom; what the method needs of proposals
is arithmetic on atoms instead of pixels.
"""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semires.errors import CorruptCacheError

MAGIC = b"SRP1"
HEADER = struct.Struct("<4sIIIIIII")  # magic, H, W, N, atoms, bytes of map, bytes of bits, CRC-32
MAX_PIXELS = 2**28
ZSTD_LEVEL = 9


@functools.lru_cache(maxsize=256)
def nearest_indices(source: int, target: int) -> NDArray[np.int64]:
    """Which of ``source`` places each of ``target`` places takes, as torch's 'nearest' does."""
    import torch  # late: proposal workers need none of it

    places = torch.arange(source, dtype=torch.float64).view(1, 1, -1)
    taken = torch.nn.functional.interpolate(places, size=target, mode="nearest")
    indices: NDArray[np.int64] = taken.view(-1).to(torch.int64).numpy()
    return indices


@dataclass(frozen=True, eq=False)
class Partition:
    """``atoms``: unsigned integers (H,W) below n_atoms; ``members``: bool (N, n_atoms)."""

    atoms: NDArray[np.unsignedinteger]
    members: NDArray[np.bool_]

    @staticmethod
    def from_masks(masks: NDArray[np.bool_]) -> Partition:
        """The partition that masks (N,H,W), N >= 0, cut their pixels into.

        Atoms are numbered in the order in which rows of pixels meet them.
        """
        masks = np.asarray(masks, dtype=bool)
        count, height, width = masks.shape
        flat = masks.reshape(count, height * width)
        label = np.zeros(height * width, dtype=np.int64)
        for first in range(0, count, 32):  # 32 proposals at a time fit into one integer beside it
            word = np.zeros(height * width, dtype=np.int64)
            for bit, mask in enumerate(flat[first : first + 32]):
                word |= mask.astype(np.int64) << bit
            label = np.unique(label << 32 | word, return_inverse=True)[1]
        _, where, label = np.unique(label, return_index=True, return_inverse=True)
        order = np.argsort(where)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        atoms = rank[label].reshape(height, width)
        return Partition(atoms.astype(_dtype(len(order))), flat[:, where[order]].copy())

    def __len__(self) -> int:
        return len(self.members)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.atoms.shape[0], self.atoms.shape[1]

    @functools.cached_property
    def weights(self) -> NDArray[np.float64]:
        """``members`` as numbers, for products with counts."""
        return self.members.astype(np.float64)

    @functools.cached_property
    def areas(self) -> NDArray[np.float64]:
        """Pixels of every proposal (N,)."""
        return self.weights @ self.count()

    def count(self, label: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Pixels of every atom (n_atoms,), or those of them that ``label`` (H,W) holds."""
        inside = self.atoms.ravel() if label is None else self.atoms[np.asarray(label, dtype=bool)]
        return np.bincount(inside, minlength=self.members.shape[1]).astype(np.float64)

    def masks(self) -> NDArray[np.bool_]:
        """The proposals again, bool (N,H,W)."""
        return self.members[:, self.atoms]

    def union(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Pixels (H,W) of the union of the ``chosen`` (N,) proposals."""
        held = np.asarray(self.members[chosen].any(axis=0))
        return np.asarray(held[self.atoms], dtype=bool)

    def resize(self, height: int, width: int) -> Partition:
        """Every proposal resized as torch's 'nearest' interpolation does."""
        if (height, width) == self.shape:
            return self
        rows, columns = (
            nearest_indices(self.shape[0], height), nearest_indices(self.shape[1], width)
        )  # fmt: skip
        return Partition(self.atoms[rows][:, columns], self.members)

    def hflip(self) -> Partition:
        """Every proposal mirrored left to right."""
        return Partition(np.ascontiguousarray(self.atoms[:, ::-1]), self.members)

    def to_bytes(self) -> bytes:
        """Compact bytes: the map differenced from row to row, the members from atom to atom."""
        import pyarrow as pa

        codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
        count, n_atoms = self.members.shape
        atoms = self.atoms.astype(_dtype(n_atoms))
        atoms[1:] ^= self.atoms[:-1].astype(atoms.dtype)
        columns = self.members.T.copy()
        columns[1:] ^= self.members.T[:-1]
        packed = np.packbits(columns.ravel())
        body = [codec.compress(a.tobytes(), asbytes=True) for a in (atoms, packed)]
        sizes = (*self.shape, count, n_atoms, len(body[0]), len(body[1]))
        head = HEADER.pack(MAGIC, *sizes, 0)[:-4]
        checksum = zlib.crc32(head + body[0] + body[1])
        return b"".join((head, struct.pack("<I", checksum), *body))

    @staticmethod
    def from_bytes(data: bytes) -> Partition:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            CorruptCacheError: the bytes are damaged or not a partition.
        """
        import pyarrow as pa

        if len(data) < HEADER.size or data[:4] != MAGIC:
            raise CorruptCacheError("a partition is damaged: no header of one")
        _, height, width, count, n_atoms, first, second, checksum = HEADER.unpack_from(data)
        head, body = data[: HEADER.size - 4], data[HEADER.size :]
        sane = 0 < n_atoms <= max(height * width, 1) <= MAX_PIXELS and count * n_atoms <= 2**34
        if len(body) != first + second or zlib.crc32(head + body) != checksum or not sane:
            raise CorruptCacheError("a partition is damaged: its checksum does not hold")
        codec, dtype = pa.Codec("zstd"), _dtype(n_atoms)
        try:
            plane = codec.decompress(body[:first], height * width * dtype.itemsize, asbytes=True)
            bits = codec.decompress(body[first:], (count * n_atoms + 7) // 8, asbytes=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptCacheError(f"a partition is damaged: {error}") from error
        atoms = np.frombuffer(plane, dtype=dtype).reshape(height, width)
        atoms = np.bitwise_xor.accumulate(atoms, axis=0)
        packed = np.frombuffer(bits, dtype=np.uint8)
        columns = np.unpackbits(packed, count=count * n_atoms).reshape(n_atoms, count)
        members = np.bitwise_xor.accumulate(columns, axis=0).T.astype(bool)
        if atoms.size and int(atoms.max()) >= n_atoms:
            raise CorruptCacheError("a partition is damaged: an atom has no members")
        return Partition(atoms, np.ascontiguousarray(members))


def _dtype(n_atoms: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned integer for atom numbers."""
    return np.min_scalar_type(max(n_atoms - 1, 0))
