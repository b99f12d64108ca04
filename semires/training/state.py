"""The state of an unfinished training on disk: whole, checksummed, the previous one kept.

Plain tensors and JSON types only, read with ``weights_only=True``. A damaged state falls back on
the one before it, and says so.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from semires.files import explain_os_error, sha256_bytes, write_bytes

DIGEST_BYTES = 64


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state with its SHA-256 in front; the earlier one becomes ``.previous``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, previous(path))
    write_bytes(path, sha256_bytes(data).encode() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest undamaged state, or None."""
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        data = candidate.read_bytes()
        digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        if sha256_bytes(body).encode() == digest:
            try:
                return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")  # type: ignore[no-any-return]
            except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
                pass
        print(f"{candidate}: damaged training state, ignored")
    return None


def previous(path: Path) -> Path:
    """Where the state before the newest one is kept."""
    return path.with_suffix(".previous.pt")
