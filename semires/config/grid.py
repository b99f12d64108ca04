"""The grid of runs: which trainings the blocks of ``study`` in params.yaml ask for.

DVC cannot compute a union of products. `semires grid` therefore writes the runs to
``experiments/grid.yaml``, and each stage of dvc.yaml iterates over one mapping of that file. The
file is in Git; a stage refuses to run when it no longer fits params.yaml.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from semires.config.schema import Block, Params
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
    """All runs of the study (or of ``blocks``), each once, burn-ins before what starts from them.

    A run whose source of proposals is ``proposals.source`` has ``source=None``. So has a run whose
    method matches no proposals: it is the same run with every source.
    """
    runs: dict[RunKey, None] = {}
    for block in params.study.runs if blocks is None else blocks:
        for dataset, fraction, seed in product(block.datasets, block.fractions, block.seeds):
            runs[RunKey(dataset, fraction, SUPERVISED, seed)] = None
        runs |= dict.fromkeys(_methods(params, block))
    return list(runs)


def searches(params: Params, blocks: Iterable[Block] | None = None) -> list[RunKey]:
    """The threshold searches of ``study.tune`` (or of ``blocks``), each once."""
    blocks = params.study.tune if blocks is None else blocks
    return list(dict.fromkeys(key for block in blocks for key in _methods(params, block)))


def _methods(params: Params, block: Block) -> Iterator[RunKey]:
    default = params.proposals.source
    methods = [name for name in block.methods if name != SUPERVISED]
    for dataset, fraction, method, source, seed in product(
        block.datasets, block.fractions, methods, block.sources or [default], block.seeds
    ):
        used = source != default and params.refine[method].strategy != "none"
        yield RunKey(dataset, fraction, method, seed, source if used else None)


def burn_in_of(key: RunKey) -> RunKey:
    """The burn-in that a run starts from."""
    return dataclasses.replace(key, method=SUPERVISED, source=None)


def sources_of(params: Params) -> list[str]:
    """The sources of proposals that the study uses, the default one first."""
    keys = [*expand(params), *searches(params)]
    return list(dict.fromkeys([params.proposals.source, *(k.source for k in keys if k.source)]))


def stages(params: Params) -> dict[str, dict[str, Item]]:
    """What each stage of dvc.yaml iterates over: by stage, the fields of each item by its name."""
    runs, searched = expand(params), searches(params)
    mutual = [key for key in runs if key.method != SUPERVISED]
    proposals = {(key.dataset, key.source or params.proposals.source) for key in mutual + searched}
    return {
        "prepare": {
            name: {"annotations": f"{place.root}/{place.dataset}"}
            for name in params.study.datasets
            for place in [params.datasets[name]]
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
        "tune": _named(_item(params, key) for key in searched),
        "mutual": _named(
            {**_item(params, key), "thresholds": _thresholds(params, key)} for key in mutual
        ),
    }


def _item(params: Params, key: RunKey) -> Item:
    fraction = fraction_name(key.fraction)
    item: Item = {"dataset": key.dataset, "fraction": fraction, "seed": key.seed}
    if key.method != SUPERVISED:
        source = key.source or params.proposals.source
        item |= {"method": key.method, "source": source, "label": key.label}
    return item


def _named(items: Iterable[Item]) -> dict[str, Item]:
    """Items by the name of their stage, such as ``refscenes-1-cpi-u-0``."""
    named: dict[str, Item] = {}
    for item in items:
        parts = (item.get(part) for part in ("dataset", "fraction", "label", "seed"))
        name = "-".join(str(part) for part in parts if part is not None)
        if name in named:
            raise ConfigError(f"study: two runs are named {name}; rename a data set or a method")
        named[name] = item
    return named


def _thresholds(params: Params, key: RunKey) -> str:
    """The file that a method takes its thresholds from.

    DVC needs a path for every item. Methods with thresholds of their own name the split, on which
    their stage depends anyway.
    """
    if params.refine[key.method].thresholds == "tuned":
        return layout.tuned_file(key).as_posix()
    return layout.split_file(key.dataset, key.fraction).as_posix()


def grid_text(params: Params) -> str:
    """The content of ``experiments/grid.yaml``: one line per stage item."""
    lines = [_HEAD, f"runs: {len(expand(params))}\n", "grid:\n"]
    for stage, items in stages(params).items():
        lines.append(f"  {stage}:{'' if items else ' {}'}\n")
        lines += [f"    {json.dumps(name)}: {json.dumps(item)}\n" for name, item in items.items()]
    return "".join(lines)


def write_grid(params: Params, project: Path = Path()) -> str:
    """Write ``experiments/grid.yaml`` of a project; returns one line that says what it holds."""
    path, text = project / layout.GRID, grid_text(params)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    runs = expand(params)
    burn_ins = sum(key.method == SUPERVISED for key in runs)
    return f"{path}: {len(runs)} runs, {burn_ins} of them burn-ins"


def check_grid(params: Params) -> None:
    """Refuse to work on a grid that does not fit the parameters.

    Raises:
        ConfigError: ``experiments/grid.yaml`` is missing, or `study` was edited since.
    """
    try:
        current = layout.GRID.read_text(encoding="utf-8") == grid_text(params)
    except (OSError, UnicodeDecodeError):
        current = False
    if not current:
        raise ConfigError(
            f"{layout.GRID}: does not hold the runs of `study` in params.yaml; run `semires grid`, "
            "then `dvc repro` again"
        )
