"""The options of the subcommands, with their help and the checks of their values."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from semires.errors import ConfigError

if TYPE_CHECKING:
    from semires.config.schema import Params


def _range(text: str) -> tuple[int, int]:
    """``A:B`` as two numbers."""
    first, colon, end = text.partition(":")
    if not (first.isdecimal() and colon and end.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, such as 0:10")
    return int(first), int(end)


# By flag; `COMMAND --flag` is the flag of one command.
OPTIONS: dict[str, dict[str, object]] = {
    "--dataset": {"required": True, "metavar": "D", "help": "a key of `datasets`"},
    "--fraction": {"required": True, "type": float, "metavar": "F", "help": "labelled images, %%"},
    "--method": {"required": True, "metavar": "M", "help": "a key of `refine`"},
    "--seed": {"type": int, "default": 0, "metavar": "S", "help": "random seed; default: 0"},
    "--source": {
        "metavar": "X",
        "help": "a key of `proposals.sources`; default: `proposals.source`",
    },
    "--model": {"metavar": "N", "help": "a key of `models`; default: the section `model`"},
    "--refs": {
        "type": int,
        "metavar": "N",
        "help": "unlabelled references at most; default: `evaluation.correction_refs`",
    },
    "--all": {"action": "store_true", "help": "run all searches in `study.tune`"},
    "--stages": {
        "type": lambda text: tuple(text.split(",")),
        "metavar": "A,B",
        "help": "only these stages and those that they need; default: all",
    },
    "--steps": {
        "type": int,
        "default": 4,
        "metavar": "N",
        "help": "steps per training; default: 4",
    },
    "--pictures": {
        "type": int,
        "default": 2,
        "metavar": "N",
        "help": "images for each source of proposals; default: 2",
    },
    "--random-weights": {
        "action": "store_true",
        "help": "use random weights of the configured sizes",
    },
    "--synthetic-data": {
        "action": "store_true",
        "help": "use generated data with the published counts",
    },
    "--profile": {"action": "store_true", "help": "also write a trace for Perfetto"},
    "--on": {
        "choices": ("val", "labelled"),
        "help": "the images whose ground truth is used; default: `tune.on`",
    },
    "--checkpoint": {"required": True, "help": "a run folder, or a published .pth file"},
    "--split": {"default": "val", "help": "a split of the data set; default: val"},
    "--image": {"required": True, "help": "an image file; with --expressions, a folder"},
    "--expression": {"metavar": "TEXT", "help": "an expression that refers to one object"},
    "--expressions": {"metavar": "CSV", "help": "a file with the columns image and expression"},
    "--output": {"help": "a PNG file; with --expressions, a folder"},
    "propose --output": {
        "metavar": "URL",
        "help": "with --shards and --merge: a folder or a URL of fsspec such as s3://bucket/folder",
    },
    "--shards": {
        "type": _range,
        "metavar": "A:B",
        "help": "make only the shards A to B-1, on one of several machines",
    },
    "--merge": {"action": "store_true", "help": "collect the shards of all machines"},
    "--tables": {
        "type": lambda text: tuple(text.replace(",", " ").split()),
        "metavar": "A,B",
        "help": "only the runs that these tables need, such as 1,7",
    },
    "--reports": {"metavar": "FOLDER", "help": "the report's folder; default: `study.reports`"},
    "--times": {
        "action": "store_true",
        "help": "print the hours of the trainings by table",
    },
    "--against": {"default": "HEAD", "metavar": "REV", "help": "the commit to compare with"},
    "file": {
        "help": "a parameter file, such as experiments/refcoco.yaml",
        "metavar": "FILE",
    },
}


def check_arguments(arguments: argparse.Namespace, params: Params) -> None:
    """Check the names and numbers that a command was given, before any heavy import.

    Raises:
        ConfigError: params.yaml lacks a name (the text offers the nearest one), or a number is
            outside its range.
    """
    from semires.config.messages import require

    for option, known, where in (
        ("dataset", params.datasets, "datasets"),
        ("method", params.refine, "refine"),
        ("source", params.proposals.sources, "proposals.sources"),
        ("model", params.models, "models"),
    ):
        if (name := getattr(arguments, option, None)) is not None:
            require([name], known, f"--{option}", where)
    seed, fraction, refs = (getattr(arguments, n, None) for n in ("seed", "fraction", "refs"))
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"--seed: {seed} is not between 0 and 2**32")
    if fraction is not None and not 0 < fraction <= 100:
        raise ConfigError(f"--fraction: {fraction:g} is not a percentage above 0 and up to 100")
    if refs is not None and refs < 1:
        raise ConfigError(f"--refs: {refs} is not a number of references; it is at least 1")
