"""Imports run one way, with no circle: a room imports from those before it in the story."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parent.parent / "semires"
# Every room and every module of the top level, in order; imports for annotations count as well.
STORY = [
    *("errors", "files", "numerics", "process", "progress", "refine", "runs", "config", "dist"),
    *("data", "models", "proposals", "samples", "evaluation", "mlflow_store", "tracking"),
    *("training", "tuning", "reporting", "rehearsal", "doctor", "options", "cli", "__main__"),
]


def imported(path: Path) -> set[str]:
    """The rooms of this project that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "semires":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semires."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("semires.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_rooms_import_from_earlier_ones():
    modules = [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]
    assert len(modules) > 60
    assert {room(p) for p in modules} == set(STORY)
    for path in modules:
        later = {name for name in imported(path) if STORY.index(name) > STORY.index(room(path))}
        assert not later, f"{path.relative_to(ROOT)} imports from {later}"


def test_modules_of_a_room_import_without_a_circle():
    """Late imports and those for annotations count as well; a package's own file does not."""
    modules = {
        ".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p
        for p in ROOT.rglob("*.py")
        if p.name != "__init__.py"
    }
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
                graph[name] |= targets & set(modules)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
