"""Hostile, damaged and renamed pickles: refused in one line; none of them runs code."""

from __future__ import annotations

import contextlib
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semires.data.unpickle import read_plain_pickle
from semires.errors import DataError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
SCALARS |= st.binary()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(SCALARS, inner),
    max_leaves=20,
)


def read(folder: Path, data: bytes) -> object:
    path = folder / "x.p"
    path.write_bytes(data)
    return read_plain_pickle(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=PLAIN, protocol=st.integers(4, 5))
def test_plain_values_come_back(tmp_path: Path, value: object, protocol: int):
    assert read(tmp_path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_the_protocols_of_refer(tmp_path: Path, protocol: int):
    value = [{"sent": "caf\xe9", "ids": [1, 2**40, -3], "box": [0.5, None, True], "sent_ids": []}]
    assert read(tmp_path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(S'true'\nios\nsystem\n.",
        b"cos.\nsystem\n.",
        pickle.dumps(Path("x"), 2),
        pickle.dumps({1, 2}, 2),
    ],
)
def test_classes_are_refused(tmp_path: Path, data: bytes):
    with pytest.raises(DataError, match=r"refused: it names the class .*only plain") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"\x80\x02K\x01)R.",  # calls a number
        b"\x80\x02\x82\x01.",  # an extension
        b"\x80\x05\x97.",  # a buffer outside the pickle
        b"Pabc\n.",  # an object outside the pickle
        b"\x80\x02]r\xff\xff\xff\x3f.",  # the unpickler's memo would take 16 GB
    ],
)
def test_damage_is_one_line(tmp_path: Path, data: bytes):
    with pytest.raises(DataError, match=r"x\.p: damaged pickle") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_deep_lists_are_read(tmp_path: Path):
    found = read(tmp_path, b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
    assert isinstance(found, list)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=60))
def test_garbage_is_a_value_or_one_line(tmp_path: Path, data: bytes):
    with contextlib.suppress(DataError):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"\x1f\x8b\x08rest", "is a gzip file"),
        (b'[{"ref_id": 1}]', "is JSON"),
        (b'\xef\xbb\xbf{"refs": []}', "is JSON"),
    ],
)
def test_another_format_is_named(tmp_path: Path, data: bytes, line: str):
    with pytest.raises(DataError, match=line):
        read(tmp_path, data)
