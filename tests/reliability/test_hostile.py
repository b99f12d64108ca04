"""Input from strangers: pickles, pictures, YAML, paths and expressions made to harm."""

from __future__ import annotations

import ast
import csv
import io
import json
import pickle
import pickletools
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.refer_fixture import write_refer
from helpers.small_study import small_params
from PIL import Image

from semires.config.load import load_params
from semires.data import pictures
from semires.data.refer import read_refer
from semires.data.unpickle import read_plain_pickle
from semires.errors import ConfigError, DataError, WeightsError
from semires.models.weights import read_checkpoint

PICKLES = 1500


def one_line(error: Exception, named: str = "") -> None:
    assert named in str(error)
    assert "\n" not in str(error)


def generated_pickle(rng: random.Random, target: str) -> bytes:
    """Opcodes in any order, with arguments that often make sense, and calls of os.system."""
    parts = [b"\x80" + bytes([rng.randint(0, 5)])]
    call = f"cos\nsystem\n(S'touch {target}'\ntR".encode()
    for _ in range(rng.randint(1, 25)):
        code = rng.choice(pickletools.opcodes)
        parts.append(code.code.encode("latin-1"))
        kind = code.arg.n if code.arg is not None else 0
        if kind > 0:
            parts.append(rng.randbytes(kind))
        elif code.arg is not None and "nl" in code.arg.name:
            parts.append(rng.choice([b"1\n", b"os\n", b"'x'\n", b"builtins\neval\n"]))
        elif code.arg is not None:  # a length in front
            size = rng.choice([0, 1, 3, 2**31 - 1, 2**63 - 1])
            width = {"1": 1, "4": 4, "8": 8}.get(code.arg.name[-1], 1)
            parts.append(
                (size % 256**width).to_bytes(width, "little") + rng.randbytes(min(size, 3))
            )
        if rng.random() < 0.15:
            parts.append(call)
    return b"".join(parts) + b"."


def test_no_generated_pickle_runs_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rng, refused = random.Random(3), 0
    for _ in range(PICKLES):
        (tmp_path / "x.p").write_bytes(generated_pickle(rng, "owned"))
        try:
            read_plain_pickle(tmp_path / "x.p")
        except DataError as error:
            refused += 1
            one_line(error)
    assert refused > PICKLES / 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.p"]


