"""Read image files. All other modules read images through this one.

An image that is missing, damaged or too large raises a :class:`DataError` that names the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from semires.errors import DataError

MIN_SIDE = 8  # minimum side of an image to segment, pixels; SAM rejects smaller images
MAX_SEGMENTED_PIXELS = 4096 * 4096  # proposals of a larger image would exhaust the memory
MAX_PIXELS = 100_000_000  # the header of a very small file can declare any size
BUFFER_BYTES = 2**20  # Pillow reads a header in many small pieces
ORIENTATION = 0x0112  # the EXIF tag
# Formats that Pillow decodes by itself; EPS, for example, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")


@contextmanager
def open_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file and check its size. Pixels are decoded when they are first used.

    Raises:
        DataError: the file is missing, damaged or not an image, has more than ``max_pixels``
            pixels, or is 32-bit grey. Errors inside the ``with`` block raise it as well.
    """
    try:
        if Path(path).is_fifo():  # reading would block
            raise DataError(f"{path}: not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large files; the size is checked here
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
                if wide or picture.mode == "F":  # Pillow would clip the values to 0..255
                    raise DataError(
                        f"{path}: grey of 32 bits (mode {picture.mode}) has no defined range; "
                        "convert it to 8 bits"
                    )
                if picture.format == "PNG":  # the checksums, which decoding does not verify
                    with Image.open(path, formats=("PNG",)) as again:
                        again.verify()
                yield picture
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # a decoder can raise almost any exception on a damaged image
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason})") from error


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return height and width in pixels after the EXIF orientation is applied."""
    # Pillow applies the orientation of a TIFF itself, so its size is already the upright one.
    turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert an open image to 8-bit RGB and apply its EXIF orientation.

    A 16-bit grey image is reduced to its upper 8 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image file as uint8 RGB (H,W,3) with its EXIF orientation applied.

    OpenCV and Detectron2 do the same for COCO data sets. Annotations refer to the upright image.

    Raises:
        DataError: the file is missing, damaged or not an image, its pixel values have no defined
            range, or it has more than ``max_pixels`` pixels.
    """
    with open_picture(path, max_pixels) as picture:
        return np.asarray(to_rgb(picture))


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file to segment to RGB uint8 (H,W,3).

    Raises:
        DataError: the file is missing or damaged, a side is below 8 pixels (a SAM limit), or the
            image has more than ``MAX_SEGMENTED_PIXELS`` pixels.
    """
    image = read_picture(path, MAX_SEGMENTED_PIXELS)
    height, width, _ = image.shape
    if min(height, width) < MIN_SIDE:
        raise DataError(
            f"{path}: {width}x{height} pixels; an image to segment needs sides of at least "
            f"{MIN_SIDE} pixels"
        )
    return np.ascontiguousarray(image)
