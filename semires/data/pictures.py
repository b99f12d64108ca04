"""The one reader of picture files: pixels within bounds, or one line that names the file."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semires.errors import DataError

MIN_SIDE = 8  # of an image to segment, pixels: SAM takes none that are smaller
MAX_SEGMENTED_PIXELS = 4096 * 4096  # larger images would exhaust the memory of proposals
MAX_PIXELS = 100_000_000  # a picture of a few bytes may claim any size
BUFFER_BYTES = 2**20  # Pillow reads a header in many small pieces
# Those that Pillow decodes by itself: EPS, say, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


@contextmanager
def open_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture whose header has been read and whose size is bounded; pixels are read when used.

    Raises:
        DataError: missing, damaged, no picture, or of more than ``max_pixels``; also for what goes
            wrong while it is open.
    """
    try:
        if Path(path).is_fifo():  # reading would wait for ever
            raise DataError(f"{path}: is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large or odd files: the size is checked below
            with (
                open(path, "rb", BUFFER_BYTES) as file,
                Image.open(file, formats=FORMATS) as picture,
            ):
                if picture.width * picture.height > max_pixels:
                    raise DataError(
                        f"{path}: {picture.width}x{picture.height} pixels are more than "
                        f"{max_pixels:,}"
                    )
                if picture.format == "PNG":
                    _verify_png(Path(path).read_bytes())
                yield picture
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # a damaged picture can raise nearly anything in a decoder
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error


def _verify_png(data: bytes) -> None:
    """The checksums of a PNG's chunks, which Pillow skips for those of pixels."""
    at = 8  # behind the signature
    while data[at + 4 : at + 8] != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("a checksum does not hold")
        if end >= len(data):
            raise ValueError("it is cut off")
        at = end + 4


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB; of 16-bit grey Pillow alone would cut off all above 255."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def read_picture(
    path: str | Path, max_pixels: int = MAX_PIXELS, upright: bool = False
) -> NDArray[np.uint8]:
    """A picture file as uint8 RGB (H,W,3).

    Args:
        path: the file.
        max_pixels: the most that is read.
        upright: turn it as its EXIF says. Data sets' masks are of the picture as it is stored.

    Raises:
        DataError: missing, damaged, no picture, or larger than ``max_pixels``.
    """
    with open_picture(path, max_pixels) as picture:
        turned = ImageOps.exif_transpose(picture) if upright else picture
        return np.asarray(to_rgb(turned))


def as_rgb(image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
    """Grey (H,W), (H,W,1), RGB or RGBA uint8 to contiguous RGB uint8 (H,W,3).

    Raises:
        DataError: another type or shape, or a side below 8 pixels, which SAM cannot take.
    """
    if image.dtype != np.uint8:
        raise DataError(f"{name}: pixels must be 0..255 as uint8, not {image.dtype}")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise DataError(f"{name}: shape {image.shape} is neither grey, RGB nor RGBA")
    height, width, channels = image.shape
    if min(height, width) < MIN_SIDE or height * width > MAX_SEGMENTED_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} pixels; sides from {MIN_SIDE} and at most "
            f"{MAX_SEGMENTED_PIXELS} pixels can be segmented"
        )
    rgb = np.repeat(image, 3, axis=2) if channels == 1 else image[:, :, :3]
    return np.ascontiguousarray(rgb)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to RGB uint8 (H,W,3).

    Raises:
        DataError: it is missing, damaged, too small or too large.
    """
    return as_rgb(read_picture(path, MAX_SEGMENTED_PIXELS), str(path))
