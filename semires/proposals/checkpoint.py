"""Stage `sam`: verify a SAM checkpoint (the embedded tiny SAM or a published file) by SHA-256.

Input: ``params.sam``. Output: ``sam/sam.json`` (model, sha256, size, path) and, for ``tiny``, a
copy of the weights, so that DVC tracks them. Weights are loaded by safetensors, or by torch.load
with `weights_only`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from semires import files
from semires.config.schema import Params
from semires.errors import CorruptCacheError, WeightsError
from semires.models.weights import (
    check_names,
    check_tensors,
    misfit,
    one_line,
    read_checkpoint,
    read_safetensors,
    weights_errors,
)
from semires.runs import layout

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

# The published files and their SHA-256. The names contain the first digits of the MD5.
PUBLISHED = {
    "vit_b": (
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": (
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": (
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
TINY_FILE = "tiny_sam.safetensors"
RECORD = layout.SAM / "sam.json"
POSITIONS = "image_encoder.pos_embed"
SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # channels of the image encoder
# Likely causes of weights that do not fit: patterns of parameter names. The first match is shown.
CAUSES = (
    (r"lora|\bw_[ab]_|linear_[ab]_[qv]", "a LoRA file: merge it into SAM's weights first"),
    (
        r"hf_token|hf_mlp|compress_vit_feat|embedding_(encoder|maskfeature)",
        "SAM-HQ: use a source of kind `transformers` with its folder",
    ),
    (
        r"image_encoder\.(patch_embed\.seq|layers)\.",
        "MobileSAM, whose image encoder is a TinyViT, is not supported",
    ),
    (
        r"image_encoder\.trunk\.|sam_mask_decoder|memory_(encoder|attention)",
        "SAM 2: use a source of kind `transformers` with its folder",
    ),
    (
        r"vision_encoder\.|shared_image_embedding",
        "SAM in transformers' layout: use a source of kind `transformers` with its folder",
    ),
    (r"(?i)adapter", "a SAM with adapters is not supported"),
)


def prepare_checkpoint(params: Params) -> None:
    """Verify the checkpoint of ``params.sam`` and describe it in ``sam/sam.json``.

    Raises:
        WeightsError: the file is missing, has another SHA-256, or does not fit the model.
    """
    settings = params.sam
    path = _find(settings.model, Path(settings.checkpoint))
    sha256 = files.sha256_file(path)
    _, published = PUBLISHED.get(settings.model, ("", None))
    expected = settings.sha256 or published
    if expected is not None and sha256 != expected.lower():
        raise WeightsError(
            f"{path}: SHA-256 is {sha256}, not {expected.lower()}: an incomplete download or "
            "another file; download it again, or set sam.sha256 to use this file"
        )
    with files.atomic_folder(layout.SAM) as folder:
        described = str(path)
        if settings.model == "tiny":
            described = TINY_FILE
            files.write_bytes(folder / TINY_FILE, path.read_bytes())
        size = path.stat().st_size
        record = {"model": settings.model, "sha256": sha256, "size": size, "path": described}
        files.write_json(folder / RECORD.name, record, seal=True)
        read_sam(settings.model, folder / TINY_FILE if settings.model == "tiny" else path)
    print(f"sam: {settings.model}, {size / 2**20:.1f} MiB, SHA-256 {sha256[:12]}")


def _find(model: str, path: Path) -> Path:
    name, _ = PUBLISHED.get(model, ("", None))
    if path.is_dir():
        path = path / name
    if path.is_file():
        return path
    if not name:
        raise WeightsError(
            f"{path}: no such file; the tiny SAM's weights come with the project: "
            f"restore them with `git checkout -- {path}`"
        )
    raise WeightsError(
        f"{path}: no such file; download {name}, listed under Model Checkpoints in "
        f"github.com/facebookresearch/segment-anything, to {path}"
    )


def checkpoint_sha256() -> str:
    """Return the SHA-256 of the checkpoint that ``sam/sam.json`` describes."""
    return str(_read_record()["sha256"])


def load_sam() -> Sam:
    """Load the model that ``sam/sam.json`` describes, on the CPU, in eval mode.

    Raises:
        WeightsError: the stage `sam` has not run, or the weights are missing or do not fit.
        CorruptCacheError: the weights have changed since the stage verified them.
    """
    record = _read_record()
    path = Path(record["path"]) if record["model"] != "tiny" else layout.SAM / record["path"]
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file, although {RECORD} names it; run the stage sam again"
        )
    if files.sha256_file(path) != record["sha256"]:
        raise CorruptCacheError(f"{path}: changed since the stage sam verified it; run it again")
    return read_sam(record["model"], path)


def _read_record() -> dict[str, str]:
    if not RECORD.is_file():
        raise WeightsError(f"{RECORD}: no such file; run the stage sam first: `dvc repro sam`")
    return dict(files.read_json(RECORD, sealed=True))


def read_sam(model: str, path: Path) -> Sam:
    """Load SAM with the weights of a file, on the CPU, in eval mode.

    Args:
        model: ``tiny`` (safetensors), ``vit_b``, ``vit_l`` or ``vit_h`` (published ``.pth``).
        path: the file.

    Raises:
        WeightsError: the file is damaged, unsafe or of another model, or has NaN or infinite
            values.
    """
    from segment_anything import sam_model_registry  # imports torchvision

    from semires.proposals.portable import make_portable
    from semires.proposals.tiny_sam import build_tiny_sam

    tiny = model == "tiny"
    build = build_tiny_sam if tiny else sam_model_registry[model]
    state = read_safetensors(path) if tiny else read_checkpoint(path, mmap=True)
    fault = f"no weights of SAM {model}"
    with weights_errors(str(path), fault):
        with torch.device("meta"):  # reject a wrong file before building a large model
            problem = _problem(state, build(), model)
        if problem:
            raise WeightsError(f"{path}: {fault}: {problem}")
        sam = build()
        sam.load_state_dict(check_tensors(state, str(path)))
    return make_portable(sam).eval()


def _problem(content: Any, sam: nn.Module, model: str) -> str:
    """Describe why a checkpoint does not fit SAM, with the likely cause; '' if it fits.

    Args:
        content: the content of the file.
        sam: the model with the expected names and shapes.
        model: the model's name.
    """
    state, parts = content, []
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict) and any(hasattr(v, "shape") for v in value.values()):
            state = value
            parts = [f"the weights are its entry `{one_line(key, 40)}`: save only that entry"]
            break
    problem = misfit(sam, check_names(state))
    if not problem:
        return "; ".join(parts)
    parts.insert(0, problem)
    first = {name.split(".")[0] for name in state}
    known = {name.split(".")[0] for name in sam.state_dict()}
    if len(first) == 1 and not first & known:
        parts.append(f"all its names begin with `{one_line(first.pop(), 40)}.`: remove this prefix")
    likely = [cause for pattern, cause in CAUSES if any(re.search(pattern, n) for n in state)]
    widths = [value.shape[-1] for name, value in state.items() if name.endswith(POSITIONS)]
    size = SIZES.get(widths[0], model) if widths else model
    if not likely and size != model:
        likely = [f"it is of SAM {size}: set sam.model to it"]
    return "; ".join([*parts, *likely[:1]])
