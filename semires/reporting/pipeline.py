"""The pipeline graph of `dvc.yaml` as inline SVG: one box per stage, arrows along the data."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from semires.config import read_yaml

_BOX_W, _BOX_H, _GAP_X, _GAP_Y = 132, 44, 46, 18


def stages_of(path: Path = Path("dvc.yaml")) -> dict[str, dict[str, list[str]]]:
    """Dependencies and outputs of every stage, templates replaced by ``*``; empty without file."""
    if not path.is_file():
        return {}
    found = {}
    for name, stage in (read_yaml(path).get("stages") or {}).items():
        body = stage.get("do", stage)
        found[str(name)] = {
            "deps": [_pattern(p) for p in body.get("deps", [])],
            "outs": [
                _pattern(p) for key in ("outs", "metrics", "plots") for p in body.get(key, [])
            ],
            "matrix": [str(key) for key in stage.get("matrix", {})],
        }
    return found


def _pattern(entry: Any) -> str:
    path = next(iter(entry)) if isinstance(entry, dict) else str(entry)
    return re.sub(r"\$\{[^}]*\}", "*", str(path)).rstrip("/")


def edges_of(stages: dict[str, dict[str, list[str]]]) -> list[tuple[str, str]]:
    """Pairs (from, to): an output of one lies on a path that the other depends on."""
    return [
        (source, target)
        for target, wants in stages.items()
        for source, gives in stages.items()
        if source != target
        and any(_overlap(dep, out) for dep in wants["deps"] for out in gives["outs"])
    ]


def _overlap(one: str, two: str) -> bool:
    parts = zip(one.split("/"), two.split("/"), strict=False)
    return all(_same(a, b) for a, b in parts)


def _same(one: str, two: str) -> bool:
    as_regex = [re.escape(p).replace(r"\*", ".*") for p in (one, two)]
    return bool(re.fullmatch(as_regex[0], two) or re.fullmatch(as_regex[1], one))


def pipeline_svg(path: Path = Path("dvc.yaml")) -> str:
    """The graph as an `<svg>` element in the page's colours; empty text without a dvc.yaml."""
    stages = stages_of(path)
    if not stages:
        return ""
    edges = edges_of(stages)
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
        middle = x + _BOX_W // 2
        small = " × ".join(stages[name]["matrix"])
        parts.append(f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="6"/>')
        offset = 19 if small else 27
        parts.append(f'<text x="{middle}" y="{y + offset}">{html.escape(name)}</text>')
        if small:
            text = html.escape(small)
            parts.append(f'<text x="{middle}" y="{y + 35}" class="small">{text}</text>')
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
