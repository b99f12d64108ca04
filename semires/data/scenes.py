"""RefScenes' pictures: scenes of coloured objects, sampled and rendered from a seed.

A scene is 3-5 objects on a textured background with clutter and noise. Things are single shapes;
figures (house, mushroom, person, boat) have two parts of different colours, so that proposals
over-segment them; some objects touch, so that proposals under-segment those. Later objects lie on
top of earlier ones. Coordinates are pixels, x to the right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

THINGS = ("circle", "square", "triangle", "star", "cross")
FIGURES = ("house", "mushroom", "person", "boat")
PART_NAMES = {"house": "roof", "mushroom": "stem", "person": "head", "boat": "sail"}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 45),
    "green": (50, 160, 65),
    "blue": (50, 85, 210),
    "yellow": (228, 208, 55),
    "purple": (140, 60, 175),
    "orange": (235, 132, 35),
}
# Colours of a figure's second part. They are no object colours: "red" never refers to a part.
PART_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 236),
    "black": (30, 30, 34),
    "brown": (112, 72, 42),
}
PAINTS = COLOURS | PART_COLOURS
SIZES = {"small": (11.5, 13.5), "large": (18.0, 22.0)}  # radius in pixels of a 96-pixel scene
COUNTS, COUNT_SHARES = (3, 4, 5), (0.7, 0.2, 0.1)  # objects a scene
SUPERSAMPLING = 4
MIN_VISIBLE = 0.6

Points = list[tuple[float, float]]
Plane = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, where (centre, radius in pixels), how it is drawn.

    ``part_colour`` is the colour of a figure's second part, None for things.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    part_colour: str | None
    texture: str

    @property
    def is_figure(self) -> bool:
        """Whether it has two parts (the kind that testA refers to)."""
        return self.shape in FIGURES


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order; ``seed`` draws background, shading and noise."""

    size_px: int
    objects: tuple[SceneObject, ...]
    seed: int


@dataclass(frozen=True)
class Rendering:
    """A rendered scene.

    image: uint8 (H,W,3); masks: bool (N,H,W), the visible pixels of each object;
    part_masks: bool (P,H,W), the visible pixels of each part of each figure.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    part_masks: NDArray[np.bool_]


def _circle(
    x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360
) -> Points:
    angles = np.radians(np.linspace(start, stop, 40))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _star() -> Points:
    radii = [1.0, 0.48] * 5
    return [
        (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)
    ]


_ARM = 0.36
# Outlines in a unit frame (y down). The colour of a figure is that of its first part.
OUTLINES: dict[str, tuple[Points, ...]] = {
    "circle": (_circle(0, 0, 0.9, 0.9),),
    "square": ([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],),
    "triangle": ([(0, -1), (0.98, 0.8), (-0.98, 0.8)],),
    "star": (_star(),),
    "cross": (
        [
            (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
            (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
        ],
    ),
"house": (
        [(-0.75, -0.1), (0.75, -0.1), (0.75, 0.95), (-0.75, 0.95)],
        [(-1, -0.1), (0, -1), (1, -0.1)],
    ),
    "mushroom": (
        _circle(0, 0.1, 1.0, 1.0, 180, 360),
        [(-0.34, 0.1), (0.34, 0.1), (0.34, 1), (-0.34, 1)],
    ),
    "person": (
        [(-0.42, -0.2), (0.42, -0.2), (0.75, 1), (-0.75, 1)],
        _circle(0, -0.58, 0.42, 0.42),
    ),
    "boat": (
        [(-1, 0.2), (1, 0.2), (0.6, 0.9), (-0.6, 0.9)],
        [(-0.12, -1), (0.75, 0.2), (-0.12, 0.2)],
    ),
}  # fmt: skip


def sample_scene(rng: np.random.Generator, size_px: int, figure_share: float = 0.4) -> Scene:
    """Draw the objects of one scene; every object stays at least 60 % visible.

    Objects often share shape or colour, so that attributes alone do not identify them.
    """
    while True:
        objects: list[SceneObject] = []
        for _ in range(int(rng.choice(COUNTS, p=COUNT_SHARES))):
            placed = _place(rng, objects, size_px, figure_share)
            if placed is not None:
                objects.append(placed)
        scene = Scene(size_px, tuple(objects), int(rng.integers(2**31)))
        if len(objects) >= 3 and _all_visible(scene):
            return scene


def _place(
    rng: np.random.Generator, earlier: list[SceneObject], size_px: int, figure_share: float
) -> SceneObject | None:
    shape, colour = _draw_kind(rng, earlier, figure_share)
    size = str(rng.choice(list(SIZES)))
    low, high = SIZES[size]
    radius = float(rng.uniform(low, high)) * size_px / 96
    for _ in range(30):
        x, y = rng.uniform(radius * 0.9, size_px - radius * 0.9, size=2)
        if earlier and rng.random() < 0.25:  # touching
            other = earlier[int(rng.integers(len(earlier)))]
            direction = rng.uniform(0, 2 * math.pi)
            reach = 0.88 * (radius + other.radius)
            x, y = other.x + reach * math.cos(direction), other.y + reach * math.sin(direction)
        inside = radius * 0.9 <= min(x, y) and max(x, y) <= size_px - radius * 0.9
        apart = all(math.hypot(x - o.x, y - o.y) >= 0.8 * (radius + o.radius) for o in earlier)
        if inside and apart:
            figure = shape in FIGURES
            return SceneObject(
                shape=shape,
                colour=colour,
                size=size,
                x=float(x),
                y=float(y),
                radius=radius,
                angle=float(rng.uniform(-8, 8) if figure else rng.uniform(-15, 15)),
                part_colour=str(rng.choice(list(PART_COLOURS))) if figure else None,
                texture=str(rng.choice(["plain", "plain", "stripes", "speckle"])),
            )
    return None


def _draw_kind(
    rng: np.random.Generator, earlier: list[SceneObject], figure_share: float
) -> tuple[str, str]:
    """Shape and colour; half of the time one of them repeats an earlier object's."""
    shape = str(rng.choice(FIGURES if rng.random() < figure_share else THINGS))
    colour = str(rng.choice(list(COLOURS)))
    if earlier:
        other = earlier[int(rng.integers(len(earlier)))]
        chance = rng.random()
        if chance < 0.3:
            shape = other.shape
        elif chance < 0.45:
            colour = other.colour
    return shape, colour


