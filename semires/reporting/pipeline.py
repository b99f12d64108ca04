"""The pipeline graph of `dvc.yaml` as inline SVG: one box per stage, arrows along the data."""

from __future__ import annotations

import html
import re
from itertools import product
from pathlib import Path
from typing import Any

from semires.config.validate import read_yaml

_BOX_W, _BOX_H, _GAP_X, _GAP_Y = 134, 60, 32, 14
_PER_LINE = 2  # keys of a stage on a line of small print
_KEYS = ("dataset", "fraction", "method", "source", "seed")

Parts = list[set[str]]  # a path's parts, each with all texts that its templates can give
_TEMPLATE = re.compile(r"\$\{([^}]*)\}")


def stages_of(path: Path = Path("dvc.yaml")) -> dict[str, dict[str, Any]]:
    """Dependencies, outputs and matrix keys of every stage that runs; empty without the file.

    Templates are filled from the `params.yaml` beside it; a stage over an empty list is left out.
    """
    if not path.is_file():
        return {}
    tree: dict[str, Any] = read_yaml(path)
    params: dict[str, Any] = {}
    for name in ("params.yaml", *tree.get("vars", [])):
        beside = path.parent / name
        params |= read_yaml(beside) if beside.is_file() else {}
    found = {}
    for name, stage in (tree.get("stages") or {}).items():
        choices = _choices(stage, params)
        if not all(choices.values()):
            continue
        body = stage.get("do", stage)
        paths = {key: body.get(key, []) for key in ("deps", "outs", "metrics", "plots")}
        parts = {key: [_parts(p, choices, params) for p in paths[key]] for key in paths}
        found[str(name)] = {
            "deps": parts["deps"],
            "outs": parts["outs"] + parts["metrics"] + parts["plots"],
            "matrix": [key for key in _KEYS if f"item.{key}" in choices],
        }
    return found


def _choices(stage: dict[str, Any], params: dict[str, Any]) -> dict[str, list[Any]]:
    """What `key` and `item.KEY` of a stage can be: all values of its matrix or mapping."""
    if "foreach" in stage:
        entries = _at(params, stage["foreach"])
        entries = {"*": {}} if entries == "*" else entries
        leaves = {leaf for entry in entries.values() for leaf in entry}
        items = {
            f"item.{leaf}": list(dict.fromkeys(e.get(leaf, "*") for e in entries.values()))
            for leaf in leaves
        }
        return {"key": list(entries), **items}
    return {f"item.{key}": _list(_at(params, v)) for key, v in stage.get("matrix", {}).items()}


def _at(params: dict[str, Any], value: Any) -> Any:
    """A value, or what its template names in params.yaml (`*` if nothing)."""
    if not isinstance(value, str) or not (found := _TEMPLATE.fullmatch(value)):
        return value
    node: Any = params
    for key in found[1].split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return "*" if node is None else node


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parts(entry: Any, choices: dict[str, list[Any]], params: dict[str, Any]) -> Parts:
    path = str(next(iter(entry)) if isinstance(entry, dict) else entry)
    names = _TEMPLATE.findall(path)
    lists = [choices.get(name) or _list(_at(params, f"${{{name}}}")) for name in names]
    fixed = _TEMPLATE.split(path)[::2]
    texts = (
        "".join(f"{text}{value}" for text, value in zip(fixed, (*chosen, ""), strict=True))
        for chosen in product(*lists)
    )
    return [set(part) for part in zip(*(t.rstrip("/").split("/") for t in texts), strict=False)]


def edges_of(stages: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs (from, to): an output of one lies on a path that the other depends on."""
    return [
        (source, target)
        for target, wants in stages.items()
        for source, gives in stages.items()
        if source != target
        and any(_overlap(dep, out) for dep in wants["deps"] for out in gives["outs"])
    ]


def _overlap(one: Parts, two: Parts) -> bool:
    return all(a & b or "*" in a | b for a, b in zip(one, two, strict=False))


def _direct(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the edges that a longer way implies."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)

    def reached(stage: str, seen: set[str]) -> set[str]:
        for other in after.get(stage, set()) - seen:
            seen.add(other)
            reached(other, seen)
        return seen

    return [
        (source, target)
        for source, target in edges
        if not any(target in reached(other, set()) for other in after[source] - {target})
    ]


def pipeline_svg(path: Path = Path("dvc.yaml")) -> str:
    """The graph as an `<svg>` element in the page's colours; empty text without a dvc.yaml."""
    stages = stages_of(path)
    if not stages:
        return ""
    edges = _direct(edges_of(stages))
    places = _places(list(stages), edges)
    width = max(x for x, _ in places.values()) + _BOX_W + 2
    height = max(y for _, y in places.values()) + _BOX_H + 2
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        'aria-label="Pipeline: stages and what they depend on" class="pipeline">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>',
    ]
    for source, target in edges:
        (x0, y0), (x1, y1) = places[source], places[target]
        x0, y0, y1 = x0 + _BOX_W, y0 + _BOX_H // 2, y1 + _BOX_H // 2
        middle = _GAP_X // 2 + 6
        parts.append(
            f'<path d="M{x0} {y0}C{x0 + middle} {y0} {x1 - middle} {y1} {x1 - 1} {y1}" '
            'class="edge" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in places.items():
        middle, keys = x + _BOX_W // 2, stages[name]["matrix"]
        lines = [keys[i : i + _PER_LINE] for i in range(0, len(keys), _PER_LINE)]
        parts.append(f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="6"/>')
        line_y = y + _BOX_H // 2 + 4 - 7 * len(lines)
        parts.append(f'<text x="{middle}" y="{line_y}">{html.escape(name)}</text>')
        for i, line in enumerate(lines, start=1):
            text = html.escape(" × ".join(line) + (" ×" if i < len(lines) else ""))
            parts.append(f'<text x="{middle}" y="{line_y + 14 * i}" class="small">{text}</text>')
    return "".join([*parts, "</svg>"])


def _places(names: list[str], edges: list[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """Columns by the longest path from a stage without inputs; a cycle stays in column 0."""
    rank = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in edges:
            rank[target] = max(rank[target], min(rank[source] + 1, len(names)))
    columns: dict[int, list[str]] = {}
    for name in names:
        columns.setdefault(rank[name], []).append(name)
    tallest = max(len(column) for column in columns.values())
    places = {}
    for position, key in enumerate(sorted(columns)):
        column = columns[key]
        top = (tallest - len(column)) * (_BOX_H + _GAP_Y) // 2
        for row, name in enumerate(column):
            x = 1 + position * (_BOX_W + _GAP_X)
            places[name] = (x, 1 + top + row * (_BOX_H + _GAP_Y))
    return places
