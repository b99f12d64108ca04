"""A tiny SAM whose weights are part of the repository, for the study on RefScenes.

It replaces the paper's ViT-H. It uses the classes of `segment_anything` with smaller sizes than the
registered models. `experiments/pretrain/tiny_sam.py` trained it on generated scenes with single
foreground points as prompts. Its first mask for a point is the whole object. The second is the part
of the object at the point (the whole object if it has only one part).
"""

from __future__ import annotations

from functools import partial

from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

IMAGE_PX = 96  # the longer side is resized to this size (ViT-H: 1024)
PATCH_PX = 8
GRID = IMAGE_PX // PATCH_PX  # tokens per side; mask logits have 4 * GRID pixels per side
PROMPT_WIDTH = 64
MASKS_PER_POINT = 2  # whole and part; the published SAM models have three


def build_tiny_sam() -> Sam:
    """Build the tiny SAM with random weights, in evaluation mode.

    Image 96 px, patch 8 (12x12 tokens). Encoder: width 96, depth 4, global attention. Prompts:
    width 64. Decoder: depth 2, 4 heads. Output: two masks per point, logits of 48x48.
    """
    encoder = ImageEncoderViT(
        img_size=IMAGE_PX,
        patch_size=PATCH_PX,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_ratio=3.0,
        out_chans=PROMPT_WIDTH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
    )
    prompts = PromptEncoder(
        embed_dim=PROMPT_WIDTH,
        image_embedding_size=(GRID, GRID),
        input_image_size=(IMAGE_PX, IMAGE_PX),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        transformer_dim=PROMPT_WIDTH,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=PROMPT_WIDTH,
            num_heads=4,
            mlp_dim=128,
        ),
        num_multimask_outputs=MASKS_PER_POINT,
        iou_head_hidden_dim=PROMPT_WIDTH,
    )
    return Sam(encoder, prompts, decoder).eval()
