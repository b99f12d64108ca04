"""The one reader of picture files: pixels within bounds, or one line that names the file."""

from __future__ import annotations

import warnings
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
ORIENTATION = 0x0112  # the EXIF tag
# Formats that Pillow decodes by itself; EPS, for example, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")


@contextmanager
def open_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture whose header has been read and whose size is bounded; pixels are read when used.

    Raises:
        DataError: missing, damaged, no picture, of more than ``max_pixels``, or grey of 32 bits;
            also for an error while it is open.
    """
    try:
        if Path(path).is_fifo():  # reading would block
            raise DataError(f"{path}: not a file")
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
                wide = picture.mode == "I" and picture.format not in ("PNG", "PPM")
                if wide or picture.mode == "F":  # Pillow would clip them to white or black
                    raise DataError(
                        f"{path}: grey of 32 bits (mode {picture.mode}) has no defined range; "
                        "convert it to 8 bits"
                    )
                if picture.format == "PNG":
                    _verify_png(path)
                yield picture
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # a damaged picture can raise nearly anything in a decoder
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error


def _verify_png(path: str | Path) -> None:
    """Check the checksums of all chunks; Pillow skips those of pixels when it decodes."""
    with Image.open(path, formats=("PNG",)) as picture:
        picture.verify()


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width in pixels after the EXIF orientation is applied."""
    # Pillow turns a TIFF itself: its size is the upright one already.
    turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def to_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture as 8-bit RGB, turned as its EXIF orientation says.

    Grey of 16 bits keeps its upper 8 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A picture file as uint8 RGB (H,W,3), upright.

    The EXIF orientation is applied, as OpenCV and Detectron2 do for COCO data sets. Annotations
    are of the upright picture.

    Raises:
        DataError: missing, damaged, no picture, of an undefined range, or larger than
            ``max_pixels``.
    """
    with open_picture(path, max_pixels) as picture:
        return np.asarray(to_rgb(picture))


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
