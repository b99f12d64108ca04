"""Pictures of `panels.npz` for the tracking store: a strip per sample, its image and masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT = 128  # smaller masks are enlarged to about this many pixels
MASKS = ("truth", "pseudo", "refined", "prediction")


def panel_pictures(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yield a file name and the bytes of a PNG for every sample of a run's ``panels.npz``.

    Each picture shows the image and its masks side by side, with a caption above each.
    """
    with np.load(path, allow_pickle=False) as panels:
        for row, image in enumerate(panels["image"]):
            strip = {"image": image}
            for name in MASKS:
                mask = panels[name][row][..., None]
                strip[name] = np.where(mask, image // 2 + 110, image // 3).astype(np.uint8)
            rule = "".join(c for c in str(panels["rule"][row]) if c.isalnum())
            yield f"panel-{row:02d}-{rule}.png", _captioned(strip)


def _captioned(pictures: dict[str, Any]) -> bytes:
    """A PNG of pictures of one size, uint8 (H,W,3), in a row, each under its name."""
    from PIL import Image, ImageDraw, ImageFont

    parts, font = [], ImageFont.load_default(14)
    for name, picture in pictures.items():
        times = max(1, HEIGHT // len(picture))
        large = np.pad(picture.repeat(times, 0).repeat(times, 1), ((20, 0), (0, 4), (0, 0)))
        drawn = Image.fromarray(large)
        ImageDraw.Draw(drawn).text((4, 2), name, (255, 255, 255), font)
        parts.append(np.asarray(drawn))
    png = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(png, "PNG")
    return png.getvalue()
