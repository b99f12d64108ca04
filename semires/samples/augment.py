"""Weak and strong views of an image (paper section 4.2: Gaussian blur, colour jitter).

The teacher sees the weak view. The student sees the strong view, which is the weak view with colour
jitter. All operations are Pillow's and none changes the geometry. Every random choice comes from
the generator that is passed in, so the views depend only on the seed and the place in the stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from semires.config.schema import Augment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
_STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)


def normalise(image: NDArray[np.uint8]) -> torch.Tensor:
    """Uint8 (H,W,3) to float32 (3,H,W), ImageNet mean and standard deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    return pixels.sub_(_MEAN).div_(_STD)


def renormalise(image: torch.Tensor) -> torch.Tensor:
    """Normalise a second time, as the published code does to its strong view."""
    return (image - _MEAN) / _STD


def weak_view(
    image: NDArray[np.uint8], settings: Augment, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Gaussian blur with probability ``blur_p``; uint8 (H,W,3) to the same."""
    if rng.random() >= settings.blur_p:
        return image
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(settings.blur_radius))
    return np.asarray(blurred)


def strong_view(
    weak: NDArray[np.uint8], settings: Augment, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Jitter brightness, contrast, saturation and hue in random order with ``jitter_p``.

    Factors are uniform in 1 - value .. 1 + value, the hue shift in -hue .. +hue turns.
    """
    factors = {
        name: float(rng.uniform(1 - width, 1 + width))
        for name, width in (
            ("brightness", settings.brightness),
            ("contrast", settings.contrast),
            ("saturation", settings.saturation),
        )
    }
    shift = float(rng.uniform(-settings.hue, settings.hue))
    order = rng.permutation(4)
    if rng.random() >= settings.jitter_p:
        return weak
    steps: list[Callable[[Image.Image], Image.Image]] = [
        lambda im: ImageEnhance.Brightness(im).enhance(factors["brightness"]),
        lambda im: ImageEnhance.Contrast(im).enhance(factors["contrast"]),
        lambda im: ImageEnhance.Color(im).enhance(factors["saturation"]),
        lambda im: _shift_hue(im, shift),
    ]
    picture = Image.fromarray(weak)
    for index in order:
        picture = steps[index](picture)
    return np.asarray(picture)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    steps = round(turns * 256)
    shifted = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
