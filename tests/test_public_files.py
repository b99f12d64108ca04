"""Citation, cards, hooks, links, wheel and set-up agree with the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.refer_fixture import write_refer
from ruamel.yaml import YAML

from semires.data.refer import read_refer

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CROISSANT = ROOT / "docs" / "cards" / "refscenes.croissant.json"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def test_citation_and_licence_match_the_package():
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_croissant_fields_are_the_columns_that_prepare_writes(tmp_path):
    write_refer(tmp_path, images=20, objects=30, expressions=60)
    tables = dict(zip(("images", "refs"), read_refer(tmp_path, "refcoco", "unc"), strict=True))
    metadata = json.loads(CROISSANT.read_text())
    assert {record_set["name"] for record_set in metadata["recordSet"]} == set(tables)
    for record_set in metadata["recordSet"]:
        columns = [field["source"]["extract"]["column"] for field in record_set["field"]]
        assert columns == list(tables[record_set["name"]].columns)


def test_croissant_identifiers_refer_to_each_other():
    metadata = json.loads(CROISSANT.read_text())
    fields = [field for records in metadata["recordSet"] for field in records["field"]]
    nodes = [*metadata["distribution"], *metadata["recordSet"], *fields]
    known = {node["@id"] for node in nodes}
    assert len(known) == len(nodes)
    named = {field["source"]["fileSet"]["@id"] for field in fields}
    named |= {records["key"]["@id"] for records in metadata["recordSet"]}
    named |= {f["references"]["field"]["@id"] for f in fields if "references" in f}
    assert named <= known


def test_pre_commit_runs_the_lint_of_make_test():
    recipe = (ROOT / "Makefile").read_text().split("\ntest:")[1].split("\n\n")[0].splitlines()[1:]
    wanted = {line.strip() for line in recipe if not line.strip().startswith("pytest")}
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert {hook["entry"].removeprefix(".venv/bin/") for hook in hooks} == wanted


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_between_documents_lead_somewhere(page):
    targets = [link.split("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    for target in targets:
        if target and "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_wheel_holds_weights_and_types_and_no_tests(tmp_path):
    for name in ("semires", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", "wheel", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for path in (ROOT / "semires/weights").rglob("*") if path.is_file()]
    weights = {path.relative_to(ROOT).as_posix() for path in files}
    assert weights | {"semires/py.typed", "semires/cli.py"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"semires"}


@pytest.mark.parametrize("lock", ["requirements.lock", "tools/uv.lock"])
def test_lock_files_hold_names_versions_and_hashes_alone(lock):
    text = (ROOT / lock).read_text()
    for entry in re.split(r"\n(?! )", text.strip()):
        name, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [\w .'<>=!()]+)?", name), name
        assert hashes
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line) for line in hashes), name


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 127", "does not run"),
        ("[ $1 = -V ] && echo Python 3.10.9 || exit 1", "needs Python 3.11 or newer, 'PYTHON' is"),
    ],
    ids=["broken", "too old"],
)
def test_set_up_with_an_unusable_python_is_one_line(tmp_path, script, says):
    python = tmp_path / "py thon"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    command = [ROOT / "tools" / "setup.sh", python]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert says.replace("PYTHON", str(python)) in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_two_set_ups_do_not_disturb_each_other(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".unfinished").write_text(f"{os.getpid()}\n")
    (tmp_path / ".venv" / "installed").touch()
    command = [ROOT / "tools" / "setup.sh", sys.executable]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "another set-up is running" in result.stderr
    assert (tmp_path / ".venv" / "installed").exists()


def test_set_up_starts_again_after_an_interruption(tmp_path):
    """The set-up ends at its second step, since there is no lock file here."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in (".unfinished", "leftover"):
        (tmp_path / ".venv" / name).touch()
    command = [ROOT / "tools" / "setup.sh", sys.executable]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "was interrupted" in result.stdout
    assert not (tmp_path / ".venv" / "leftover").exists()
    # an error is no interruption: the environment is kept
    kept = tmp_path / ".venv" / "kept"
    kept.touch()
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "was interrupted" not in result.stdout
    assert kept.exists()
