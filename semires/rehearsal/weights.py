"""Random weights of the sizes that the parameters describe, for a machine without the real ones.

The files have the formats of the real ones, so that the stages read them as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from semires.config.grid import expand, searches, sources_of, uses_sam
from semires.config.schema import Params
from semires.config.sources import HubSource
from semires.files import sha256_file
from semires.models.encoder import new_bert
from semires.models.swin import new_swin
from semires.models.text import SPECIAL
from semires.models.weights import quiet_transformers
from semires.rehearsal.synthetic import WORDS

FOLDER = Path("random")
BERT_TOKENS = 30_522  # of BERT-base, uncased
# facebook/mask2former-swin-large-coco-panoptic: 216 million parameters
SWIN_LARGE = {
    "image_size": 384, "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48],
    "window_size": 12, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
MASK2FORMER = {"num_queries": 200, "num_labels": 133}
MASK2FORMER_IMAGE = {"shortest_edge": 800, "longest_edge": 1333}
# facebook/sam-vit-huge: 641 million parameters
SAM_VISION = {
    "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
    "global_attn_indexes": [7, 15, 23, 31],
}  # fmt: skip
SAM_SIDE = 1024


def random_weights(params: Params) -> dict[str, Any]:
    """Write random weights to ``random/`` and return the parameters that name them, as a tree.

    Only networks and proposal sources that the study uses get weights, and networks of equal sizes
    share a file. A part of a network without pretrained weights stays so.
    """
    tree = params.model_dump()
    FOLDER.mkdir()
    written: dict[str, str] = {}

    def write(kind: str, settings: Any, writer: Callable[[Any, Path], Path]) -> str:
        sizes = settings and settings.model_dump(exclude={"pretrained", "vocabulary"})
        content = f"{kind} {sizes}"
        if content not in written:
            written[content] = str(writer(settings, FOLDER / f"{kind}{len(written)}"))
        return written[content]

    if uses_sam(params):
        path = _write_sam(params.sam.model)
        tree["sam"].update(checkpoint=str(path), sha256=sha256_file(path))
    sections: list[tuple[Any, Any]] = [(params.model, tree["model"])]
    for model in dict.fromkeys(key.model for key in [*expand(params), *searches(params)]):
        if model is not None:
            sections.append((params.models[model].model, tree["models"][model]["model"]))
    for section, values in sections:
        if getattr(section, "swin", None) is not None and section.swin.pretrained is not None:
            values["swin"]["pretrained"] = write("swin", section.swin, _write_swin)
        if getattr(section, "bert", None) is not None and section.bert.pretrained is not None:
            folder = write("bert", section.bert, _write_bert)
            values["bert"].update(pretrained=folder, vocabulary=None)
    for name in sources_of(params):
        source = params.proposals.sources[name]
        if isinstance(source, HubSource):
            writer = _write_mask2former if source.kind == "panoptic" else _write_hub_sam
            tree["proposals"]["sources"][name]["model"] = write(source.kind, None, writer)
    return tree


def _write_sam(model: str) -> Path:
    if model == "tiny":
        from semires.proposals.tiny_sam import build_tiny_sam

        path = FOLDER / "sam.safetensors"
        save_file(build_tiny_sam().state_dict(), path)
        return path
    from segment_anything import sam_model_registry

    path = FOLDER / "sam.pth"
    torch.save(sam_model_registry[model]().state_dict(), path)
    return path


def _write_swin(settings: Any, place: Path) -> Path:
    path = place.with_suffix(".safetensors")
    save_file(new_swin(settings).state_dict(), path)
    return path


def _write_bert(settings: Any, folder: Path) -> Path:
    with quiet_transformers():
        new_bert(settings, BERT_TOKENS).save_pretrained(folder)
    tokens = [*SPECIAL, *WORDS]
    tokens += [f"token{i}" for i in range(BERT_TOKENS - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder


def _write_mask2former(_: None, folder: Path) -> Path:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN_LARGE), **MASK2FORMER)
    with quiet_transformers():
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
        Mask2FormerImageProcessor(size=MASK2FORMER_IMAGE).save_pretrained(folder)
    return folder


def _write_hub_sam(_: None, folder: Path) -> Path:
    from transformers import SamConfig, SamImageProcessor, SamModel

    sides = {"image_size": SAM_SIDE}
    config = SamConfig(vision_config=SAM_VISION | sides, prompt_encoder_config=sides)
    size = {"height": SAM_SIDE, "width": SAM_SIDE}
    with quiet_transformers():
        SamModel(config).save_pretrained(folder)
        SamImageProcessor(size={"longest_edge": SAM_SIDE}, pad_size=size).save_pretrained(folder)
    return folder
