"""Read weight files safely, and report any fault of a file in one line.

Every loader (Swin, BERT, published checkpoints, SAM, models of the hub) uses these functions.
Errors of `torch`, `safetensors` and `transformers`, and weights that these would fill in silently,
become a WeightsError.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semires.errors import SemiresError, WeightsError
from semires.files import sha256_file
from semires.models.sources import WEIGHTS, folder_of

State = dict[str, torch.Tensor]
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and DDP, and of torch.compile
# Values that training scripts save beside the weights. They are read as `Ignored`.
IGNORED = (
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath", "pathlib.WindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip
_COMPUTED = re.compile(r"(position_ids|relative_position_index|attn_mask)$")


class Ignored:
    """Placeholder for a NumPy value or a path in a checkpoint; its content is not kept."""

    def __init__(self, *content: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def one_line(text: object, limit: int = 200) -> str:
    """Shorten a text to one printable line of at most ``limit`` characters.

    Only the first line is used, with the second one if the first ends with a colon. A longer text
    is cut after a whole sentence if possible.
    """
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in plain.splitlines()]
    lines = [" ".join(line.split()) for line in lines if line.strip()] or [""]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if len(line) <= limit:
        return line
    sentence = line.rfind(". ", 0, limit)
    return line[: sentence + 1] if sentence > 0 else line[: limit - 3] + "..."


@contextlib.contextmanager
def weights_errors(where: str, fault: str = "cannot be read") -> Iterator[None]:
    """Convert any error of a library into a WeightsError of one line that begins with ``where``.

    Errors of this package pass unchanged. Damaged files make the libraries raise nearly any class.
    """
    try:
        yield
    except SemiresError:
        raise
    except MemoryError as error:
        raise WeightsError(f"{where}: {fault} (it needs too much memory)") from error
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"it lacks {reason}"
        raise WeightsError(f"{where}: {fault} ({reason})") from error


def check_file(path: Path) -> None:
    """Refuse a file that is missing or whose first bytes are not those of a weights file.

    Raises:
        WeightsError: missing, empty, a Git LFS pointer, a web page, or an archive that is cut off.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with weights_errors(str(path), "damaged"), open(path, "rb") as file:
        head = file.read(128)
        cut_off = head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)
    if not head:
        raise WeightsError(f"{path}: damaged: it is empty")
    if head.startswith(b"version https://") and b"/spec/v1" in head:
        raise WeightsError(
            f"{path}: a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{path}: a web page, not the file itself: download it again")
    if cut_off:
        raise WeightsError(f"{path}: damaged: its end is missing; download or copy it again")


def read_safetensors(path: str | Path) -> State:
    """All tensors of a safetensors file.

    Raises:
        WeightsError: missing, damaged or incomplete.
    """
    from safetensors.torch import load_file

    path = Path(path)
    check_file(path)
    with weights_errors(str(path), "damaged, incomplete or no safetensors file"):
        return dict(load_file(path))


def read_checkpoint(path: str | Path, mmap: bool = False) -> Any:
    """Read a ``.pth`` of tensors, plain containers and `argparse.Namespace`; no code is executed.

    NumPy values and paths beside the weights become :class:`Ignored`.

    Args:
        path: the file.
        mmap: map the tensors into memory instead of reading them; the checksums of the archive
            are then not verified.

    Raises:
        WeightsError: missing, damaged, or it holds anything else.
    """
    path = Path(path)
    check_file(path)
    allowed: list[Any] = [argparse.Namespace, *((Ignored, name) for name in IGNORED)]
    with weights_errors(str(path), "damaged or no PyTorch checkpoint"):
        archive = zipfile.is_zipfile(path)
        if archive and not mmap:  # torch does not verify the checksums
            with zipfile.ZipFile(path) as content:
                if (damaged := content.testzip()) is not None:
                    raise zipfile.BadZipFile(f"the checksum of {damaged} does not hold")
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(
                    path, map_location="cpu", weights_only=True, mmap=mmap and archive
                )
        except pickle.UnpicklingError as error:
            raise WeightsError(f"{path}: {_refusal(str(error))}") from error


def _refusal(message: str) -> str:
    """The reason why torch's safe reader refuses a file, and a remedy."""
    found = re.search(r"(?:GLOBAL|global|[Uu]nsupported \w+:?|class) `?([\w.]+\.[\w.]+)", message)
    if found is None:
        return "damaged or no PyTorch checkpoint (its pickle cannot be read)"
    return (
        f"refused: it would run {found[1]}, and only tensors, plain containers, numbers and "
        "argparse.Namespace are read; if you trust the file, load it once with "
        "weights_only=False and save only the weights (torch.save of state dicts)"
    )


def plain_names(state: State) -> State:
    """A state dict without the prefixes that DataParallel, DDP and torch.compile add."""
    out = {}
    for name, value in state.items():
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        out[name] = value
    return out


def check_names(state: Any) -> State:
    """Return ``state`` if it is a mapping of names to tensors.

    Raises:
        TypeError: it is not; the text says what it is.
    """
    if not isinstance(state, dict):
        raise TypeError(f"weights are a {type(state).__name__}, not a mapping")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            shown, kind = one_line(name, 80), type(value).__name__
            raise TypeError(f"{shown!r} is a {kind}, not a tensor")
    return state


