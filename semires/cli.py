"""The `semires` command: one subcommand per stage of dvc.yaml, and some for results and setup.

This module contains no logic. The subcommands import heavy libraries only when they run, so that
`semires --help` is fast. A :class:`SemiresError` prints one line to stderr and gives exit code 2;
SIGINT and SIGTERM give 130 and 143. In a subfolder of a project, commands work on the project, like
the commands of DVC.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from semires.errors import SemiresError
from semires.options import OPTIONS, check_arguments
from semires.runs.key import SUPERVISED, RunKey

if TYPE_CHECKING:
    from semires.config.schema import Params

Arguments = argparse.Namespace
Command = Callable[[Arguments], int | None]
PROJECT_FILES = ("dvc.yaml", "params.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    from semires import process

    arguments = _parser().parse_args(argv)
    process.stage_process()
    for stream in (sys.stdout, sys.stderr):  # print characters that the terminal cannot encode
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        enter_project(arguments)
        command: Command = arguments.run
        code = command(arguments) or 0
        process.note_duration()
        return code
    except SemiresError as error:
        return _say(" ".join(str(error).split()), error.exit_code)
    except process.Stopped as stop:
        return _say(f"{stop}; run the same command again to resume", stop.exit_code)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:  # `semires ... | head`
        sys.stderr.close()
        return 141
    except OSError as error:  # for example, no permission to read a folder
        if error.errno is None:
            raise
        return _say(f"{error.filename or 'output'}: {error.strerror}", 2)


def _say(line: str, exit_code: int) -> int:
    print(f"semires: {line}", file=sys.stderr)
    return exit_code


def _params(arguments: Arguments) -> Params:
    """Read the parameters and check the command's arguments against them."""
    from semires import numerics
    from semires.config.load import load_params

    params = load_params(arguments.params)
    numerics.select(params.runtime.numerics)
    if "DVC_STAGE" in os.environ:
        from semires.config.compose import link_raw_data
        from semires.config.grid import check_grid

        check_grid(params)
        link_raw_data(params)
    check_arguments(arguments, params)
    return params


def _run(arguments: Arguments, params: Params) -> RunKey:
    """Return the run that the arguments name; without a method it is a burn-in."""
    method = getattr(arguments, "method", SUPERVISED)
    source, model = (getattr(arguments, name, None) for name in ("source", "model"))
    if source == params.proposals.source:
        source = None
    return RunKey(arguments.dataset, arguments.fraction, method, arguments.seed, source, model)


def enter_project(arguments: Arguments) -> None:
    """Change to the project's folder, and adjust the relative paths in the arguments."""
    from semires.runs import layout

    project = layout.project_above(PROJECT_FILES)
    if project is None:
        return
    for name in ("params", "file", "checkpoint", "image", "expressions", "output"):
        value = getattr(arguments, name, None)
        if value is None or "://" in str(value):
            continue
        if name == "output" or Path(value).exists():
            setattr(arguments, name, os.path.relpath(value, project))
    os.chdir(project)


