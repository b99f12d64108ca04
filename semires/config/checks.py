"""Cross-field validation of params.yaml, before any work starts.

A failed check raises ValueError or ConfigError; the text starts with the path of the key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from semires.config.grid import expand, search_of, searches, sources_of, uses_sam
from semires.config.messages import require
from semires.config.schema import Block, Params
from semires.config.sources import HubSource
from semires.runs.key import SUPERVISED, fraction_name


def check(params: Params) -> None:
    """Run all checks."""
    _names(params)
    _shared_images(params)
    for kind in ("runs", "tune"):
        for number, block in enumerate(getattr(params.study, kind)):
            _block(params, block, f"study.{kind}.{number}")
    _tuned_names(params)
    _tuning(params)
    _weights(params)
    params.model.check(params.data.image_size)
    _fraction_keys(params)


def _names(params: Params) -> None:
    require(params.study.generated, params.datasets, "study.generated", "datasets")
    _no_duplicates(params.study.generated, "study.generated")
    source = params.proposals.source
    require([source], params.proposals.sources, "proposals.source", "proposals.sources")
    for section in ("refine", "datasets", "models"):
        for name in getattr(params, section):
            if "." in name or (section == "refine" and ("+" in name or name == SUPERVISED)):
                raise ValueError(f"{section}.{name}: this name is reserved, or has a dot or a plus")


def _shared_images(params: Params) -> None:
    """Check that a data set with ``images_of`` has the images of a data set without it."""
    for name, place in params.datasets.items():
        if place.images_of is None:
            continue
        key = f"datasets.{name}.images_of"
        require([place.images_of], params.datasets, key, "datasets")
        owner = params.datasets[place.images_of]
        if owner.images_of is not None or place.images_of == name:
            raise ValueError(f"{key}: name a data set with images of its own")
        if owner.images != place.images:
            raise ValueError(
                f"{key}: `images` is {place.images}, but that of {place.images_of} is "
                f"{owner.images}"
            )
        generated = params.study.generated
        if name in generated and place.images_of not in generated:
            raise ValueError(f"{key}: add {place.images_of} to study.generated")


def _block(params: Params, block: Block, key: str) -> None:
    """Check the names and values of one block of the study."""
    require(block.datasets, params.datasets, f"{key}.datasets", "datasets")
    require(block.methods, [SUPERVISED, *params.refine], f"{key}.methods", "refine")
    sources = params.proposals.sources
    require(block.sources or [], sources, f"{key}.sources", "proposals.sources")
    if block.model is not None:
        require([block.model], params.models, f"{key}.model", "models")
        if key == "study.runs.0":
            raise ValueError(f"{key}.model: leave it null; the main table shows `model`")
    for name, values in block:
        if isinstance(values, list):
            _no_duplicates(values, f"{key}.{name}")
    for fraction in block.fractions:
        if float(fraction_name(fraction)) != fraction:
            raise ValueError(
                f"{key}.fractions: {fraction!r} has more than six digits; its folder would be "
                f"named {fraction_name(fraction)}"
            )
        # The size of RefScenes is known before it is generated. The stage `split` checks other data
        # sets.
        generated = set(block.datasets) & set(params.study.generated)
        if generated and math.floor(fraction * params.scenes.train / 100) < 1:
            raise ValueError(
                f"{key}.fractions: {fraction:g} % of scenes.train {params.scenes.train} is less "
                "than one image"
            )
        for name in block.methods:
            if fraction == 100 and name != SUPERVISED and params.refine[name].unlabelled:
                raise ValueError(f"{key}.fractions: 100 leaves no unlabelled image for {name}")


def _no_duplicates(values: list[str] | list[float], key: str) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            shown = fraction_name(value) if isinstance(value, float) else value
            raise ValueError(f"{key}: duplicate value {shown}")


def _tuning(params: Params) -> None:
    """Check that each search has a burn-in and a unique result, and each tuned method a search."""
    runs, results = expand(params), set()
    for number, block in enumerate(params.study.tune):
        key = f"study.tune.{number}"
        if not block.methods or SUPERVISED in block.methods:
            raise ValueError(f"{key}.methods: list the methods to search, keys of `refine`")
        for name in block.methods:
            method = params.refine[name]
            objective = method.overrides.get("tune.objective", params.tune.objective)
            if not method.threshold_values and objective != "training":
                raise ValueError(f"{key}.methods: {name}: {no_thresholds(method.strategy)}")
        for search in searches(params, [block]):
            if search.burn_in not in runs:
                raise ValueError(
                    f"{key}: {search.dataset} at {fraction_name(search.fraction)} %, seed "
                    f"{search.seed}, has no burn-in; add it to a block of study.runs"
                )
            result = (search.dataset, search.fraction, search.label)
            if result in results:
                raise ValueError(
                    f"{key}: {search.label} at {fraction_name(search.fraction)} % is searched "
                    "twice; list one seed, since all seeds share the result"
                )
            results.add(result)
    for run in runs:
        needed = search_of(params, run)
        if needed is not None and (run.dataset, run.fraction, needed.label) not in results:
            raise ValueError(
                f"refine.{run.method}: `thresholds: {params.refine[run.method].thresholds}` needs "
                f"a search of {needed.label} for {run.dataset} at {fraction_name(run.fraction)} %; "
                "add it to study.tune"
            )


def no_thresholds(strategy: str) -> str:
    """Why the labels of a strategy cannot be searched, and what can."""
    return (
        f"the strategy `{strategy}` has no thresholds; search the weighting and the training with "
        "`tune.objective: training`"
    )


def _tuned_names(params: Params) -> None:
    """Check that a method that uses another method's search has the same thresholds."""
    for name, method in params.refine.items():
        kind, _, other = method.thresholds.partition(":")
        if kind == "tuned" and other:
            key = f"refine.{name}.thresholds"
            require([other], params.refine, key, "refine")
            if params.refine[other].threshold_values.keys() != method.threshold_values.keys():
                raise ValueError(f"{key}: {other} has other thresholds than {name}")


def _weights(params: Params) -> None:
    """Check the weights that the study's sources of proposals need."""
    sam = params.sam
    if uses_sam(params):
        tiny = sam.checkpoint.endswith(".safetensors")
        if not sam.checkpoint or tiny != (sam.model == "tiny"):
            raise ValueError(
                f"sam.checkpoint: {sam.checkpoint!r} is not a checkpoint of sam.model {sam.model}, "
                "which a proposal source of the study needs"
            )
    for name in sources_of(params):
        source, key = params.proposals.sources[name], f"proposals.sources.{name}"
        if isinstance(source, HubSource) and not source.model:
            raise ValueError(f"{key}.model: no weights are given")
        if source.kind == "segment_anything":
            factor, side = source.crop_n_points_downscale_factor, source.points_per_side
            if side // factor**source.crop_n_layers < 1:
                raise ValueError(
                    f"{key}.crop_n_points_downscale_factor: with {factor}, the crops of layer "
                    f"{source.crop_n_layers} have no points; points_per_side is only {side}"
                )


def _fraction_keys(params: Params) -> None:
    """Check the keys that are fractions, which must be spelled like the folder names."""
    for name, place in params.datasets.items():
        _spelled(place.labelled_lists, f"datasets.{name}.labelled_lists")
    _spelled(params.burn_in.steps_by_fraction, "burn_in.steps_by_fraction")


def _spelled(keys: Iterable[str], where: str) -> None:
    for key in keys:
        try:
            spelt = f"{float(key):g}"
        except ValueError:
            spelt = "a percentage"
        if key != spelt:
            raise ValueError(f"{where}: write {spelt} instead of {key!r}")
