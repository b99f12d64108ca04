"""The first steps of the pretrainings of the shipped weights, and the JSON beside the weights."""

import importlib
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT

from semires.config.load import load_params
from semires.files import read_json, sha256_tree
from semires.models.weights import read_safetensors

SCRIPTS = ROOT / "experiments/pretrain"
WEIGHTS = ROOT / "semires/weights"
ADD = "python experiments/pretrain/first_steps.py --add"


@pytest.fixture
def parse(monkeypatch):
    """Options of a script's command line, by the name of the script."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return lambda name, *words: importlib.import_module(name).parser().parse_args(words)


def test_first_steps_are_the_golden_ones_of_this_numerics_class():
    """Fails if a change of the scenes, the models or the scripts changes bits."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "first_steps.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    name, _, losses = done.stdout.partition("\n")
    golden = ROOT / "tests/golden/pretrain" / f"{name}.txt"
    if not golden.is_file():
        pytest.skip(f"no golden losses of {name}; `{ADD}` adds them")
    assert losses == golden.read_text()


@pytest.mark.parametrize(
    ("weights", "script", "written"),
    [
        ("swin_tiny", "swin", "swin_tiny.safetensors"),
        ("tiny_sam", "tiny_sam", "tiny_sam.safetensors"),
        ("tiny_mask2former", "tiny_mask2former", "tiny_mask2former"),
    ],
)
def test_json_describes_the_shipped_file(parse, weights, script, written):
    how = read_json(WEIGHTS / f"{weights}.json")
    command = shlex.split(how["command"])
    assert command[:2] == ["python", f"experiments/pretrain/{script}.py"]
    options, default = parse(script, *command[2:]), parse(script)
    for name in ("steps", "images", "batch", "lr", "scenes", "points"):
        assert getattr(options, name, None) == getattr(default, name, None)
    assert default.steps == how["steps"]
    assert default.output == (WEIGHTS / written).relative_to(ROOT)
    digest = how["sha256_tree"] if (WEIGHTS / written).is_dir() else how["sha256"]
    assert digest == sha256_tree(WEIGHTS / written)


def test_the_weights_are_those_of_the_json():
    sam = read_safetensors(WEIGHTS / "tiny_sam.safetensors")
    constant = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    count = sum(value.numel() for name, value in sam.items() if name != constant)
    assert count == read_json(WEIGHTS / "tiny_sam.json")["n_parameters"]
    how = read_json(WEIGHTS / "swin_tiny.json")
    settings = load_params(ROOT / "params.yaml").model.swin.model_dump()
    assert how["config"] == {**settings, "drop_path_rate": 0.0}
