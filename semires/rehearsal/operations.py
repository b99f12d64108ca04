"""Counted operations of the configured network and of SAM.

torch's FlopCounterMode counts matrix products and convolutions on the meta device: no weights, data
or GPU are needed. A multiply-add is two operations. Norms, activations, resizing and copies are not
counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from semires.config.schema import Params
from semires.models import build_model
from semires.models.encoder import FusedEncoder
from semires.rehearsal.weights import BERT_TOKENS
from semires.runs.key import SUPERVISED, RunKey


@dataclass(frozen=True)
class Operations:
    """TFLOP of a network for one sample.

    Args:
        forward: a forward pass.
        shared: the part of ``forward`` that is computed once per image.
        train: forward and backward.
    """

    forward: float
    shared: float
    train: float


def count(work: Callable[[], Any]) -> float:
    """Return the TFLOP of a call of ``work``."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def network(params: Params, samples: int) -> tuple[FusedEncoder, Callable[[], torch.Tensor]]:
    """Return the configured model on the meta device, ready to train, and its forward pass."""
    vocabulary: Any = SimpleNamespace(vocab_size=BERT_TOKENS)
    with torch.device("meta"):
        model: Any = build_model(params.model, vocabulary, pretrained=False)
        pixels = torch.empty(samples, 3, params.data.image_size, params.data.image_size)
        ids = torch.empty(samples, params.data.max_tokens, dtype=torch.long)
    for part in model.modules():  # in training it reads values; without dropout all is equal
        if isinstance(part, Mask2FormerPixelDecoder):
            part.eval()
    model.freeze(params.optimizer)
    model.set_grad_checkpointing(params.runtime.grad_checkpointing)

    def forward() -> torch.Tensor:  # no mask for BERT: it would read the mask's values
        states = model.bert(input_ids=ids).last_hidden_state
        logits: torch.Tensor = model.segment(pixels, states, torch.ones_like(ids))
        return logits

    return model, forward


def count_network(params: Params) -> Operations:
    """Return the operations of the model for one sample."""
    model, forward = network(params, 1)
    pixels = torch.empty(1, 3, params.data.image_size, params.data.image_size, device="meta")
    train = count(lambda: torch.autograd.backward(forward().sum()))
    model.eval().requires_grad_(False)
    return Operations(count(forward), count(lambda: model.encode_image(pixels)), train)


def count_training(params: Params, key: RunKey, sample: Operations, prompt: float = 0.0) -> float:
    """Return the TFLOP of a training for one of its samples.

    Args:
        params: the parameters of the run.
        key: the run; in mutual learning the teacher predicts each unlabelled sample once, and the
            student trains on each of its views.
        sample: the operations of the model.
        prompt: TFLOP of the proposals that are made for each unlabelled sample.
    """
    if key.method == SUPERVISED:
        return sample.train
    method, labelled = params.refine[key.method], params.mutual.labelled_batch
    unlabelled = params.mutual.unlabelled_batch if method.unlabelled else 0
    trained = labelled + unlabelled * method.views
    total = trained * sample.train + unlabelled * (sample.forward + prompt)
    return total / (labelled + unlabelled)


def count_sam(params: Params, source: str = "sam") -> tuple[float, float]:
    """Return the TFLOP of SAM for one image or label: the encoder, and the decoder.

    Args:
        params: the sections ``sam`` and ``proposals`` are used.
        source: a source of kind ``segment_anything``, which decodes a grid of points, or
            ``sam_prompts``, which decodes the prompts of one label.
    """
    from segment_anything import sam_model_registry

    from semires.proposals.tiny_sam import build_tiny_sam

    settings: Any = params.proposals.sources[source]
    if settings.kind == "sam_prompts":
        batch, tokens, batches = 1, settings.points + 1 + settings.box, 1
    else:  # a point and a second token, which means no box
        batch, tokens = settings.points_per_batch, 2
        batches = -(-(settings.points_per_side**2) // batch)
    model = params.sam.model
    with torch.device("meta"), torch.no_grad():
        sam = (build_tiny_sam if model == "tiny" else sam_model_registry[model])()
        side, width = sam.image_encoder.img_size, sam.prompt_encoder.embed_dim
        image = torch.empty(1, width, *sam.prompt_encoder.image_embedding_size)
        sparse, dense = torch.empty(batch, tokens, width), image.expand(batch, -1, -1, -1)
        encoder = count(lambda: sam.image_encoder(torch.empty(1, 3, side, side)))
        decoder = count(lambda: sam.mask_decoder(image, image, sparse, dense, True))
    return encoder, decoder * batches