def _coverage(scene: Scene) -> list[list[Plane]]:
    """Anti-aliased coverage in 0..1 (H,W) of each part of each object, occlusion ignored."""
    side = scene.size_px * SUPERSAMPLING
    coverages: list[list[Plane]] = []
    for item in scene.objects:
        turn = math.radians(item.angle)
        cos, sin = math.cos(turn) * item.radius, math.sin(turn) * item.radius
        parts: list[Plane] = []
        for outline in OUTLINES[item.shape]:
            points = [
                ((item.x + px * cos - py * sin) * SUPERSAMPLING,
                 (item.y + px * sin + py * cos) * SUPERSAMPLING)
                for px, py in outline
            ]  # fmt: skip
            canvas = Image.new("L", (side, side), 0)
            ImageDraw.Draw(canvas).polygon(points, fill=255)
            parts.append(np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255)
        coverages.append(parts)
    return coverages


def _visible_masks(
    coverages: list[list[Plane]],
) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]], list[float]]:
    """Visible pixels of objects and of figures' parts, and each object's visible share."""
    hidden = np.zeros(coverages[0][0].shape, dtype=bool)
    objects, parts, shares = [], [], []
    for pieces in reversed(coverages):
        whole = np.maximum.reduce(pieces) >= 0.5
        visible = whole & ~hidden
        objects.append(visible)
        shares.append(float(visible.sum() / max(whole.sum(), 1)))
        if len(pieces) > 1:
            second = pieces[1] >= 0.5
            parts += [visible & second, visible & ~second]
        hidden |= whole
    return objects[::-1], parts, shares[::-1]


def _all_visible(scene: Scene) -> bool:
    return min(_visible_masks(_coverage(scene))[2]) >= MIN_VISIBLE


def render(scene: Scene) -> Rendering:
    """Paint a scene: background, clutter, objects in order, noise."""
    rng = np.random.default_rng(scene.seed)
    coverages = _coverage(scene)
    image = _background(rng, scene.size_px)
    for item, parts in zip(scene.objects, coverages, strict=True):
        names = [item.colour] if item.part_colour is None else [item.colour, item.part_colour]
        shade = _shading(rng, item, scene.size_px)
        for name, cover in zip(names, parts, strict=True):
            tint = np.array(PAINTS[name], dtype=np.float32) + rng.normal(0, 7, 3)
            alpha = cover[..., None]
            image = image * (1 - alpha) + alpha * tint * shade[..., None]
    image += rng.normal(0, 5, image.shape)
    objects, parts_visible, _ = _visible_masks(coverages)
    side = scene.size_px
    return Rendering(
        image=np.clip(image, 0, 255).astype(np.uint8),
        masks=np.stack(objects),
        part_masks=np.stack(parts_visible) if parts_visible else np.zeros((0, side, side), bool),
    )


def _smooth_field(rng: np.random.Generator, side: int, cells: int) -> Plane:
    """Smooth noise in about -1..1 (H,W)."""
    coarse = Image.fromarray(rng.normal(0, 0.6, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _background(rng: np.random.Generator, side: int) -> Plane:
    grey = rng.uniform(85, 175) + rng.normal(0, 8, 3)
    light = 14 * _smooth_field(rng, side, 3) + 7 * _smooth_field(rng, side, 12)
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    mask = Image.new("L", (side, side), 0)
    mask_draw = ImageDraw.Draw(mask)
    for _ in range(int(rng.integers(2, 6))):  # clutter: dull strokes and blobs
        x0, y0 = (int(v) for v in rng.uniform(0, side, 2))
        dull = tuple(int(v) for v in np.clip(grey + rng.normal(0, 30), 0, 255))
        if rng.random() < 0.6:
            x1, y1 = (int(v) for v in rng.uniform(0, side, 2))
            draw.line((x0, y0, x1, y1), fill=dull, width=2)
            mask_draw.line((x0, y0, x1, y1), fill=150, width=2)
        else:
            box = (x0, y0, x0 + int(rng.integers(3, 8)), y0 + int(rng.integers(3, 8)))
            draw.ellipse(box, fill=dull)
            mask_draw.ellipse(box, fill=200)
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255
    plain = np.broadcast_to(grey.astype(np.float32), (side, side, 3)) + light[..., None]
    return (plain * (1 - alpha) + np.asarray(canvas, dtype=np.float32) * alpha).astype(np.float32)


def _shading(rng: np.random.Generator, item: SceneObject, side: int) -> Plane:
    """Brightness factor (H,W): a slope across the object times its texture."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    slope = ((x - item.x) * math.cos(turn) + (y - item.y) * math.sin(turn)) / item.radius
    shade = 1 + 0.14 * np.clip(slope, -1, 1)
    if item.texture == "stripes":
        across = x * math.cos(turn + 1) + y * math.sin(turn + 1)
        shade = shade * (1 - 0.18 * (np.sin(across * 2 * math.pi / (side / 16)) > 0))
    elif item.texture == "speckle":
        shade = shade * (1 + 0.12 * rng.normal(0, 1, (side, side)))
    return np.asarray(shade, dtype=np.float32)
