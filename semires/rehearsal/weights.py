"""Random weights of the sizes that the parameters describe, for a machine without the real ones.

The files have the formats of the real ones, so that the stages read them as usual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semires.config.schema import Params
from semires.config.validate import validate
from semires.files import sha256_file
from semires.models.text import SPECIAL
from semires.rehearsal.synthetic import WORDS

FOLDER = Path("random")
BERT_TOKENS = 30_522  # of BERT-base, uncased


def random_weights(params: Params, sam: bool) -> dict[str, Any]:
    """Write random weights to ``random/`` and return the parameters that name them, as a tree.

    Args:
        params: all parameters. A part of the model without pretrained weights stays so.
        sam: also write a SAM checkpoint of the size ``sam.model``.
    """
    tree = params.model_dump()
    FOLDER.mkdir()
    if sam:
        path = _write_sam(params.sam.model)
        tree["sam"].update(checkpoint=str(path), sha256=sha256_file(path))
    sections: list[tuple[str, Any, Any]] = [("model", params.model, tree["model"])]
    for name, other in params.models.items():
        sections.append((name, other.model, tree["models"][name]["model"]))
    for name, section, values in sections:
        if getattr(section, "swin", None) is not None and section.swin.pretrained is not None:
            values["swin"]["pretrained"] = str(_write_swin(section.swin, name))
        if getattr(section, "bert", None) is not None and section.bert.pretrained is not None:
            folder = _write_bert(section.bert, name)
            values["bert"].update(pretrained=str(folder), vocabulary=None)
    return validate(tree).model_dump()


def _write_sam(model: str) -> Path:
    if model == "tiny":
        from safetensors.torch import save_file

        from semires.proposals.tiny_sam import build_tiny_sam

        path = FOLDER / "sam.safetensors"
        save_file(build_tiny_sam().state_dict(), path)
        return path
    import torch
    from segment_anything import sam_model_registry

    path = FOLDER / "sam.pth"
    torch.save(sam_model_registry[model]().state_dict(), path)
    return path


def _write_swin(settings: Any, name: str) -> Path:
    from safetensors.torch import save_file

    from semires.models.swin import new_swin

    path = FOLDER / f"{name}-swin.safetensors"
    save_file(new_swin(settings).state_dict(), path)
    return path


def _write_bert(settings: Any, name: str) -> Path:
    from semires.models.encoder import new_bert
    from semires.models.weights import quiet_transformers

    folder = FOLDER / f"{name}-bert"
    with quiet_transformers():
        new_bert(settings, BERT_TOKENS).save_pretrained(folder)
    tokens = [*SPECIAL, *WORDS]
    tokens += [f"token{i}" for i in range(BERT_TOKENS - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder
