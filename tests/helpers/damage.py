"""Seeded ways to damage a file: bits, cuts, blocks, foreign content."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

WAYS = 120  # per kind of artefact
FOREIGN = (
    b"",
    b"\n",
    b"{}",
    b"[]",
    b"null",
    b'{"format": 1}',
    b"not what it should be\n" * 20,
    b"PAR1" + bytes(8) + b"PAR1",
    b"PK\x05\x06" + bytes(18),
    b"\x80\x04N.",
    b"SQLite format 3\0" + bytes(200),
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"\xff\xd8\xff\xe0" + bytes(40),
    b"\x08\0\0\0\0\0\0\0{}      ",
    b"a: [1, 2\n",
    bytes(range(256)) * 4,
)


def damaged(good: bytes, name: str, ways: int = WAYS) -> Iterator[tuple[str, bytes]]:
    """``ways`` times a description and other bytes than ``good``, the same for the same name."""
    for number in range(ways):
        rng = random.Random(f"{name} {number}")
        way = WAYS_OF_DAMAGE[number % len(WAYS_OF_DAMAGE)]
        bad = way(good, rng, number // len(WAYS_OF_DAMAGE))
        if bad == good:  # a block of zeros overwritten with zeros
            bad = flip(good, rng, 0)
        yield f"{name}, {way.__name__} {number}", bad


def flip(good: bytes, rng: random.Random, number: int) -> bytes:
    data = bytearray(good)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_many(good: bytes, rng: random.Random, number: int) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(2, 64)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_at_an_end(good: bytes, rng: random.Random, number: int) -> bytes:
    data = bytearray(good)
    place = rng.randrange(min(64, len(data)))
    data[place if rng.random() < 0.5 else -place - 1] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(good: bytes, rng: random.Random, number: int) -> bytes:
    return good[: rng.randrange(len(good))]


def cut_the_head(good: bytes, rng: random.Random, number: int) -> bytes:
    return good[rng.randint(1, len(good)) :]


def zeros(good: bytes, rng: random.Random, number: int) -> bytes:
    start = rng.randrange(len(good))
    size = min(rng.choice([1, 16, 512, 4096]), len(good) - start)
    return good[:start] + bytes(size) + good[start + size :]


def noise(good: bytes, rng: random.Random, number: int) -> bytes:
    start = rng.randrange(len(good))
    size = min(rng.choice([1, 16, 512]), len(good) - start)
    return good[:start] + rng.randbytes(size) + good[start + size :]


def repeated(good: bytes, rng: random.Random, number: int) -> bytes:
    start = rng.randrange(len(good))
    return good[:start] + good[max(0, start - rng.randint(1, 600)) :]


def longer(good: bytes, rng: random.Random, number: int) -> bytes:
    return good + rng.randbytes(rng.randint(1, 300))


def foreign(good: bytes, rng: random.Random, number: int) -> bytes:
    return FOREIGN[number % len(FOREIGN)]


WAYS_OF_DAMAGE: list[Callable[[bytes, random.Random, int], bytes]] = [
    flip, flip_many, flip_at_an_end, cut, cut_the_head, zeros, noise, repeated, longer, foreign,
]  # fmt: skip
