"""Referring expressions of RefCOCO's kinds for RefScenes, each naming exactly one object.

Four kinds: attributes ("small red star"), absolute location ("top blue house"), ordinal ("second
circle from the left"), relation ("star left of the yellow boat"). Whether an expression holds is
decided on centres and attributes of the scene's description, with a margin in pixels, so that a
strict comparison of centres (what a reader does) never finds another object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semires.data.scenes import PART_NAMES, Scene, SceneObject

MARGIN = 0.15  # of the scene's side: closer centres are not compared
KIND_WEIGHTS = {"attribute": 0.7, "location": 0.2, "relation": 0.06, "ordinal": 0.04}
ORDINALS = ("first", "second", "third", "fourth")

# Where "left" puts an object first: the key sorts ascending.
DIRECTIONS: dict[str, Callable[[SceneObject], float]] = {
    "left": lambda o: o.x,
    "right": lambda o: -o.x,
    "top": lambda o: o.y,
    "bottom": lambda o: -o.y,
}
SUPERLATIVES = {
    "left": ("left {}", "{} on the left"),
    "right": ("right {}", "{} on the right"),
    "top": ("top {}", "{} at the top"),
    "bottom": ("bottom {}", "{} at the bottom"),
}
RELATIONS = {
    "left": "{} left of the {}",
    "right": "{} right of the {}",
    "top": "{} above the {}",
    "bottom": "{} below the {}",
}


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: words and the attributes an object must have to match (None: any)."""

    text: str
    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    part_colour: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Whether ``item`` has every attribute named."""
        return all(
            wanted is None or wanted == getattr(item, name)
            for name, wanted in (
                ("shape", self.shape),
                ("colour", self.colour),
                ("size", self.size),
                ("part_colour", self.part_colour),
            )
        )


def _phrases(item: SceneObject) -> list[Phrase]:
    """Noun phrases true of an object, shortest first."""
    shape, colour, size = item.shape, item.colour, item.size
    phrases = [
        Phrase("object"),
        Phrase(shape, shape=shape),
        Phrase(f"{colour} object", colour=colour),
        Phrase(f"{colour} {shape}", shape=shape, colour=colour),
        Phrase(f"{size} {shape}", shape=shape, size=size),
        Phrase(f"{size} {colour} object", colour=colour, size=size),
        Phrase(f"{size} {colour} {shape}", shape=shape, colour=colour, size=size),
    ]
    if item.part_colour is not None:
        part = f"with the {item.part_colour} {PART_NAMES[shape]}"
        phrases += [
            Phrase(f"{shape} {part}", shape=shape, part_colour=item.part_colour),
            Phrase(
                f"{colour} {shape} {part}",
                shape=shape,
                colour=colour,
                part_colour=item.part_colour,
            ),
        ]
    return phrases


def expressions(scene: Scene, index: int) -> dict[str, list[str]]:
    """All expressions of each kind that name ``scene.objects[index]`` and nothing else."""
    item = scene.objects[index]
    margin = MARGIN * scene.size_px
    found: dict[str, list[str]] = {kind: [] for kind in KIND_WEIGHTS}
    for phrase in _phrases(item):
        group = [o for o in scene.objects if phrase.matches(o)]
        if len(group) == 1:
            if phrase.shape or phrase.colour:
                found["attribute"].append(phrase.text)
            continue
        found["location"] += _locations(phrase, item, group, margin)
        found["ordinal"] += _ordinals(phrase, item, group, margin)
    found["relation"] = _relations(scene, item, margin)
    return found


def _locations(
    phrase: Phrase, item: SceneObject, group: list[SceneObject], margin: float
) -> list[str]:
    texts = []
    for direction, key in DIRECTIONS.items():
        if all(key(item) + margin <= key(other) for other in group if other is not item):
            texts += [pattern.format(phrase.text) for pattern in SUPERLATIVES[direction]]
    return texts


def _ordinals(
    phrase: Phrase, item: SceneObject, group: list[SceneObject], margin: float
) -> list[str]:
    if len(group) < 3 or phrase.part_colour:
        return []
    texts = []
    for direction in ("left", "right"):
        key = DIRECTIONS[direction]
        ranked = sorted(group, key=key)
        gaps = [key(b) - key(a) for a, b in itertools.pairwise(ranked)]
        rank = ranked.index(item)
        if min(gaps) >= margin and rank < len(ORDINALS):
            texts.append(f"{ORDINALS[rank]} {phrase.text} from the {direction}")
    return texts


def _relations(scene: Scene, item: SceneObject, margin: float) -> list[str]:
    texts = []
    for anchor in scene.objects:
        if anchor is item:
            continue
        unique = [
            p
            for p in _phrases(anchor)
            if p.shape
            and not p.part_colour
            and [o for o in scene.objects if p.matches(o)] == [anchor]
        ]
        if not unique:
            continue
        for direction, key in DIRECTIONS.items():
            if key(item) + margin > key(anchor):
                continue
            for phrase in _phrases(item)[1:4]:
                rivals = [o for o in scene.objects if phrase.matches(o) and o not in (item, anchor)]
                if all(key(o) >= key(anchor) for o in rivals):
                    texts.append(RELATIONS[direction].format(phrase.text, unique[0].text))
    return texts


def draw_expressions(
    rng: np.random.Generator, scene: Scene, index: int, count: int = 3
) -> list[str]:
    """Up to ``count`` different expressions of an object, their kinds drawn by KIND_WEIGHTS.

    Empty where nothing names the object alone.
    """
    pool = {kind: texts for kind, texts in expressions(scene, index).items() if texts}
    drawn: list[str] = []
    while pool and len(drawn) < count:
        kinds = list(pool)
        weights = np.array([KIND_WEIGHTS[k] for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        texts = pool[kind]
        drawn.append(texts.pop(int(rng.integers(len(texts)))))
        if not texts:
            del pool[kind]
    return drawn
