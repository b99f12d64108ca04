"""`semires predict`: the table of expressions as spreadsheets write it, and what is refused."""

from pathlib import Path

import pytest
from helpers import ROOT
from helpers.small_study import small_params
from PIL import Image

from semires.config.load import load_params
from semires.errors import DataError, WeightsError
from semires.evaluation import predict as module
from semires.evaluation.checkpoint import Trained, open_checkpoint
from semires.evaluation.predict import read_expressions
from semires.models import build_model
from semires.models.text import Tokenizer

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
        (".", None, "is a folder, not a picture"),
        ("/", None, "is a folder, not a picture"),
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


@pytest.fixture
def trained() -> Trained:
    """A model with random weights."""
    params = small_params()
    tokenizer = Tokenizer.from_config(params.model)
    model = build_model(params.model, tokenizer, pretrained=False)
    return Trained(model.eval(), tokenizer, params.data)


def test_a_fault_in_a_later_row_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Trained
):
    monkeypatch.setattr(module, "open_checkpoint", lambda *_: trained)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    table = tmp_path / "table.csv"
    table.write_text(HEAD + "a.png,red star\nb.png,red star\n")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"b\.png"):
        module.predict(None, "x", tmp_path, output=out, expressions=table)
    assert not out.exists()
    table.write_text(HEAD + "a.png,red star\na.png,blue ring\n")
    module.predict(None, "x", tmp_path, output=out, expressions=table)
    assert len(list(out.iterdir())) == 4


def test_a_cut_expression_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(module, "open_checkpoint", lambda *_: trained)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    module.predict(None, "x", tmp_path / "a.png", "red star")
    assert "is cut" not in capsys.readouterr().err
    module.predict(None, "x", tmp_path / "a.png", "red star " * 40)
    assert f"is longer than {trained.data.max_tokens} tokens and is cut" in capsys.readouterr().err


def test_a_published_checkpoint_needs_parameters():
    with pytest.raises(WeightsError, match="--params FILE"):
        open_checkpoint("lavt.pth", None)
