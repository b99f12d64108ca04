"""Store all proposals of an image losslessly as one partition of its pixels.

An atom is the set of all pixels that lie in exactly the same proposals. ``atoms`` (H,W) gives the
atom of each pixel. ``members`` (N, n_atoms) says which atoms each proposal contains. Matching
computes on atoms instead of pixels, which is much faster.
"""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semires.errors import CorruptCacheError, SemiresError

MAGIC = b"SRP2"
HEADER = struct.Struct("<4sIIIIIII")  # magic, H, W, N, atoms, bytes of map, bytes of bits, CRC-32
MAX_MEMBERS = 2**28  # entries of the membership matrix
# At this level the plain map of atoms compresses best. Storing differences between rows instead
# took 1.3x as many bytes.
ZSTD_LEVEL = 19


@dataclass(frozen=True, eq=False)
class Partition:
    """N proposals of (H,W) pixels as ``atoms`` and ``members``.

    ``atoms``: unsigned integers (H,W) below n_atoms. ``members``: bool (N, n_atoms). Do not modify
    the arrays: results are cached, and partitions share arrays.
    """

    atoms: NDArray[np.unsignedinteger]
    members: NDArray[np.bool_]

    @staticmethod
    def from_masks(masks: NDArray[np.bool_]) -> Partition:
        """Compute the partition of masks (N,H,W), N >= 0.

        Atoms are numbered by their first pixel in row-major order.
        """
        masks = np.asarray(masks, dtype=bool)
        count, height, width = masks.shape
        flat = masks.reshape(count, height * width)
        label = np.zeros(height * width, dtype=np.intp)
        sizes = np.full(min(label.size, 1), label.size)
        for mask in flat:
            sizes = _split(label, sizes, np.flatnonzero(mask))
        where = np.empty(len(sizes), dtype=np.intp)
        where[label[::-1]] = np.arange(label.size)[::-1]  # reversed: an atom's first pixel remains
        order = np.argsort(where)
        rank = np.empty(len(order), dtype=_dtype(len(order)))
        rank[order] = np.arange(len(order))
        return Partition(rank[label].reshape(height, width), flat[:, where[order]].copy())

    def __len__(self) -> int:
        return len(self.members)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.atoms.shape[0], self.atoms.shape[1]

    @functools.cached_property
    def areas(self) -> NDArray[np.float64]:
        """The number of pixels of every proposal (N,)."""
        return self.sums(self.count())

    def count(self, label: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Count the pixels of every atom (n_atoms,); with ``label`` (H,W), only those inside it."""
        import torch

        inside = self.atoms.ravel() if label is None else self.atoms[np.asarray(label, dtype=bool)]
        n_atoms = self.members.shape[1]
        # NumPy's bincount converts to 64 bits, which moves four times as many bytes.
        atoms = torch.from_numpy(inside.astype(np.int16 if n_atoms <= 2**15 else np.int32))
        return torch.bincount(atoms, minlength=n_atoms).numpy()

    def total(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sum ``values`` (H,W) over the pixels of every atom, (n_atoms,)."""
        n_atoms = self.members.shape[1]
        sums = np.bincount(self.atoms.ravel(), weights=values.ravel(), minlength=n_atoms)
        return sums.astype(np.float64, copy=False)

    def sums(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum the ``counts`` (n_atoms,) over the atoms of every proposal; exact, (N,)."""
        # float32 represents every whole number up to 2**24 exactly
        exact = np.float32 if self.atoms.size < 2**24 else np.float64
        sums: NDArray[np.floating] = self.members.astype(exact) @ counts.astype(exact)
        return sums.astype(np.float64)

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks of the proposals, bool (N,H,W)."""
        masks = np.empty((len(self.members), *self.shape), dtype=bool)
        for held, mask in zip(self.members, masks, strict=True):
            np.take(held, self.atoms, out=mask, mode="clip")  # mode "raise" would buffer `out`
        return masks

    def resize(self, height: int, width: int) -> Partition:
        """Resize every proposal like torch's 'nearest' interpolation."""
        atoms = self.atoms
        if height != self.shape[0]:
            atoms = atoms.take(nearest_indices(self.shape[0], height), axis=0)
        if width != self.shape[1]:
            atoms = atoms.take(nearest_indices(self.shape[1], width), axis=1)
        return self if atoms is self.atoms else Partition(atoms, self.members)

    def hflip(self) -> Partition:
        """Flip every proposal horizontally."""
        return Partition(np.ascontiguousarray(self.atoms[:, ::-1]), self.members)

    def to_bytes(self) -> bytes:
        """Serialise to bytes: a checksum, and the atoms and membership bits compressed with zstd.

        Raises:
            SemiresError: the partition has more than ``MAX_MEMBERS`` members.
        """
        if self.members.size > MAX_MEMBERS:
            raise SemiresError(
                f"{len(self)} proposals of {self.shape[0]}x{self.shape[1]} pixels divide the image "
                f"into {self.members.shape[1]} atoms, more than can be stored; make fewer proposals"
            )
        atoms = self.atoms.astype(_dtype(self.members.shape[1])).tobytes()
        bits = np.packbits(self.members).tobytes()
        parts = [_zstd().compress(part, asbytes=True) for part in (atoms, bits)]
        sizes = (*self.shape, *self.members.shape, *map(len, parts))
        head = HEADER.pack(MAGIC, *sizes, 0)[:-4]
        body = b"".join(parts)
        return head + struct.pack("<I", zlib.crc32(head + body)) + body

    @staticmethod
    def from_bytes(data: bytes) -> Partition:
        """Read the output of :meth:`to_bytes`.

        Raises:
            CorruptCacheError: the bytes are damaged or not a partition.
        """
        if len(data) < HEADER.size or data[:4] != MAGIC:
            raise CorruptCacheError("a partition is damaged: it has no header")
        _, height, width, count, n_atoms, first, second, checksum = HEADER.unpack_from(data)
        head, body = memoryview(data)[: HEADER.size - 4], memoryview(data)[HEADER.size :]
        if len(body) != first + second or zlib.crc32(body, zlib.crc32(head)) != checksum:
            raise CorruptCacheError("a partition is damaged: its checksum does not match")
        dtype = _dtype(n_atoms)
        plane = _zstd().decompress(body[:first], height * width * dtype.itemsize, asbytes=True)
        packed = _zstd().decompress(body[first:], -(-count * n_atoms // 8), asbytes=True)
        atoms = np.frombuffer(plane, dtype=dtype).reshape(height, width)
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count * n_atoms)
        return Partition(atoms, bits.view(bool).reshape(count, n_atoms))


@functools.lru_cache(maxsize=4096)
def nearest_indices(source: int, target: int) -> NDArray[np.intp]:
    """Return for each of ``target`` positions its position in ``source``, like torch's 'nearest'.

    torch computes in float32 for masks of up to 32 bits, and treats a doubled size separately.
    """
    if target == 2 * source:
        return np.arange(target, dtype=np.intp) >> 1
    scale = np.float32(source) / np.float32(target)
    taken = (np.arange(target, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(taken, source - 1)


def _split(
    label: NDArray[np.intp], sizes: NDArray[np.intp], pixels: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Split the atoms that lie partly in a mask's ``pixels``; return the new pixels per atom.

    ``label`` and ``sizes`` are changed in place.
    """
    old = label[pixels]
    inside = np.bincount(old, minlength=len(sizes))
    cut = np.flatnonzero((inside > 0) & (inside < sizes))
    renamed = np.arange(len(sizes))
    renamed[cut] = len(sizes) + np.arange(len(cut))
    label[pixels] = renamed[old]
    sizes[cut] -= inside[cut]
    return np.concatenate([sizes, inside[cut]])


@functools.cache
def _zstd() -> Any:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def _dtype(n_atoms: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned integer type for atom numbers."""
    return np.dtype("<u1" if n_atoms <= 2**8 else "<u2" if n_atoms <= 2**16 else "<u4")
