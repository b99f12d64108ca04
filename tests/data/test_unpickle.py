"""Hostile, damaged and renamed pickles: refused in one line; none of them runs code."""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
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
    ("data", "line"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "names the class os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names the class os.system"),
        (b"(S'true'\nios\nsystem\n.", "names the class os.system"),
        (pickle.dumps(Path("x"), 2), "names the class"),
        (b"\x80\x02K\x01)R.", "the instruction EMPTY_TUPLE"),
        (b"\x80\x02]}b.", "the instruction BUILD"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        (b"Pabc\n.", "the instruction PERSID"),
        (pickle.dumps([(1, 2)], 2), "the instruction TUPLE2"),
        (pickle.dumps({1, 2}, 4), "the instruction EMPTY_SET"),
        (b"\x80\x02]r\xff\xff\xff\x3f.", "a memo entry"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, line: str):
    with pytest.raises(DataError, match=f"refused: it .*{line}") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"L" + b"9" * 100_000 + b"L\n.",
    ],
)
def test_damage_is_one_line(tmp_path: Path, data: bytes):
    with pytest.raises(DataError, match=r"x\.p: damaged pickle") as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        "b'\\x80\\x02})' + b'\\x85' * 2_000_000 + b'Ns.'",  # hashing would overflow C's stack
        "b'\\x80\\x02})' + b'2\\x86' * 200 + b'Ns.'",  # hashing would take 2**200 steps
        "b'\\x80\\x02]r\\xff\\xff\\xff\\x3f.'",  # the unpickler's memo would take 16 GB
        "b'\\x80\\x02' + b']' * 1_000_000 + b'a' * 999_999 + b'.'",  # nested lists are plain
    ],
)
def test_the_process_survives(tmp_path: Path, attack: str):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from pathlib import Path\n"
        "from semires.data.unpickle import read_plain_pickle\n"
        "from semires.errors import DataError\n"
        f"Path(sys.argv[1]).write_bytes({attack})\n"
        "try: read_plain_pickle(sys.argv[1])\n"
        "except DataError as error: print(error)\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.p")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["alive"], done.stderr
    assert "MemoryError" not in done.stdout


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
