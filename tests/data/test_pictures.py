"""Pictures as people have them: turned by EXIF, deep grey, with trailers, cut, of rarer formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from semires.data.pictures import open_picture, read_picture, upright_size
from semires.data.prepare import _check_images
from semires.data.refer import Faults
from semires.errors import DataError

STORED = {  # EXIF orientation -> how the upright picture is stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def upright() -> np.ndarray:
    pixels = np.zeros((40, 104, 3), np.uint8)
    pixels[:16, :32] = 255, 0, 0
    pixels[32:, 72:] = 0, 0, 255
    return pixels


def faults(path: Path, height: int, width: int) -> str:
    found = Faults("here")
    table = pd.DataFrame({"file_name": [path.name], "height": [height], "width": [width]})
    _check_images(table, path.parent, found)
    try:
        found.raise_any()
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_read_upright(tmp_path: Path, orientation: int, suffix: str):
    stored, how = Image.fromarray(upright()), STORED[orientation]
    stored = stored if how is None else stored.transpose(how)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.save(path, exif=exif.tobytes(), **({"quality": 100} if suffix == "jpg" else {}))
    pixels = read_picture(path).astype(int)
    assert pixels.shape == (40, 104, 3)
    assert abs(pixels - upright()).mean() < 8
    with open_picture(path) as picture:
        assert upright_size(picture) == (40, 104)
    assert faults(path, 40, 104) == ""
    if orientation > 4 and suffix != "tif":
        assert "its EXIF orientation turns it" in faults(path, 104, 40)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_32_bits_is_refused(tmp_path: Path, kind: type):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.arange(400, dtype=kind).reshape(20, 20)).save(path)
    with pytest.raises(DataError, match=r"deep\.tif: grey of 32 bits \(mode [IF]\)"):
        read_picture(path)
    assert "grey of 32 bits" in faults(path, 20, 20)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, suffix: str):
    path = tmp_path / f"deep.{suffix}"
    shades = (np.arange(400, dtype=np.uint16) * 150).reshape(20, 20)
    Image.fromarray(shades).save(path)
    assert (read_picture(path)[..., 0] == shades >> 8).all()


def test_a_jpeg_may_have_a_trailer_and_may_not_be_cut(tmp_path: Path):
    path = tmp_path / "x.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 48, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for trailer in (b"\0" * 5000, b"\r\n<html>" * 20, whole[:500]):
        path.write_bytes(whole + trailer)
        assert faults(path, 64, 48) == ""
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated image" in faults(path, 64, 48)
    image = Image.fromarray(upright())
    image.save(path, "MPO", save_all=True, append_images=[image])
    assert faults(path, 40, 104) == ""
    path.write_bytes(path.read_bytes()[:700])
    assert "truncated image" in faults(path, 40, 104)


@pytest.mark.parametrize("suffix", ["jp2", "avif"])
def test_rarer_formats_are_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(upright()).save(path)
    assert abs(read_picture(path).astype(int) - upright()).mean() < 12