def _generate(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.data.refscenes import generate

    generate(params, arguments.dataset)


def _prepare(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.data.prepare import prepare

    prepare(params, arguments.dataset)


def _split(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.data.splits import make_split

    make_split(params, arguments.dataset, arguments.fraction)


def _sam(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.proposals.checkpoint import prepare_checkpoint

    prepare_checkpoint(params)


def _propose(arguments: Arguments) -> None:
    params = _params(arguments)
    source = arguments.source or params.proposals.source
    from semires.errors import ConfigError
    from semires.proposals import propose

    if arguments.merge and arguments.shards:
        raise ConfigError("--merge: not with --shards; it follows when all shards are made")
    if arguments.output and not (arguments.merge or arguments.shards):
        raise ConfigError("--output: only with --shards or --merge")
    if arguments.merge:
        propose.merge_shards(params, arguments.dataset, source, arguments.output)
    elif arguments.shards:
        first, end = arguments.shards
        propose.propose_shards(params, arguments.dataset, source, first, end, arguments.output)
    else:
        propose.propose(params, arguments.dataset, source)


def _burn_in(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.training.burn_in import burn_in

    burn_in(params, _run(arguments, params), profile=arguments.profile)


def _mutual(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.training.mutual import mutual

    mutual(params, _run(arguments, params))


def _tune(arguments: Arguments) -> None:
    from semires.errors import ConfigError

    for option in ("dataset", "fraction", "method", "seed", "source", "model"):
        given = getattr(arguments, option) is not None
        if given and arguments.all:
            raise ConfigError(f"--{option}: not with --all, which runs the searches of study.tune")
        if not given and not arguments.all and option in ("dataset", "fraction", "method"):
            raise ConfigError(f"--{option}: missing (or give --all)")
    params = _params(arguments)
    from semires.config.grid import searches
    from semires.tuning.study import tune, tune_all

    if arguments.all:
        tune_all(params, searches(params), arguments.on)
    else:
        arguments.seed = arguments.seed or 0
        tune(params, _run(arguments, params), on=arguments.on)


def _labels(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.reporting.labels import markdown
    from semires.tuning.labels import write_labels

    refs = arguments.refs or params.evaluation.correction_refs
    print(markdown(params, write_labels(params, _run(arguments, params), refs)))


def _report(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires import tracking
    from semires.reporting.report import report

    report(params, Path(arguments.reports or params.study.reports))
    tracking.sync_in_background()


def _summary(arguments: Arguments) -> None:
    params = _params(arguments)
    if arguments.times:
        from semires.reporting.times import times

        print(times(params))
        return
    from semires.reporting.closing import closing
    from semires.reporting.report import print_summary

    output = Path(arguments.reports or params.study.reports)
    print_summary(params, output)
    print(closing(output))


def _verify(arguments: Arguments) -> int:
    params = _params(arguments)
    from semires.reporting.verify import verify

    return int(verify(params, Path(arguments.reports or params.study.reports), arguments.against))


def _use(arguments: Arguments) -> None:
    from semires.config.compose import use

    part = None
    if arguments.tables is not None:
        from semires.reporting.plan import part_of

        part = partial(part_of, names=arguments.tables)
    print(use(arguments.file, arguments.params, part))


def _grid(arguments: Arguments) -> None:
    from semires.config.grid import write_grid
    from semires.config.load import load_params

    print(write_grid(load_params(arguments.params)))


def _track_sync(arguments: Arguments) -> None:
    from semires import tracking
    from semires.errors import ConfigError

    if not any(Path(name).is_file() for name in PROJECT_FILES):
        raise ConfigError(
            f"{Path.cwd()}: not in a project (no {' and '.join(PROJECT_FILES)} here or in a parent "
            "folder); run the command in the project's folder"
        )
    print(tracking.sync())


def _evaluate(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.evaluation.checkpoint import evaluate_checkpoint

    checkpoint, dataset, split = arguments.checkpoint, arguments.dataset, arguments.split
    metrics, table = evaluate_checkpoint(params, checkpoint, dataset, split)
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"{checkpoint} on {dataset} {split}, {len(table)} expressions, percent:")
    print("\n".join(f"  {name:6} {value:6.2f}" for name, value in metrics.items()))


def _predict(arguments: Arguments) -> None:
    # A run folder contains the parameters of the run, so prediction works in any folder.
    params = _params(arguments) if Path(arguments.params).is_file() else None
    from semires.evaluation.predict import predict

    predict(
        params,
        arguments.checkpoint,
        arguments.image,
        arguments.expression,
        arguments.output,
        arguments.expressions,
    )


def _rehearse(arguments: Arguments) -> int:
    params = _params(arguments)
    from semires.rehearsal.rehearse import Options, rehearse

    names = ("dataset", "stages", "steps", "pictures", "random_weights", "synthetic_data")
    return rehearse(params, Options(**{name: getattr(arguments, name) for name in names}))


def _doctor(arguments: Arguments) -> int:
    from semires.doctor import doctor

    return doctor(arguments.params)


STAGES: dict[str, tuple[Command, str, tuple[str, ...]]] = {
    "generate": (_generate, "generate RefScenes, the embedded data set", ("dataset",)),
    "prepare": (_prepare, "convert annotations in RefCOCO's format to tables", ("dataset",)),
    "split": (_split, "choose the labelled images of a fraction", ("dataset", "fraction")),
    "sam": (_sam, "verify the SAM checkpoint", ()),
    "propose": (
        _propose,
        "make the proposals of every image",
        ("dataset", "source", "shards", "output", "merge"),
    ),
    "burn-in": (
        _burn_in,
        "train on the labelled images",
        ("dataset", "fraction", "seed", "model", "profile"),
    ),
    "mutual": (
        _mutual,
        "train by mutual learning with one method",
        ("dataset", "fraction", "method", "seed", "source", "model"),
    ),
    "tune": (
        _tune,
        "search the thresholds of one method; with --all, run all searches of the study",
        ("dataset", "fraction", "method", "seed", "source", "model", "all", "on"),
    ),
    "labels": (
        _labels,
        "measure the pseudo-labels of every rule with the burn-in teacher",
        ("dataset", "fraction", "seed", "source", "refs"),
    ),
    "report": (_report, "write claims, tables, figures and a web page to reports/", ("reports",)),
    "summary": (
        _summary,
        "print the main table and whether it is the committed one",
        ("reports", "times"),
    ),
    "verify": (
        _verify,
        "compare this machine's runs, tables and claims with the committed ones",
        ("reports", "against"),
    ),
    "use": (_use, "make a parameter file the active params.yaml", ("file", "tables")),
    "grid": (_grid, "write the runs of `study` to experiments/grid.yaml, for dvc.yaml", ()),
    "evaluate": (_evaluate, "evaluate a checkpoint", ("checkpoint", "dataset", "split")),
    "predict": (
        _predict,
        "segment the object that an expression refers to",
        ("checkpoint", "image", "expression", "expressions", "output"),
    ),
    "rehearse": (
        _rehearse,
        "run every stage for a few items at full size; print time, memory and disk of the study",
        ("dataset", "stages", "steps", "pictures", "random-weights", "synthetic-data"),
    ),
    "doctor": (_doctor, "check the environment and the files that params.yaml names", ()),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="semires",
        description="SemiRES: semi-supervised segmentation with pseudo-labels refined by SAM.",
        epilog="`dvc repro` runs most of these subcommands; see dvc.yaml and params.yaml.",
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="parameter file")
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for name, (run, summary, wanted) in STAGES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        for option in wanted:
            flag = option if option in OPTIONS else f"--{option}"
            settings = dict(OPTIONS.get(f"{name} {flag}") or OPTIONS[flag])
            if "all" in wanted or "stages" in wanted:  # no option is always required
                settings.pop("required", None)
            if "all" in wanted:  # whether an option was given
                settings.pop("default", None)
            command.add_argument(flag, **settings)  # type: ignore[arg-type]
    track = commands.add_parser("track", help="update the MLflow store", description="MLflow store")
    actions = track.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = actions.add_parser("sync", help="write all run records that the store does not have")
    sync.set_defaults(run=_track_sync)
    return parser
