"""The grid of runs: the trainings that the blocks of ``study`` in params.yaml define.

DVC cannot compute a union of products. `semires grid` therefore writes the runs to
``experiments/grid.yaml``, and each stage of dvc.yaml iterates over one mapping of that file. The
file is committed to Git. A stage stops with an error if it does not match params.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from semires.config.schema import Block, Params
from semires.config.sources import SAM_KINDS
from semires.errors import ConfigError
from semires.files import write_text
from semires.runs import layout
from semires.runs.key import SUPERVISED, RunKey, fraction_name

Item = dict[str, str | int]

_HEAD = """\
# Written by `semires grid` from `study` in params.yaml. Do not edit it: edit params.yaml and run
# `semires grid`. The stages of dvc.yaml iterate over these mappings.
"""


def expand(params: Params, blocks: Iterable[Block] | None = None) -> list[RunKey]:
    """Return all runs of the study (or of ``blocks``) without duplicates, burn-ins first.

    In each block, the burn-ins come before the runs that start from them. ``source`` is None for
    runs that use ``proposals.source``, and for methods that do not match proposals, because they
    give the same run with every source.
    """
    runs: dict[RunKey, None] = {}
    for block in params.study.runs if blocks is None else blocks:
        for dataset, fraction, seed in product(block.datasets, block.fractions, block.seeds):
            runs[RunKey(dataset, fraction, SUPERVISED, seed, model=block.model)] = None
        runs |= dict.fromkeys(_methods(params, block))
    return list(runs)


def blocks_of(keys: Iterable[RunKey]) -> list[Block]:
    """Return blocks of ``study`` whose runs are the given ones and their burn-ins.

    Runs that differ in their seed, method or fraction alone share a block.
    """
    parts: list[dict[str, Any]] = [
        {
            "datasets": [key.dataset],
            "fractions": [key.fraction],
            "methods": [key.method],
            "seeds": [key.seed],
            "sources": [key.source] if key.source else None,
            "model": key.model,
        }
        for key in dict.fromkeys(keys)
    ]
    for axis in ("seeds", "methods", "fractions"):
        merged: dict[str, dict[str, Any]] = {}
        for part in parts:
            others = repr([value for name, value in part.items() if name != axis])
            if (same := merged.setdefault(others, part)) is not part:
                same[axis] += part[axis]
        parts = [*merged.values()]
    return [Block.model_validate(part) for part in parts]


def block_text(block: Block) -> str:
    """Return a block as YAML on one line, without keys that are null."""
    values = block.model_dump(exclude_none=True)
    values["fractions"] = [fraction_name(fraction) for fraction in block.fractions]
    shown = (
        f"{name}: [{', '.join(map(str, value))}]" if isinstance(value, list) else f"{name}: {value}"
        for name, value in values.items()
    )
    return f"{{{', '.join(shown)}}}"


def searches(params: Params, blocks: Iterable[Block] | None = None) -> list[RunKey]:
    """Return the threshold searches of ``study.tune`` (or of ``blocks``) without duplicates."""
    blocks = params.study.tune if blocks is None else blocks
    return list(dict.fromkeys(key for block in blocks for key in _methods(params, block)))


def _methods(params: Params, block: Block) -> Iterator[RunKey]:
    default = params.proposals.source
    methods = [name for name in block.methods if name != SUPERVISED]
    for dataset, fraction, method, source, seed in product(
        block.datasets, block.fractions, methods, block.sources or [default], block.seeds
    ):
        used = source != default and params.refine[method].strategy != "none"
        yield RunKey(dataset, fraction, method, seed, source if used else None, block.model)


def search_of(params: Params, key: RunKey) -> RunKey | None:
    """Return the search whose thresholds a run uses, or None if it uses those of params.yaml.

    The search's seed is that of its block in ``study.tune``; the returned key has the run's seed.
    """
    if key.method == SUPERVISED:
        return None
    kind, _, other = params.refine[key.method].thresholds.partition(":")
    if kind == "paper":
        return None
    return replace(key, method=other or key.method)


def sources_of(params: Params) -> list[str]:
    """Return the proposal sources that the study uses, the default source first."""
    keys = [*expand(params), *searches(params)]
    return list(dict.fromkeys([params.proposals.source, *(k.source for k in keys if k.source)]))


def uses_sam(params: Params) -> bool:
    """Return whether a proposal source of the study uses the checkpoint of ``sam``."""
    sources = params.proposals.sources
    return any(sources[name].kind in SAM_KINDS for name in sources_of(params))


def files_of(params: Params) -> dict[str, str]:
    """Return the files, folders and hub ids that the study's networks read, by parameter key."""
    files = params.model.files()
    for name in dict.fromkeys(key.model for key in [*expand(params), *searches(params)]):
        if name is not None:
            others = params.models[name].model.files()
            files |= {f"models.{name}.{key}": source for key, source in others.items()}
    return files


