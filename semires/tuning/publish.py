"""The outputs of a threshold search: its folder, the thresholds for trainings, tables in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semires import tracking
from semires.config.grid import searches
from semires.files import atomic_folder, write_json, write_text
from semires.runs import layout
from semires.runs.key import fraction_name
from semires.tuning import plots
from semires.tuning.counts import save
from semires.tuning.curves import front_table
from semires.tuning.results import PARTS, ROWS, Result
from semires.tuning.storage import hidden


def publish(result: Result, report: bool = True) -> None:
    """Write the outputs and log the search; with ``report`` also print a summary."""
    folder = layout.tune_folder(result.name)
    with atomic_folder(folder) as temporary:
        write_text(temporary / "best.yaml", best_yaml(result))
        result.trial_table.to_csv(temporary / "trials.csv", index=False)
        write_json(temporary / "summary.json", result.summary)
        result.curves.to_csv(temporary / "curves.csv", index=False)
        if result.plane is not None:
            result.plane.to_csv(temporary / "plane.csv", index=False)
        if result.front is not None:
            result.front.to_csv(temporary / "front.csv", index=False)
        for name, counts in result.parts.items():
            save(counts, temporary / f"{name}.npz", made_from="")
        plots.draw(result, temporary)
    path = layout.tuned_file(result.key)
    if reason := _not_for_training(result):
        print(f"{path}: not changed, because {reason}; the result is in {folder}")
    else:
        write_text(path, best_yaml(result, all_thresholds=True))
    tracking.sync_in_background()
    if report:
        print(text_table(result))
        if result.front is not None:
            print(front_table(result.front, len(result.trials)))


def _not_for_training(result: Result) -> str:
    """Why no method trains with the result; empty if methods do."""
    if result.name != result.key:
        return f"params.yaml searches {result.key.label} on other images than `--on`"
    path, planned = layout.tuned_file(result.key), searches(result.params)
    same = [key.seed for key in planned if layout.tuned_file(key) == path]
    seeds = same or [key.seed for key in planned]
    if seeds and result.key.seed not in seeds:
        return f"the seed of study.tune is {seeds[0]}"
    return ""


def best_yaml(result: Result, all_thresholds: bool = False) -> str:
    """The best values as YAML, with a comment that states their origin.

    ``all_thresholds`` adds the thresholds that were not searched.
    """
    settings, held_out = result.params.tune, result.summary["held_out"]
    lines = [
        f"# Best of {len(result.trials)} trials, objective {settings.objective}, "
        f"{result.key.dataset}, {fraction_name(result.key.fraction)} % labelled, "
        f"{result.name.label}, seed {result.key.seed}.",
    ]
    if result.thresholds:
        difference = held_out["best_minus_paper"]
        lines.append(
            f"# Pseudo-labels' oIoU on {PARTS[settings.on]['held_out']}: "
            f"{held_out['best']['oIoU']:.2f}, "
            f"with params.yaml's thresholds {held_out['paper']['oIoU']:.2f} (difference "
            f"{difference['value']:+.2f}, 95 % interval {difference['low']:+.2f} to "
            f"{difference['high']:+.2f})."
        )
    values = {**(result.at(result.best) if all_thresholds else {}), **result.best}
    return "\n".join([*lines, *(f"{name}: {value!r}" for name, value in values.items()), ""])


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _shown_difference(difference: Mapping[str, float]) -> str:
    return f"{difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def text_table(result: Result) -> str:
    """The summary as a table for the terminal."""
    from tabulate import tabulate

    rows = []
    for half in result.tables:
        for name in ROWS:
            metrics = result.summary[half][name]
            bounds = metrics["oIoU_interval"]
            values = {"paper": result.given, "best": result.best}.get(name, {})
            rows.append(
                [
                    PARTS[result.params.tune.on][half],
                    name,
                    _shown(values),
                    f"{metrics['oIoU']:.2f} [{bounds['low']:.2f}, {bounds['high']:.2f}]",
                    *(f"{metrics[k]:.1f}" for k in ("mIoU", "matched", "better", "worse")),
                ]
            )
    head = ["images", "labels", "values", "oIoU", "mIoU", "matched %", "better %", "worse %"]
    difference = result.summary["held_out"]["best_minus_paper"]
    text: str = (
        f"{result.study}: {len(result.trials)} trials in {hidden(result.storage)}\n"
        + tabulate(rows, headers=head, disable_numparse=True)
        + f"\nbest minus paper, held out: {_shown_difference(difference)}"
        + f"\nopen it with `optuna-dashboard '{hidden(result.storage)}'` (docs/tuning.md)"
    )
    return text


def comparison(results: Sequence[Result]) -> str:
    """Several searches as one table for the terminal: oIoU of the labels on both parts."""
    from tabulate import tabulate

    rows = []
    for result in results:
        halves = [result.summary[half] for half in ("seen", "held_out")]
        rows.append(
            [
                result.key.dataset,
                fraction_name(result.key.fraction),
                result.name.label,
                PARTS[result.params.tune.on]["seen"],
                _shown(result.given),
                _shown(result.best),
                *(f"{half[name]['oIoU']:.2f}" for half in halves for name in ROWS),
                _shown_difference(halves[1]["best_minus_paper"]),
            ]
        )
    head = ["data set", "%", "method", "images seen", "paper's values", "best values"]
    head += [f"{half}: {name}" for half in ("seen", "held out") for name in ROWS]
    head.append("held out: best - paper")
    if not rows:
        return "params.yaml lists no search: study.tune is empty"
    table: str = tabulate(rows, headers=head, disable_numparse=True)
    return f"oIoU of the refined labels, percent\n{table}"
