"""dvc.lock is of this tree: parameters, weights and scene code are those that made the results."""

import hashlib
import subprocess
from typing import Any

import pytest
from helpers import ROOT

from semires.config.grid import stages
from semires.config.load import load_params
from semires.config.validate import read_yaml

LOCKED: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.lock")["stages"]
PIPELINE: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]
listed = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
)
if listed.returncode:
    pytest.skip("not a clone", allow_module_level=True)
TRACKED = set(listed.stdout.split("\0"))
RULE = "the results are of another state: run `make repro`, then commit dvc.lock and reports/"


def at(tree: Any, path: str) -> Any:
    """The value of a dotted key, as DVC names parameters; a key may itself have dots."""
    if not path:
        return tree
    for key in sorted(tree, key=len, reverse=True):
        if path == key or path.startswith(f"{key}."):
            return at(tree[key], path[len(key) + 1 :])
    return None


def stages_of_the_study() -> list[str]:
    """All stages by name; dvc.lock may also hold stages of earlier studies."""
    params = load_params(ROOT / "params.yaml")
    grid = stages(params)
    names = [f"{kind}@{name}" for kind, items in grid.items() for name in items]
    return [*names, *(name for name in PIPELINE if name not in grid)]


@pytest.mark.parametrize("name", stages_of_the_study())
def test_the_locked_parameters_and_files_are_those_of_the_tree(name: str):
    """Of files, those in Git: weights, vocabulary, scene code; stages make the others."""
    assert name in LOCKED, f"{name}: {RULE}"
    kind, locked = PIPELINE[name.partition("@")[0]], LOCKED[name]
    stage = kind.get("do", kind)
    compared = 0
    for file, values in locked.get("params", {}).items():
        tree = read_yaml(ROOT / file)
        for key, value in values.items():
            assert at(tree, key) == value, f"{name}: {key}: {RULE}"
            compared += 1
    wanted = stage.get("params", [])
    files = [entry.values() for entry in wanted if isinstance(entry, dict)]  # file: [keys]
    nested = sum(len(keys) for each in files for keys in each)
    assert compared == nested + len(wanted) - len(files), name
    paths = [dep["path"] for dep in locked.get("deps", ())]
    assert len(paths) == len(set(stage.get("deps", ()))), name
    for dep in locked.get("deps", ()):
        if dep["path"] in TRACKED:
            found = hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest()
            assert found == dep["md5"], f"{name}: {dep['path']}: {RULE}"


def test_weights_and_scene_code_are_locked():
    locked = {dep["path"] for stage in LOCKED.values() for dep in stage.get("deps", ())}
    code = {f"semires/data/{name}.py" for name in ("scenes", "expressions", "refscenes")}
    weights = {f"semires/weights/{name}.safetensors" for name in ("tiny_sam", "swin_tiny")}
    assert code | weights <= locked & TRACKED