def check_tensors(state: Any, where: str) -> State:
    """Return ``state`` if it is a mapping of names to usable tensors.

    Raises:
        WeightsError: it is not, a tensor has no data, or it holds NaN or infinite numbers.
    """
    with weights_errors(where, "no weights"):
        check_names(state)
    for name, value in state.items():
        shown = one_line(name, 80)
        if value.layout != torch.strided:
            raise WeightsError(f"{where}: {shown} is a sparse tensor")
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{where}: {shown} has no data")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{where}: damaged: {shown} holds NaN or infinite numbers")
    return dict(state)


def misfit(module: nn.Module, state: State) -> str:
    """Describe what in a state dict does not fit a module; '' if everything fits.

    One name of each kind is given: wrong shape (or not a float where one is needed), missing,
    unknown.
    """
    wanted = module.state_dict()
    wrong = []
    for name, tensor in wanted.items():
        value = state.get(name, tensor)
        if value.shape != tensor.shape:
            wrong.append(f"{name} is {tuple(value.shape)}, not {tuple(tensor.shape)}")
        elif value.is_floating_point() != tensor.is_floating_point():
            wrong.append(f"{name} is {value.dtype}, not {tensor.dtype}")
    missing = [name for name in wanted if name not in state]
    return _faults(wrong, missing, [name for name in state if name not in wanted])


def _faults(wrong: list[str], missing: list[str], unknown: list[str]) -> str:
    parts = []
    for kind, names in (("wrong shape", wrong), ("missing", missing), ("unknown", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{kind}: {one_line(names[0], 120)}{more}")
    return "; ".join(parts)


def load_state(module: nn.Module, state: State, where: str) -> None:
    """Load a state dict that must fit a module exactly.

    Raises:
        WeightsError: a tensor is missing, unknown, of another shape, or holds no finite numbers.
    """
    check_tensors(state, where)
    if problem := misfit(module, state):
        raise WeightsError(
            f"{where}: does not fit this model: {problem}; `model` must have the file's sizes"
        )
    module.load_state_dict(state)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load ``model.safetensors`` of a run into a model of the same sizes.

    If ``model.safetensors.sha256`` exists beside the file, the SHA-256 is verified.

    Raises:
        WeightsError: missing, damaged, or of other sizes; the text names the file.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".sha256")
    if path.is_file() and beside.is_file():
        words = beside.read_text(encoding="utf-8", errors="replace").split()
        if words[:1] != [sha256_file(path)]:
            raise WeightsError(
                f"{path}: its SHA-256 is not the one in {beside.name}; the file is damaged, "
                "run the stage that makes it again"
            )
    load_state(module, read_safetensors(path), str(path))


def from_transformers(
    model_class: Any, source: str, key: str, model_type: str | None = None, **options: Any
) -> Any:
    """A model with all weights of a folder in transformers' layout.

    Args:
        model_class: a class with ``from_pretrained``.
        source: a folder or a hub id.
        key: the parameter that names it, for messages.
        model_type: the ``model_type`` that the folder's config.json must have; None: any that
            ``model_class`` accepts.
        options: further arguments of ``from_pretrained``.

    Raises:
        WeightsError: the folder is missing or not readable, is of another architecture, or lacks
            weights (transformers would initialise them at random).
    """
    folder = folder_of(source, WEIGHTS, key)
    where = f"{key}: {folder}"
    pattern = next(pattern for pattern in WEIGHTS if any(folder.glob(pattern)))
    for path in (folder / "config.json", *sorted(folder.glob(pattern))):
        check_file(path)
    with weights_errors(where), quiet_transformers():
        if model_type is not None:
            _check_model_type(folder / "config.json", model_type)
        model, report = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            **options,
        )
    wrong = [
        f"{name} is {tuple(given)}, and config.json says {tuple(wanted)}"
        for name, given, wanted in sorted(report["mismatched_keys"])
    ]
    unknown = [n for n in sorted(report["unexpected_keys"]) if _is_part_of(model, n)]
    if problem := _faults(wrong, sorted(report["missing_keys"]), unknown):
        raise WeightsError(f"{where}: its weights do not fit its config.json: {problem}")
    return model


def _check_model_type(path: Path, wanted: str) -> None:
    """Refuse a folder of another architecture, which transformers loads with a warning.

    Raises:
        WeightsError: config.json names another one.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: holds no mapping")
    found = config.get("model_type")
    classes = config.get("architectures") or []
    if found is None and isinstance(classes, list) and classes:  # config.json of early versions
        found = wanted if str(classes[0]).lower().startswith(wanted) else classes[0]
    if found not in (None, wanted):
        raise WeightsError(f"{path}: is of a {one_line(found, 40)} model, not of {wanted}")


def _is_part_of(model: Any, name: str) -> bool:
    """Whether an unused weight belongs to the model itself, and not to a head on top of it."""
    inner = name.removeprefix(f"{model.base_model_prefix}.")
    parts = {child for child, _ in model.named_children()}
    return inner.split(".")[0] in parts and _COMPUTED.search(name) is None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and tables; relevant faults are raised as errors."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
