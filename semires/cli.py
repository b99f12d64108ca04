"""The `semires` command: one subcommand per stage of dvc.yaml, and a few to look at results.

No logic here, and no heavy import before a subcommand runs: `semires --help` answers at once. A
:class:`SemiresError` is one line on stderr and exit code 2; SIGINT and SIGTERM give 130 and 143.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from semires.errors import SemiresError

if TYPE_CHECKING:
    from semires.config.schema import Params
    from semires.runs.key import RunKey

Arguments = argparse.Namespace
Command = Callable[[Arguments], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    from semires import process

    arguments = _parser().parse_args(argv)
    process.stage_process()
    for stream in (sys.stdout, sys.stderr):  # expressions hold what a terminal may not know
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command: Command = arguments.run
        code = command(arguments) or 0
        process.note_duration()
        return code
    except SemiresError as error:
        return _say(" ".join(str(error).split()), error.exit_code)
    except process.Stopped as stop:
        return _say(f"{stop}; the same command goes on from what was saved", stop.exit_code)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:  # `semires ... | head`
        sys.stderr.close()
        return 141
    except OSError as error:  # a folder that may not be read, a file gone meanwhile
        if error.errno is None:
            raise
        return _say(f"{error.filename or 'output'}: {error.strerror}", 2)


def _say(line: str, exit_code: int) -> int:
    print(f"semires: {line}", file=sys.stderr)
    return exit_code


def _params(arguments: Arguments) -> Params:
    from semires.config.load import load_params

    return load_params(arguments.params)


def _cell(arguments: Arguments, method: str | None = None) -> RunKey:
    from semires.errors import ConfigError
    from semires.runs.key import RunKey

    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed: {arguments.seed} is not between 0 and 2**32")
    _percent(arguments.fraction)
    return RunKey(
        dataset=arguments.dataset,
        fraction=arguments.fraction,
        method=method or arguments.method,
        seed=arguments.seed,
        source=getattr(arguments, "source", None),
    )


def _percent(fraction: float) -> None:
    from semires.errors import ConfigError

    if not 0 < fraction <= 100:
        raise ConfigError(f"--fraction: {fraction:g} is no percentage above 0 and up to 100")


def _generate(arguments: Arguments) -> None:
    params = _params(arguments)
    _known(params, dataset=arguments.dataset)
    from semires.data.refscenes import generate

    generate(params, arguments.dataset)


def _prepare(arguments: Arguments) -> None:
    params = _params(arguments)
    _known(params, dataset=arguments.dataset)
    from semires.data.prepare import prepare

    prepare(params, arguments.dataset)


def _split(arguments: Arguments) -> None:
    params = _params(arguments)
    _known(params, dataset=arguments.dataset)
    _percent(arguments.fraction)
    from semires.data.splits import make_split

    make_split(params, arguments.dataset, arguments.fraction)


def _sam(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.proposals.checkpoint import prepare_checkpoint

    prepare_checkpoint(params)


def _propose(arguments: Arguments) -> None:
    params = _params(arguments)
    source = arguments.source or params.proposals.source
    _known(params, dataset=arguments.dataset, source=source)
    from semires.proposals.propose import propose

    propose(params, arguments.dataset, source)


def _burn_in(arguments: Arguments) -> None:
    params = _params(arguments)
    _known(params, dataset=arguments.dataset)
    from semires.training.burn_in import burn_in

    burn_in(params, _cell(arguments, "supervised"), profile=arguments.profile)


def _mutual(arguments: Arguments) -> None:
    params, cell = _method_cell(arguments)
    from semires.training.mutual import mutual

    mutual(params, cell)


def _tune(arguments: Arguments) -> None:
    params, cell = _method_cell(arguments)
    from semires.config.resolve import resolve
    from semires.tuning.study import tune

    tune(resolve(params, cell, tuned=False), cell)


def _method_cell(arguments: Arguments) -> tuple[Params, RunKey]:
    """All parameters, and the cell of a method that they know."""
    params = _params(arguments)
    known = {"dataset": arguments.dataset, "method": arguments.method}
    _known(params, **known, source=arguments.source)
    return params, _cell(arguments)


def _report(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires import tracking
    from semires.reporting.report import report

    report(params)
    tracking.sync_in_background()


def _summary(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.reporting.report import print_summary

    print_summary(params)


def _verify(arguments: Arguments) -> int:
    params = _params(arguments)
    from semires.reporting.verify import verify

    return int(verify(params))


def _use(arguments: Arguments) -> None:
    from semires.config.compose import use

    print(use(arguments.file, arguments.params))


def _track_sync(arguments: Arguments) -> None:
    from semires import tracking

    print(tracking.sync())


def _evaluate(arguments: Arguments) -> None:
    params = _params(arguments)
    _known(params, dataset=arguments.dataset)
    from semires.evaluation.checkpoint import evaluate_checkpoint

    checkpoint, dataset, split = arguments.checkpoint, arguments.dataset, arguments.split
    metrics, table = evaluate_checkpoint(params, checkpoint, dataset, split)
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"{checkpoint} on {dataset} {split}, {len(table)} expressions, percent:")
    print("\n".join(f"  {name:6} {value:6.2f}" for name, value in metrics.items()))


def _predict(arguments: Arguments) -> None:
    params = _params(arguments)
    from semires.evaluation.predict import predict

    predict(
        params,
        arguments.checkpoint,
        arguments.image,
        arguments.expression,
        arguments.output,
        arguments.expressions,
    )


def _doctor(arguments: Arguments) -> int:
    from semires.doctor import doctor

    return doctor(arguments.params)


def _known(
    params: Params,
    dataset: str | None = None,
    method: str | None = None,
    source: str | None = None,
) -> None:
    """Refuse names that params.yaml does not have, before any heavy import."""
    from semires.config.messages import require
    from semires.errors import ConfigError

    given = (
        (dataset, params.datasets, "--dataset", "datasets"),
        (method, params.refine, "--method", "refine"),
        (source, params.proposals.sources, "--source", "proposals.sources"),
    )
    for name, known, option, where in given:
        if name is not None:
            try:
                require([name], known, option, where)
            except ValueError as error:
                raise ConfigError(str(error)) from None


STAGES: dict[str, tuple[Command, str, tuple[str, ...]]] = {
    "generate": (_generate, "make RefScenes, the embedded data set", ("dataset",)),
    "prepare": (_prepare, "annotations in RefCOCO's format to tables", ("dataset",)),
    "split": (_split, "draw the labelled images of a fraction", ("dataset", "fraction")),
    "sam": (_sam, "verify the SAM checkpoint", ()),
    "propose": (_propose, "make the proposals of every image", ("dataset", "source")),
    "burn-in": (_burn_in, "supervised training", ("dataset", "fraction", "seed", "profile")),
    "mutual": (
        _mutual,
        "mutual learning with one method",
        ("dataset", "fraction", "method", "seed", "source"),
    ),
    "tune": (
        _tune,
        "search a method's thresholds",
        ("dataset", "fraction", "method", "seed", "source"),
    ),
    "report": (_report, "tables, figures and the page in reports/", ()),
    "summary": (_summary, "print the main table and where everything lies", ()),
    "verify": (_verify, "compare regenerated tables with the committed ones", ()),
    "use": (_use, "make a parameter file the active params.yaml", ("file",)),
    "evaluate": (_evaluate, "metrics of a checkpoint", ("checkpoint", "dataset", "split")),
    "predict": (
        _predict,
        "the mask that an expression names in a picture",
        ("checkpoint", "image", "expression", "expressions", "output"),
    ),
    "doctor": (_doctor, "say what this machine and this checkout lack", ()),
}

OPTIONS: dict[str, dict[str, object]] = {
    "--dataset": {"required": True, "metavar": "D", "help": "a key of `datasets`"},
    "--fraction": {"required": True, "type": float, "metavar": "F", "help": "labelled, percent"},
    "--method": {"required": True, "metavar": "M", "help": "a key of `refine`"},
    "--seed": {"type": int, "default": 0, "metavar": "S"},
    "--source": {"metavar": "X", "help": "a key of `proposals.sources`; default: the study's"},
    "--profile": {"action": "store_true", "help": "also write a trace that opens in Perfetto"},
    "--checkpoint": {"required": True, "help": "run folder, or a published .pth"},
    "--split": {"default": "val"},
    "--image": {"required": True, "help": "picture, or a folder for --expressions"},
    "--expression": {"metavar": "TEXT"},
    "--expressions": {"metavar": "CSV", "help": "columns image,expression"},
    "--output": {"help": "PNG, or a folder for --expressions"},
    "file": {
        "help": "one of experiments/*.yaml, or your own",
        "metavar": "FILE",
    },
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="semires",
        description="SemiRES: mutual learning whose pseudo-labels SAM proposals mend.",
        epilog="Usually `dvc repro` calls these; see dvc.yaml and params.yaml.",
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE")
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for name, (run, summary, wanted) in STAGES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        for option in wanted:
            flag = option if option in OPTIONS else f"--{option}"
            command.add_argument(flag, **OPTIONS[flag])  # type: ignore[arg-type]
    track = commands.add_parser("track", help="the MLflow store", description="the MLflow store")
    actions = track.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = actions.add_parser("sync", help="replay run records into the store, idempotently")
    sync.set_defaults(run=_track_sync)
    return parser
