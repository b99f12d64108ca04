"""The saved state of an unfinished training: written atomically, with a checksum.

A state has tensors and JSON types only and is read with ``weights_only=True``. The state before the
newest one is kept and used if the newest one is damaged.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from semires.files import explain_os_error, sha256_bytes, write_bytes

DIGEST_BYTES = 64


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, preceded by its SHA-256. The earlier file becomes ``.previous.pt``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, previous(path))
    write_bytes(path, sha256_bytes(data).encode() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest undamaged state, or None. Prints a line for each damaged one."""
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        data = candidate.read_bytes()
        digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if sha256_bytes(body).encode() == digest:
            state: dict[str, Any] = torch.load(
                io.BytesIO(body), weights_only=True, map_location="cpu"
            )
            return state
        print(f"{candidate}: damaged training state, ignored")
    return None


def previous(path: Path) -> Path:
    """The path of the state before the newest one."""
    return path.with_suffix(".previous.pt")
