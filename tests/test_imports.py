"""Imports run one way: a package imports from those before it in the story."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
STORY = [
    *("data", "proposals", "models", "refine", "evaluation", "tracking", "training", "tuning"),
    *("reporting", "cli"),
]


def imported(path: Path) -> set[str]:
    """What a module imports of this project, but for annotations alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "semires":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semires."):
            found.add(str(node.module).split(".")[1])
    return found


def test_packages_import_from_earlier_ones():
    seen = 0
    for place, package in enumerate(STORY):
        for path in (ROOT / "semires" / package).rglob("*.py"):
            later = imported(path) & set(STORY[place + 1 :])
            assert not later, f"{path} imports from {later}"
            seen += 1
    assert seen > 40


def test_modules_beside_them_import_from_no_package():
    for path in (ROOT / "semires").glob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert not imported(path) & set(STORY), path
