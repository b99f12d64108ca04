"""What params.yaml must agree on with itself: checked when it is read, before any work.

Each check raises ValueError with the key's path; a pair of stages that would write the same folder
is as wrong as a name that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from semires.config.messages import require
from semires.config.schema import Params, Study
from semires.runs.key import SUPERVISED


def check(params: Params) -> None:
    """All checks, the cheapest and most telling ones first."""
    _names(params)
    _grids(params.study)
    _tuning(params)
    _sources(params)
    _weights(params)
    params.model.check(params.data.image_size)
    _lists(params)
    _labelled(params)


def misspelt_fractions(study: Any) -> list[str]:
    """Fractions of the file that DVC would write otherwise than this package (``1.0``)."""
    return [
        f"study.{key}: write {value:g} for {value}, as the folders are named"
        for key, values in study.items()
        if key.endswith("fractions")
        for value in values
        if str(value) != f"{value:g}"
    ]


def _names(params: Params) -> None:
    study = params.study
    for key in ("datasets", "generated"):
        require(getattr(study, key), params.datasets, f"study.{key}", "datasets")
    for key in ("methods", "ablations", "more_methods", "source_methods", "tune_methods"):
        require(getattr(study, key), params.refine, f"study.{key}", "refine")
    for key in ("sources", "other_sources"):
        require(getattr(study, key), params.proposals.sources, f"study.{key}", "proposals.sources")
    for name, known in (("refine", params.refine), ("datasets", params.datasets)):
        for key in known:
            if "." in key or (name == "refine" and ("+" in key or key == SUPERVISED)):
                raise ValueError(f"{name}.{key}: this name is reserved, or holds a dot or a plus")
    for key, values in study:
        if isinstance(values, list) and len(set(values)) < len(values):
            raise ValueError(f"study.{key}: a value stands there twice")


def _grids(study: Study) -> None:
    _disjoint(study.supervised_fractions, study.fractions, "supervised_fractions", "fractions")
    known = [*study.fractions, *study.supervised_fractions]
    for key in ("ablation_fractions", "more_fractions", "tune_fractions"):
        for fraction in getattr(study, key):
            if fraction not in known and _used(study, key):
                raise ValueError(
                    f"study.{key}: {fraction:g} has no burn-in; add it to study.fractions or "
                    "study.supervised_fractions"
                )
    cells: set[tuple[float, str]] = set()
    for fractions, methods in (
        ("fractions", "methods"),
        ("ablation_fractions", "ablations"),
        ("more_fractions", "more_methods"),
        ("tune_fractions", "tuned_methods"),
    ):
        for cell in ((f, m) for f in getattr(study, fractions) for m in getattr(study, methods)):
            if cell in cells:
                raise ValueError(f"study.{methods}: {cell[1]} at {cell[0]:g} is there already")
            cells.add(cell)


def _used(study: Study, fractions: str) -> bool:
    """Whether a list of fractions makes any stage."""
    users = {
        "ablation_fractions": [study.ablations, study.other_sources],
        "more_fractions": [study.more_methods],
        "tune_fractions": [study.tune_methods],
    }
    return any(users[fractions])


def _disjoint(one: Iterable[Any], other: Iterable[Any], key: str, where: str) -> None:
    both = sorted(set(one) & set(other))
    if both:
        raise ValueError(f"study.{key}: {both[0]:g} is in study.{where} already")


def _tuning(params: Params) -> None:
    study = params.study
    require(study.tuned_methods, study.tune_methods, "study.tuned_methods", "study.tune_methods")
    require(study.tune_seeds, study.seeds, "study.tune_seeds", "study.seeds")
    if study.tune_methods and params.tune.objective == "labels":
        for name in study.tune_methods:
            if params.refine[name].strategy == "none":
                raise ValueError(f"study.tune_methods: {name} has no threshold to search")
    for name in (*study.methods, *study.ablations, *study.more_methods):
        if params.refine[name].thresholds == "tuned":
            raise ValueError(f"refine.{name}: has tuned thresholds: list it in study.tuned_methods")
    for name in study.tuned_methods:
        if params.refine[name].thresholds != "tuned":
            raise ValueError(f"study.tuned_methods: refine.{name}.thresholds is not `tuned`")


def _sources(params: Params) -> None:
    study, source = params.study, params.proposals.source
    require([source], params.proposals.sources, "proposals.source", "proposals.sources")
    require([source], study.sources, "proposals.source", "study.sources")
    require(study.other_sources, study.sources, "study.other_sources", "study.sources")
    if source in study.other_sources:
        raise ValueError(f"study.other_sources: {source} is proposals.source already")


def _weights(params: Params) -> None:
    """Weights that a part of the study needs and the parameters do not name, or name wrongly."""
    sam, used = params.sam, params.study.sources
    kinds = {name: params.proposals.sources[name] for name in used}
    if any(source.kind == "segment_anything" for source in kinds.values()):
        tiny = sam.checkpoint.endswith(".safetensors")
        if not sam.checkpoint or tiny != (sam.model == "tiny"):
            raise ValueError(
                f"sam.checkpoint: {sam.checkpoint!r} is no checkpoint of sam.model {sam.model}, "
                "which a source of study.sources needs"
            )
    for name, source in kinds.items():
        key = f"proposals.sources.{name}"
        if source.kind == "transformers" and not source.model:
            raise ValueError(f"{key}.model: names no weights")
        if source.kind == "segment_anything":
            factor, side = source.crop_n_points_downscale_factor, source.points_per_side
            if side // factor**source.crop_n_layers < 1:
                raise ValueError(
                    f"{key}.crop_n_points_downscale_factor: {factor} leaves the crops of layer "
                    f"{source.crop_n_layers} none of the {side} points a side"
                )


def _lists(params: Params) -> None:
    """Explicit lists are found by their fraction as the folders are named."""
    for name, place in params.datasets.items():
        for key in place.labelled_lists:
            try:
                spelt = f"{float(key):g}"
            except ValueError:
                spelt = "a percentage"
            if key != spelt:
                raise ValueError(f"datasets.{name}.labelled_lists: write {spelt} for {key!r}")


def _labelled(params: Params) -> None:
    """RefScenes' size is known before it is made; other data sets are checked by `split`."""
    study = params.study
    for fraction in (*study.fractions, *study.supervised_fractions):
        images = math.floor(fraction * params.scenes.train / 100)
        if study.generated and images < 1:
            raise ValueError(
                f"study.fractions: {fraction:g} % of scenes.train {params.scenes.train} is no image"
            )
    for key, methods in (("fractions", "methods"), ("ablation_fractions", "ablations"),
                         ("more_fractions", "more_methods")):  # fmt: skip
        for name in getattr(study, methods):
            if 100 in getattr(study, key) and params.refine[name].unlabelled:
                raise ValueError(f"study.{key}: 100 leaves {name} no unlabelled image")
