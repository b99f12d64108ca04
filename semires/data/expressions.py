"""Referring expressions for RefScenes, RefScenes+ and RefScenes-g, each naming exactly one object.

Four kinds: attributes ("small red star"), absolute location ("top blue house"), ordinal ("second
circle from the left"), relation ("star left of the yellow boat"). A style says which kinds a data
set has and how long its sentences are. An expression is true or false by the centres and the
attributes of the scene's description. Centres that are closer than a margin are not compared, so
that a reader who compares centres strictly never finds another object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from semires.data.scenes import PART_NAMES, Scene, SceneObject

MARGIN = 0.15  # of the scene's side: closer centres are not compared
ORDINALS = ("first", "second", "third", "fourth")

# Sort keys: the object that is furthest in a direction comes first.
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
LONG_SUPERLATIVES = {
    "left": ("the {} on the left side", "the {} that is on the left side"),
    "right": ("the {} on the right side", "the {} that is on the right side"),
    "top": ("the {} at the top", "the {} that is at the top"),
    "bottom": ("the {} at the bottom", "the {} that is at the bottom"),
}


@dataclass(frozen=True)
class Style:
    """How a data set names its objects.

    ``weights``: the share of each kind of expression among the kinds that an object has;
    ``count``: the most expressions of an object; ``sentences``: full sentences ("the small red star
    that is left of the yellow boat") in place of short phrases.
    """

    weights: dict[str, float]
    count: int
    sentences: bool = False


#: By the field ``dataset`` of a data set; as RefCOCO, RefCOCO+ and G-Ref.
STYLES = {
    "refscenes": Style({"attribute": 0.7, "location": 0.2, "relation": 0.06, "ordinal": 0.04}, 3),
    "refscenes+": Style({"attribute": 0.7, "relation": 0.3}, 3),
    "refscenes-g": Style(
        {"attribute": 0.35, "location": 0.1, "relation": 0.5, "ordinal": 0.05}, 2, sentences=True
    ),
}
REFSCENES = STYLES["refscenes"]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: words and the attributes an object must have to match (None: any)."""

    text: str
    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    part_colour: str | None = None

    @property
    def attributes(self) -> int:
        """The number of attributes named."""
        named = (self.shape, self.colour, self.size, self.part_colour)
        return sum(value is not None for value in named)

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


def _phrases(item: SceneObject, sentences: bool = False) -> list[Phrase]:
    """Noun phrases true of an object, shortest first; for sentences also one of all attributes."""
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
        if sentences:
            phrases.append(
                Phrase(f"{size} {colour} {shape} {part}", shape, colour, size, item.part_colour)
            )
    return phrases


def expressions(scene: Scene, index: int, style: Style = REFSCENES) -> dict[str, list[str]]:
    """All expressions of the style's kinds that name ``scene.objects[index]`` and nothing else."""
    item = scene.objects[index]
    margin = MARGIN * scene.size_px
    long = style.sentences
    found: dict[str, list[str]] = {kind: [] for kind in REFSCENES.weights}
    for phrase in _phrases(item, long):
        group = [o for o in scene.objects if phrase.matches(o)]
        if len(group) == 1:
            if phrase.attributes >= (2 if long else 1):
                found["attribute"].append(f"the {phrase.text}" if long else phrase.text)
            continue
        found["location"] += _locations(phrase, item, group, margin, long)
        found["ordinal"] += _ordinals(phrase, item, group, margin, long)
    found["relation"] = _relations(scene, item, margin, long)
    return {kind: found[kind] for kind in style.weights}


def _locations(
    phrase: Phrase, item: SceneObject, group: list[SceneObject], margin: float, long: bool
) -> list[str]:
    texts = []
    patterns = LONG_SUPERLATIVES if long else SUPERLATIVES
    for direction, key in DIRECTIONS.items():
        if all(key(item) + margin <= key(other) for other in group if other is not item):
            texts += [pattern.format(phrase.text) for pattern in patterns[direction]]
    return texts


def _ordinals(
    phrase: Phrase, item: SceneObject, group: list[SceneObject], margin: float, long: bool
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
            text = f"{ORDINALS[rank]} {phrase.text} from the {direction}"
            texts.append(f"the {text} side" if long else text)
    return texts


def _relations(scene: Scene, item: SceneObject, margin: float, long: bool) -> list[str]:
    texts = []
    wording = "the {} that is" if long else "{}"
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
        named = unique[-1] if long else unique[0]
        for direction, key in DIRECTIONS.items():
            if key(item) + margin > key(anchor):
                continue
            for phrase in _phrases(item)[3:7] if long else _phrases(item)[1:4]:
                rivals = [o for o in scene.objects if phrase.matches(o) and o not in (item, anchor)]
                if all(key(o) >= key(anchor) for o in rivals):
                    subject = wording.format(phrase.text)
                    texts.append(RELATIONS[direction].format(subject, named.text))
    return texts


def draw_expressions(
    rng: np.random.Generator, scene: Scene, index: int, style: Style = REFSCENES
) -> list[str]:
    """Up to ``style.count`` different expressions of an object, kinds drawn by ``style.weights``.

    Empty where nothing names the object alone.
    """
    pool = {kind: texts for kind, texts in expressions(scene, index, style).items() if texts}
    drawn: list[str] = []
    while pool and len(drawn) < style.count:
        kinds = list(pool)
        weights = np.array([style.weights[k] for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        texts = pool[kind]
        drawn.append(texts.pop(int(rng.integers(len(texts)))))
        if not texts:
            del pool[kind]
    return drawn