def test_no_generated_checkpoint_runs_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same pickles where torch looks for one: bare, and in its archive."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.zeros(3)}}, "good.pth")
    with zipfile.ZipFile("good.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    rng = random.Random(4)
    for number in range(400):
        bad = generated_pickle(rng, "owned")
        if number % 2:
            Path("x.pth").write_bytes(bad)
        else:
            with zipfile.ZipFile("x.pth", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, bad if name.endswith("data.pkl") else data)
        try:
            read_checkpoint("x.pth")
        except WeightsError as error:
            one_line(error, "x.pth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.pth", "x.pth"]


def calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            found.append((ast.unparse(node.func), words))
    return found


def test_the_source_reads_nothing_unsafely():
    """Of every call in the package: YAML by the safe loader, tensors by weights_only, no pickle."""
    seen = 0
    for path in sorted((ROOT / "semires").rglob("*.py")):
        for name, words in calls(ast.parse(path.read_text())):
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"), path
            assert not name.startswith(("yaml.load", "yaml.unsafe")), path
            if name == "YAML":  # ruamel's default, "rt", makes no objects either
                assert words.get("typ") in (None, "'safe'"), path
            if name == "torch.load":
                assert words["weights_only"] == "True", path
            if name in ("np.load", "numpy.load"):
                assert words["allow_pickle"] == "False", path
            if name.endswith("Image.open"):
                assert path.name == "pictures.py", path
            assert words.get("shell") is None, path
            seen += name in ("YAML", "torch.load", "np.load", "Image.open")
    assert seen >= 7


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(side: int) -> bytes:
    """A black square of `side` pixels in some kilobytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(min(side, 60_000) + 1)
    rows = b"".join(packer.compress(row) for _ in range(min(side, 2000))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    good = io.BytesIO()
    Image.new("RGB", (9, 9)).save(good, "PNG")
    data = good.getvalue()
    packed = zlib.compress(bytes(2**28), 9)
    return data[:33] + chunk(b"zTXt", b"x\0\0" + packed) + data[33:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "wide.png": lambda: bomb_png(60_000),
    "huge.png": lambda: bomb_png(2**31 - 1),
    "text.png": text_bomb,
    "huge.bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHIIIIII", 70, 0, 0, 54, 40, 60_000, 60_000, 1,
                                             24, 0, 0, 0, 0, 0, 0),
    "huge.gif": lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
    "huge.ppm": lambda: b"P6 99999 99999 255\n",
    "runs.eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file\n",
    "loop.tif": lambda: b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_image_bombs_are_refused_in_little_memory(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(BOMBS[name]())
    code = (
        "import resource, sys\n"
        "from semires.data.pictures import read_picture\n"
        "from semires.errors import DataError\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: print(read_picture(sys.argv[1]).shape)\n"
        "except DataError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    said, grown_mb = done.stdout.splitlines()
    assert name in said
    assert int(grown_mb) < 400
    assert done.stderr == ""


def test_a_picture_larger_than_its_reader_takes(tmp_path: Path):
    Image.new("RGB", (50, 40)).save(tmp_path / "x.png")
    assert pictures.read_picture(tmp_path / "x.png", 2000).shape == (40, 50, 3)
    with pytest.raises(DataError, match=r"x\.png: 50x40 pixels are more than 1,999"):
        pictures.read_picture(tmp_path / "x.png", 1999)


YAML_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    "text",
    [
        YAML_BOMB,
        YAML_BOMB + "study: *a29\n",
        "a: &a [*a]\n",
        "study: !!python/object/apply:os.system [touch owned]\n",
        "study: !!python/name:os.system\n",
        "? [a, [b]]\n: 1\n",
        "[" * 5000,
        "a: " * 3000,
        "%YAML 9.9\n---\na: 1\n",
        "\ufeffa: \x07",
        "<<: [1, 2]\n",
    ],
)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"params\.yaml: ") as caught:
        load_params("params.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert not Path("owned").exists()


def test_a_bomb_in_overrides_is_refused(tmp_path: Path):
    text = (ROOT / "experiments/demo.yaml").read_text()
    method = "\nrefine:\n  bad: {strategy: none, pwa: false, overrides: {mutual.ema: *a29}}"
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"\nrefine:.*", method, text, count=1) + "\n")
    path.write_text(
        f"x:\n  {YAML_BOMB.rstrip().replace(chr(10), chr(10) + '  ')}\n{path.read_text()}"
    )
    with pytest.raises(ConfigError, match=r"overrides"):
        load_params(path)


PATHS = [
    "../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "x\0.jpg", "", ".", "..",
    "~/x.jpg", "file:///etc/passwd", "http://127.0.0.1/x.jpg", "a" * 5000, "/dev/zero", "./../x",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_file_names_stay_in_the_data_folder(tmp_path: Path, name: str):
    """Refused by the reader, or a name below the folder, where there is no such file."""
    write_refer(tmp_path, 3, 3, 3)
    path = tmp_path / "refcoco/instances.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "x.jpg").write_bytes(b"outside")
    try:
        images, _ = read_refer(tmp_path, "refcoco", "unc")
    except DataError as error:
        one_line(error)
        return
    place = folder / images["file_name"].iloc[0]
    assert folder in [place, *place.parents]
    assert ".." not in place.parts
    with pytest.raises(DataError):
        pictures.read_picture(place)


EXPRESSIONS = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}{% raw %}",
    "=cmd|' /C calc'!A0", "@SUM(1+1)*cmd", "+1", "-2+3", "\t=1+1", "\r=1+1",
    "\\input{/etc/passwd}", "$\\frac{1}{$", "$x$ and $\\undefined$", "100 % & # _ ^ ~ {",
    "../../../etc/passwd", "a/b\\c:d", "CON", "long " * 2000, "x" * 10_000,
    "\u202eright to left\u202c", "\u0627\u0644\u0643\u0644\u0628 \u05db\u05dc\u05d1",
    "\U0001f436 \U0001f469\u200d\U0001f680 dog", "e\u0301\u0327 \ufeff zero\u200bwidth",
    "line\nbreak\n\nand\x0bmore\x00null", "'; DROP TABLE runs; --", "%s %n {0} ${HOME} `id`",
    "|a|b|", "**bold** [x](javascript:alert(1))", " ",
]  # fmt: skip


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def hostile_study(params: Any) -> None:
    """The study's references renamed: every expression above, in place of those that there were."""
    from semires.data.prepare import prepare

    path = Path("data/raw/refscenes/refs(unc).p")
    refs = pickle.loads(path.read_bytes())
    texts = [text for text in EXPRESSIONS if text.strip()]
    for number, ref in enumerate(refs):
        for index, sentence in enumerate(ref["sentences"]):
            text = texts[(number + index) % len(texts)]
            sentence.update(sent=text, raw=text, tokens=text.split())
    path.write_bytes(pickle.dumps(refs, protocol=2))
    prepare(params, "refscenes")


@pytest.mark.tracked
def test_expressions_are_data_everywhere(
    small_study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from semires import tracking
    from semires.evaluation.predict import predict
    from semires.reporting.report import report
    from semires.runs.key import RunKey
    from semires.training.mutual import mutual

    monkeypatch.setenv("SEMIRES_TRACKING", "off")
    params = small_params()
    hostile_study(params)
    before = {p for p in small_study.rglob("*") if ".work" not in p.parts}
    cell = RunKey("refscenes", 25, "cpi-u", 0)
    mutual(params, cell)
    shutil.copytree(ROOT / "experiments/tables", "experiments/tables")
    report(params)
    page = Path("reports/index.html").read_text()
    found = Page()
    found.feed(page)
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [v for n, v in found.attributes if n == "href" and "javascript" in str(v)]
    for path in Path("reports").glob("*.csv"):
        with open(path, newline="") as file:
            for row in csv.reader(file):
                assert not [c for c in row if c[:1] in "=@\t\r" and c], path
    for path in Path("reports").glob("*.tex"):
        assert "\\input" not in path.read_text()
    for text in EXPRESSIONS[:3]:
        assert text not in page

    picture = next(Path("data/raw/images/refscenes").glob("*.jpg")).absolute()
    table = small_study / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "expression"])
        shown = [text for text in EXPRESSIONS if "\0" not in text and text.strip()]
        writer.writerows([picture.name, text] for text in shown)
    predict(params, cell.folder, picture.parent, output="out", expressions=table)
    assert "confidence" in capsys.readouterr().out
    after = {p for p in small_study.rglob("*") if ".work" not in p.parts} - before
    places = {p.relative_to(small_study).parts[0] for p in after}
    assert places <= {"runs", "reports", "experiments", "out", "table.csv"}
    assert all(re.fullmatch(r"[\w.+-]+", p.name) for p in after), "a name made of an expression"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("params.yaml").touch()
    assert "3 records, 3 of them new" in tracking.sync()


def test_what_no_text_can_be_is_refused(tmp_path: Path):
    """Half a surrogate pair (which no file can hold), numbers, nothing, only blanks."""
    write_refer(tmp_path, 3, 3, 3)
    path = tmp_path / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for bad in ("\ud800", "x\udfff", 3, None, [], "", "  ", b"\xff\xfe"):
        refs[0]["sentences"][0].update(sent=bad, raw=bad)
        path.write_bytes(pickle.dumps(refs, protocol=2))
        try:
            _, table = read_refer(tmp_path, "refcoco", "unc")
        except DataError as error:
            one_line(error)
        else:
            assert isinstance(bad, bytes)  # Python 2's strings are read as latin-1
            assert table["sentences"].iloc[0][0] == "\xff\xfe"


def test_a_terminal_that_knows_ascii_only(small_study: Path):
    done = subprocess.run(
        [sys.executable, "-m", "semires", "--params", "\U0001f436.yaml", "summary"],
        capture_output=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"semires: \\U0001f436.yaml: no such file; run this in a " \
        b"clone of the repository, or give --params FILE\n"  # fmt: skip
