"""SAM checkpoints (stage `sam`): the embedded tiny one or a published file, by its SHA-256.

In: ``params.sam``; out: ``sam/sam.json`` (model, sha256, size, path) and, for ``tiny``, a copy of
the weights, so that DVC versions them. Weights are read by safetensors or with `weights_only`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from semires import files
from semires.config.schema import Params
from semires.errors import CorruptCacheError, WeightsError
from semires.runs import layout

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


@dataclass(frozen=True)
class Published:
    """A published file. Its name carries the first digits of its MD5, not of its SHA-256."""

    name: str
    sha256: str


PUBLISHED = {
    "vit_b": Published(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Published(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Published(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
TINY_FILE = "tiny_sam.safetensors"


def prepare_checkpoint(params: Params) -> None:
    """Verify the checkpoint of ``params.sam`` and describe it in ``sam/sam.json``.

    Raises:
        WeightsError: it is missing or not the file it should be.
    """
    settings = params.sam
    path = _find(settings.model, Path(settings.checkpoint))
    sha256 = files.sha256_file(path)
    known = PUBLISHED.get(settings.model)
    expected = settings.sha256 or (known.sha256 if known else None)
    if expected is not None and sha256 != expected.lower():
        raise WeightsError(
            f"{path}: SHA-256 is {sha256}, not {expected.lower()}: a broken download or another "
            "file; fetch it again, or set sam.sha256 if this file is meant"
        )
    with files.atomic_folder(layout.SAM) as folder:
        described = str(path)
        if settings.model == "tiny":
            described = TINY_FILE
            files.write_bytes(folder / TINY_FILE, path.read_bytes())
        size = path.stat().st_size
        record = {"model": settings.model, "sha256": sha256, "size": size, "path": described}
        files.write_json(folder / "sam.json", record, seal=True)
        read_sam(settings.model, folder / TINY_FILE if settings.model == "tiny" else path)
    print(f"sam: {settings.model}, {size / 2**20:.1f} MiB, SHA-256 {sha256[:12]}")


def _find(model: str, path: Path) -> Path:
    known = PUBLISHED.get(model)
    if known is not None and path.is_dir():
        path = path / known.name
    if path.is_file():
        return path
    if known is None:
        raise WeightsError(
            f"{path}: no such file; the tiny SAM's weights come with the project: "
            f"restore it with `git checkout -- {path}`"
        )
    raise WeightsError(
        f"{path}: no such file; download {known.name}, listed under Model Checkpoints in "
        f"github.com/facebookresearch/segment-anything, to {path}"
    )


def checkpoint_sha256(folder: str | Path = layout.SAM) -> str:
    """SHA-256 of the checkpoint that ``folder/sam.json`` describes."""
    return str(_read_record(Path(folder))["sha256"])


def load_sam(folder: str | Path = layout.SAM, verify: bool = True) -> Sam:
    """The model that ``folder/sam.json`` describes, on the CPU, in eval mode.

    Raises:
        WeightsError: the stage `sam` has not run, or the weights are missing or do not fit.
        CorruptCacheError: the weights are not the bytes that the stage verified.
    """
    folder = Path(folder)
    record = _read_record(folder)
    path = Path(record["path"]) if record["model"] != "tiny" else folder / record["path"]
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file, though {folder}/sam.json names it; run stage sam"
        )
    if verify and files.sha256_file(path) != record["sha256"]:
        raise CorruptCacheError(f"{path}: changed since the stage sam verified it; run it again")
    return read_sam(record["model"], path)


def _read_record(folder: Path) -> dict[str, str]:
    path = folder / "sam.json"
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; run the stage sam first: `dvc repro sam`")
    record = files.read_json(path)
    if not isinstance(record, dict) or not {"model", "sha256", "path"} <= set(record):
        raise CorruptCacheError(f"{path}: lacks model, sha256 or path; run the stage sam again")
    return record


def read_sam(model: str, path: Path) -> Sam:
    """SAM with a file's weights, on the CPU, in eval mode.

    Args:
        model: ``tiny`` (safetensors), ``vit_b``, ``vit_l`` or ``vit_h`` (published ``.pth``).
        path: the file.

    Raises:
        WeightsError: it is damaged, unsafe, of another model, or holds NaN or infinite values.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if model == "tiny":
            from semires.proposals.tiny_sam import build_tiny_sam

            sam, state = build_tiny_sam(), load_file(path)
        else:
            from segment_anything import sam_model_registry

            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            sam = sam_model_registry[model]()
        sam.load_state_dict(state)
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
    ) as error:
        raise WeightsError(f"{path}: no weights of SAM {model}: {_first_line(error)}") from error
    except Exception as error:  # torch wraps pickle's refusals in classes of its own
        if type(error).__name__ != "UnpicklingError":
            raise
        raise WeightsError(f"{path}: unsafe or damaged: {_first_line(error)}") from error
    bad = [name for name, tensor in sam.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(f"{path}: {bad[0]} holds NaN or infinite values")
    return sam.eval()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
