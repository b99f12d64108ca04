"""Where weights and vocabularies come from: shipped files, local files and folders, hub ids."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from semires.errors import WeightsError

_PACKAGE = Path(__file__).parents[1]
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the second if the first is absent
VOCABULARY = ("vocab.txt", "tokenizer.json")  # the second if the first is absent


def shipped(source: str | Path) -> Path:
    """``source`` as a path; the package's own ``semires/weights/...`` from any current folder."""
    path = Path(source)
    if not path.exists() and path.parts[:2] == ("semires", "weights"):
        return _PACKAGE.joinpath(*path.parts[1:])
    return path


def folder_of(source: str | Path, files: tuple[str, ...], key: str) -> Path:
    """The local folder of a model in transformers' layout, downloaded from the hub if necessary.

    Args:
        source: a folder or a hub id.
        files: patterns of required files beside the ``*.json``; the first that exists is enough.
        key: the parameter that names the source, for the message.

    Raises:
        WeightsError: no such folder, it lacks the files, or the hub cannot be reached.
    """
    path = shipped(source)
    if path.exists() or path.is_absolute():
        if _has(path, files):
            return path
        lacks = f"it holds no {' or '.join(files)}" if path.is_dir() else "no such folder"
        raise WeightsError(f"{key}: {path}: {lacks}; give a folder in transformers' layout")
    return _from_hub(str(source), files, key)


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _from_hub(name: str, files: tuple[str, ...], key: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failures = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError)
    reason = "the hub cannot be reached from here"
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if _has(cached, files):
            return cached
    except failures:
        pass  # not in the cache: ask the hub
    if not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT):
        try:
            for pattern in files:
                folder = Path(snapshot_download(name, allow_patterns=["*.json", pattern]))
                if _has(folder, (pattern,)):
                    return folder
            reason = f"it holds no {' or '.join(files)}"
        except failures as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise WeightsError(
        f"{key}: {name} is not a local folder, and not available on the hub ({reason}); "
        f"download it on a machine with network access (`hf download {name} --local-dir DIR`) "
        f"and set {key} to DIR"
    )


def _reachable(endpoint: str) -> bool:
    """Whether the hub is reachable. Without this check its client would retry for minutes."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    url = urlsplit(endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        with socket.create_connection((url.hostname or "", port), timeout=5):
            return True
    except OSError:
        return False
