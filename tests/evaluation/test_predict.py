"""`semires predict`: the table of expressions as spreadsheets write it, and what is refused."""

from pathlib import Path

import pytest
from helpers import ROOT

from semires.config.load import load_params
from semires.errors import DataError
from semires.evaluation import predict as module
from semires.evaluation.predict import read_expressions

HEAD = "image,expression\n"


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (HEAD + "a.png,red star\n", [("a.png", "red star")]),
        ("\ufeff" + HEAD + 'a.png,"red, left"\r\n', [("a.png", "red, left")]),
        ("expression,n,image\nred,1,b/a.png\n", [("b/a.png", "red")]),
    ],
)
def test_tables_of_expressions(tmp_path: Path, text: str, pairs: list[tuple[str, str]]):
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8", newline="")
    assert read_expressions(table) == pairs


@pytest.mark.parametrize(
    ("image", "output", "line"),
    [
        ("photo.png", "photo.png", "would replace the picture"),
        ("photo-mask.png", "photo.png", "would replace the picture"),
        ("photo.png", ".", "is a folder"),
        (".", None, "is a folder, no picture"),
        ("/", None, "is a folder, no picture"),
    ],
)
def test_a_picture_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, output: str | None, line: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "open_checkpoint", lambda *_: None)  # comes later
    with pytest.raises(DataError, match=line):
        module.predict(load_params(ROOT / "params.yaml"), "x", image, "red star", output)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "holds no line"),
        (HEAD, "holds no line"),
        ("image;expression\na.png;red\n", "no CSV with columns image,expression"),
        (HEAD + "a.png,red, star\n", "quote commas"),
        (HEAD + "a.png\n", "other columns than its header"),
        (HEAD + "a.png, \n", "no image or no expression"),
        (HEAD + ",red\n", "no image or no expression"),
        (HEAD + "../a.png,red\n", "leaves the folder of images"),
    ],
)
def test_a_line_that_is_not_whole_is_refused(tmp_path: Path, text: str, line: str):
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=line):
        read_expressions(table)
