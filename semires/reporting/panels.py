"""Qualitative panels: one row per sample, from a run's `panels.npz` (paper Figures 3, 4 and 8).

Masks are tinted over the greyed image in Okabe-Ito colours. The ground truth's outline is drawn
over all of them, so that errors are visible without distinguishing colours.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from semires.reporting.formats import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATOMS_HEIGHT = 256  # pixels that a picture of atoms has at least


def panel_figure(panels: dict[str, Any], title: str, max_rows: int = 12) -> Figure:
    """Rows of samples: image with expression, truth, proposals, pseudo-label twice, prediction.

    Args:
        panels: the arrays of a run's panels.npz.
        title: which run they are of.
        max_rows: how many samples are drawn.
    """
    from matplotlib.figure import Figure

    masks = [
        ("ground truth", "truth", "#009E73"),
        ("proposals", "atoms", ""),
        ("pseudo-label", "pseudo", "#E69F00"),
        ("refined", "refined", "#0072B2"),
        ("prediction", "prediction", "#CC79A7"),
    ]
    count = min(len(panels["image"]), max_rows)
    columns, width, gap, head, foot = 1 + len(masks), 7.2, 0.05, 0.22, 0.5  # inches
    side = (width - gap * (columns + 1)) / columns
    ratio = panels["image"].shape[1] / panels["image"].shape[2]
    row_height = side * ratio + head
    height = row_height * count + foot
    figure = Figure(figsize=(width, height))
    titles = ["image", *(name for name, _, _ in masks)]
    figure.text(gap / width, 1 - 0.08 / height, title, va="top", weight="bold")
    for row in range(count):
        top = height - foot - row * row_height
        head_at = (gap / width, (top - 0.04) / height)
        figure.text(*head_at, _head(panels, row), fontsize=8, va="top", parse_math=False)
        for column in range(columns):
            left, bottom = gap + column * (side + gap), top - row_height
            box = (left / width, bottom / height, side / width, side * ratio / height)
            axis = figure.add_axes(box)
            axis.set_axis_off()
            _draw_panel(axis, panels, row, *(masks[column - 1][1:] if column else ("image", "")))
            if row == 0:
                x = (left + side / 2) / width
                figure.text(x, 1 - 0.28 / height, titles[column], ha="center", va="top")
    return figure


def _head(panels: dict[str, Any], row: int) -> str:
    matched = "matched" if panels["matched"][row] else "not matched"
    text = f"{panels['rule'][row]} ({matched}): “{panels['expression'][row]}”"
    return textwrap.shorten(one_line(text), 110, placeholder=" …")


def _draw_panel(axis: Axes, panels: dict[str, Any], row: int, key: str, colour: str) -> None:
    image = panels["image"][row]
    if key == "image":
        shown = image
    elif key == "atoms":
        shown = _atom_colours(image, panels["atoms"][row])
    else:
        shown = _overlay(image, panels[key][row], colour)
    axis.imshow(shown, interpolation="nearest")
    if colour:
        _outline(axis, panels["truth"][row])


def _overlay(image: Any, mask: Any, colour: str) -> Any:
    from matplotlib.colors import to_rgb

    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 70
    tint = np.array(to_rgb(colour)) * 255
    mixed = np.where(mask[..., None], 0.35 * grey + 0.65 * tint, grey)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _atom_colours(image: Any, atoms: Any) -> Any:
    """Every atom in its own colour, the largest one (the background) grey, thin white edges.

    Enlarged first, so that edges do not cover atoms of a few pixels.
    """
    import colorsys

    times = max(1, ATOMS_HEIGHT // len(image))
    image, atoms = (array.repeat(times, 0).repeat(times, 1) for array in (image, atoms))
    palette = np.array(
        [
            colorsys.hsv_to_rgb((i * 0.61803) % 1, 0.55 + 0.25 * (i % 2), 0.6 + 0.3 * (i % 3) / 2)
            for i in range(int(atoms.max()) + 1)
        ]
    )
    mixed = 0.35 * image + 0.65 * 255 * palette[atoms]
    background = atoms == np.bincount(atoms.ravel()).argmax()
    mixed[background] = (image.mean(axis=2) * 0.6 + 70)[background][:, None]
    edge = np.zeros(atoms.shape, bool)
    edge[:, 1:] |= atoms[:, 1:] != atoms[:, :-1]
    edge[1:] |= atoms[1:] != atoms[:-1]
    mixed[edge] = 255
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _outline(axis: Axes, truth: Any) -> None:
    if truth.any() and not truth.all():
        axis.contour(truth, levels=[0.5], colors=["white"], linewidths=[1.6])
        axis.contour(truth, levels=[0.5], colors=["black"], linewidths=[0.7])
