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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semires.errors import CorruptCacheError, SemiresError

MAGIC = b"SRP2"
HEADER = struct.Struct("<4sIIIIIII")  # magic, H, W, N, atoms, bytes of map, bytes of bits, CRC-32
MAX_PIXELS = 2**26
MAX_MEMBERS = 2**28  # cells of the membership matrix
# At this level the map of labels itself, undifferenced, is the smallest: zstd then finds the row
# above by itself. Differences from the row above took 1.3x as much.
ZSTD_LEVEL = 19
ZSTD_MAX_RATIO = 2**15  # four bytes make a block of 128 KiB at most


@dataclass(frozen=True, eq=False)
class Partition:
    """``atoms``: unsigned integers (H,W) below n_atoms; ``members``: bool (N, n_atoms).

    Both are read only by intent: results are cached and arrays shared between copies.
    """

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
        label = np.zeros(height * width, dtype=np.intp)
        sizes = np.full(min(label.size, 1), label.size)
        for mask in flat:
            sizes = _split(label, sizes, np.flatnonzero(mask))
        where = np.empty(len(sizes), dtype=np.intp)
        where[label[::-1]] = np.arange(label.size)[::-1]  # the last one written is the first pixel
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
        """Pixels of every proposal (N,)."""
        return self.sums(self.count())

    def count(self, label: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Pixels of every atom (n_atoms,), or those of them that ``label`` (H,W) holds."""
        import torch

        inside = self.atoms.ravel() if label is None else self.atoms[np.asarray(label, dtype=bool)]
        n_atoms = self.members.shape[1]
        # NumPy counts 64-bit numbers only, and moves four times the bytes for it.
        atoms = torch.from_numpy(inside.astype(np.int16 if n_atoms <= 2**15 else np.int32))
        return torch.bincount(atoms, minlength=n_atoms).numpy()

    def sums(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """For every proposal (N,) the sum of its atoms' counts (n_atoms,), exact."""
        # float32 holds every whole number up to 2**24
        exact = np.float32 if self.atoms.size < 2**24 else np.float64
        sums: NDArray[np.floating] = self.members.astype(exact) @ counts.astype(exact)
        return sums.astype(np.float64)

    def masks(self) -> NDArray[np.bool_]:
        """The proposals again, bool (N,H,W)."""
        masks = np.empty((len(self.members), *self.shape), dtype=bool)
        for held, mask in zip(self.members, masks, strict=True):
            np.take(held, self.atoms, out=mask, mode="clip")  # "raise" would buffer `out`
        return masks

    def union(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Pixels (H,W) of the union of the ``chosen`` (N,) proposals."""
        held: NDArray[np.bool_] = np.any(self.members[chosen], axis=0)
        return held.take(self.atoms)

    def resize(self, height: int, width: int) -> Partition:
        """Every proposal resized as torch's 'nearest' interpolation does."""
        atoms = self.atoms
        if height != self.shape[0]:
            atoms = atoms.take(nearest_indices(self.shape[0], height), axis=0)
        if width != self.shape[1]:
            atoms = atoms.take(nearest_indices(self.shape[1], width), axis=1)
        return self if atoms is self.atoms else Partition(atoms, self.members)

    def hflip(self) -> Partition:
        """Every proposal mirrored left to right."""
        return Partition(np.ascontiguousarray(self.atoms[:, ::-1]), self.members)

    def to_bytes(self) -> bytes:
        """Compact bytes: the map of atoms and the membership bits, both in zstd, and a checksum.

        Raises:
            SemiresError: more pixels or more members than :meth:`from_bytes` admits.
        """
        sizes = (*self.shape, *self.members.shape)
        if not _admitted(*sizes):
            raise SemiresError(
                f"{len(self)} proposals of {self.shape[0]}x{self.shape[1]} pixels cut the image "
                f"into {self.members.shape[1]} atoms, more than a cache holds; make fewer proposals"
            )
        atoms = self.atoms.astype(_dtype(self.members.shape[1])).tobytes()
        bits = np.packbits(self.members).tobytes()
        parts = [_zstd().compress(part, asbytes=True) for part in (atoms, bits)]
        head = HEADER.pack(MAGIC, *sizes, *map(len, parts), 0)[:-4]
        body = b"".join(parts)
        return head + struct.pack("<I", zlib.crc32(head + body)) + body

    @staticmethod
    def from_bytes(data: bytes) -> Partition:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            CorruptCacheError: the bytes are damaged or not a partition.
        """
        if len(data) < HEADER.size or data[:4] != MAGIC:
            raise CorruptCacheError("a partition is damaged: it has no header")
        _, height, width, count, n_atoms, first, second, checksum = HEADER.unpack_from(data)
        head, body = memoryview(data)[: HEADER.size - 4], memoryview(data)[HEADER.size :]
        if len(body) != first + second or zlib.crc32(body, zlib.crc32(head)) != checksum:
            raise CorruptCacheError("a partition is damaged: its checksum does not hold")
        if not _admitted(height, width, count, n_atoms):
            raise CorruptCacheError("a partition is damaged: its sizes cannot be")
        dtype = _dtype(n_atoms)
        plane = _decompress(body[:first], height * width * dtype.itemsize)
        packed = _decompress(body[first:], -(-count * n_atoms // 8))
        atoms = np.frombuffer(plane, dtype=dtype).reshape(height, width)
        if atoms.size and int(atoms.max()) >= n_atoms:
            raise CorruptCacheError("a partition is damaged: an atom has no members")
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count * n_atoms)
        return Partition(atoms, bits.view(bool).reshape(count, n_atoms))


@functools.lru_cache(maxsize=4096)
def nearest_indices(source: int, target: int) -> NDArray[np.intp]:
    """Which of ``source`` places each of ``target`` places takes, as torch's 'nearest' does.

    torch computes in float32 for masks of up to 32 bits, with a case of its own for doubling.
    """
    if target == 2 * source:
        return np.arange(target, dtype=np.intp) >> 1
    scale = np.float32(source) / np.float32(target)
    taken = (np.arange(target, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(taken, source - 1)


def _split(
    label: NDArray[np.intp], sizes: NDArray[np.intp], pixels: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Cut the atoms that lie partly in a mask's ``pixels``, in place; the new pixels per atom."""
    old = label[pixels]
    inside = np.bincount(old, minlength=len(sizes))
    cut = np.flatnonzero((inside > 0) & (inside < sizes))
    renamed = np.arange(len(sizes))
    renamed[cut] = len(sizes) + np.arange(len(cut))
    label[pixels] = renamed[old]
    sizes[cut] -= inside[cut]
    return np.concatenate([sizes, inside[cut]])


def _admitted(height: int, width: int, count: int, n_atoms: int) -> bool:
    """Whether the sizes agree and stay within what a reader may have to allocate."""
    pixels, members = height * width, count * n_atoms
    fits = pixels <= MAX_PIXELS and members <= MAX_MEMBERS and n_atoms <= MAX_PIXELS
    return fits and (n_atoms > 0 or pixels == 0)


@functools.cache
def _zstd() -> Any:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def _decompress(data: memoryview, size: int) -> bytes:
    """Exactly ``size`` bytes; no more is allocated than ``data`` can hold."""
    import pyarrow as pa

    if size > len(data) * ZSTD_MAX_RATIO:
        raise CorruptCacheError("a partition is damaged: its sizes cannot be")
    try:
        plain: bytes = _zstd().decompress(data, size, asbytes=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptCacheError(f"a partition is damaged: {error}") from error
    if len(plain) != size:
        raise CorruptCacheError("a partition is damaged: it is cut short")
    return plain


def _dtype(n_atoms: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned integer for atom numbers."""
    return np.dtype("<u1" if n_atoms <= 2**8 else "<u2" if n_atoms <= 2**16 else "<u4")