def stages(params: Params) -> dict[str, dict[str, Item]]:
    """Return for each stage of dvc.yaml its items: a mapping from item name to item fields."""
    runs, searched = expand(params), searches(params)
    mutual = [key for key in runs if key.method != SUPERVISED]
    proposals = {
        (params.owner(key.dataset), key.source or params.proposals.source)
        for key in mutual + searched
    }
    return {
        **_generated(params),
        "prepare": {
            name: {"annotations": params.datasets[name].annotations} for name in params.prepared
        },
        "split": {
            name: {"dataset": key.dataset, "fraction": fraction_name(key.fraction)}
            for key in runs
            for name in [f"{key.dataset}-{fraction_name(key.fraction)}"]
        },
        "propose": {
            f"{dataset}-{source}": {"dataset": dataset, "source": source}
            for dataset, source in sorted(proposals)
        },
        "burn_in": _named(_item(params, key) for key in runs if key.method == SUPERVISED),
        "labels": _named(
            {
                **_item(params, key),
                "source": params.proposals.source,
                "proposals": params.owner(key.dataset),
            }
            for key in runs
            if key.method == SUPERVISED and key.model is None
            if key.fraction < 100  # there are unlabelled references
            if (params.owner(key.dataset), params.proposals.source) in proposals
        ),
        "tune": _named(_item(params, key) for key in searched),
        "mutual": _named(
            {**_item(params, key), "thresholds": _thresholds(params, key)} for key in mutual
        ),
        "report": {Path(params.study.reports).name: {"folder": params.study.reports}},
    }


def _generated(params: Params) -> dict[str, dict[str, Item]]:
    """Return the items of `generate` and, of data sets with ``images_of``, of `express`."""
    kinds: dict[str, dict[str, Item]] = {"generate": {}, "express": {}}
    for name in params.study.generated:
        owner = params.owner(name)
        if owner == name:
            kinds["generate"][name] = {"dataset": name}
        else:
            scenes = params.datasets[owner].annotations
            kinds["express"][name] = {"dataset": name, "scenes": scenes}
    return kinds


def _item(params: Params, key: RunKey) -> Item:
    fraction = fraction_name(key.fraction)
    item: Item = {"dataset": key.dataset, "fraction": fraction, "seed": key.seed}
    if key.method != SUPERVISED:
        source = key.source or params.proposals.source
        item |= {"method": key.method, "source": source, "start": key.burn_in.label}
        item["proposals"] = params.owner(key.dataset)
    # The parameters of the run's model, and the option of the command that selects it.
    model = f"models.{key.model}" if key.model else "model"
    return item | {"label": key.label, "model": model, "option": key.option}


def _named(items: Iterable[Item]) -> dict[str, Item]:
    """Map the name of each item, such as ``refscenes-1-cpi-u-0``, to the item.

    The name of a burn-in has no method: ``refscenes-1-0``, ``refscenes-1-rela-0``.
    """
    named: dict[str, Item] = {}
    for item in items:
        label = str(item["label"])
        if "method" not in item:
            label = label.rpartition(".")[0]
        parts = (item["dataset"], item["fraction"], label, item["seed"])
        name = "-".join(str(part) for part in parts if part != "")
        if name in named:
            raise ConfigError(f"study: two runs are named {name}; rename a data set or a method")
        named[name] = item
    return named


def _thresholds(params: Params, key: RunKey) -> str:
    """Return the file of a method's tuned thresholds, or the split file without tuning.

    DVC needs a path for every item. The split file changes nothing, because the stage depends on it
    in any case.
    """
    if (search := search_of(params, key)) is not None:
        return layout.tuned_file(search).as_posix()
    return layout.split_file(key.dataset, key.fraction).as_posix()


def grid_text(params: Params) -> str:
    """Return the content of ``experiments/grid.yaml``: one line per stage item."""
    lines = [_HEAD, f"runs: {len(expand(params))}\n", "grid:\n"]
    for stage, items in stages(params).items():
        lines.append(f"  {stage}:{'' if items else ' {}'}\n")
        lines += [f"    {json.dumps(name)}: {json.dumps(item)}\n" for name, item in items.items()]
    return "".join(lines)


def write_grid(params: Params, project: Path = Path()) -> str:
    """Write ``experiments/grid.yaml`` of a project; return a one-line summary."""
    path, text = project / layout.GRID, grid_text(params)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    runs = expand(params)
    burn_ins = sum(key.method == SUPERVISED for key in runs)
    return f"{path}: {len(runs)} runs, {burn_ins} of them burn-ins"


def check_grid(params: Params) -> None:
    """Check that the grid matches the parameters.

    Raises:
        ConfigError: ``experiments/grid.yaml`` is missing, or `study` has changed since it was
            written.
    """
    try:
        current = layout.GRID.read_text(encoding="utf-8") == grid_text(params)
    except (OSError, UnicodeDecodeError):
        current = False
    if not current:
        raise ConfigError(
            f"{layout.GRID}: does not match `study` in params.yaml; run `semires grid`, then "
            "`dvc repro` again"
        )
