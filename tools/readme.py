"""README.md's generated blocks: `python tools/readme.py [results] [pipeline] [times]`.

`results` and `claims` come from the committed report, `pipeline` from dvc.yaml, `numerics` from
experiments/numerics/digests.csv, `times` from the stages' notes and the run records of this
machine. Without a name all blocks are updated.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from semires.errors import SemiresError
from semires.files import write_text
from semires.process import STAGE_TIMES
from semires.reporting.claims import NOT_RUN, VERDICTS, load_claims
from semires.reporting.claims_render import count_line
from semires.reporting.definitions import DISPLAY_NAMES, load_definitions
from semires.reporting.formats import md, pipe_table
from semires.runs import layout
from semires.runs.record import Provenance, RunRecord, run_folders

#: The compact table's rows: method of main.csv -> name.
ROWS = {"supervised": "Supervised", "baseline": "Baseline", "cpi-u": "SemiRES (CPI-U)"}
SPLIT = "val"
MOST_DIFFERENCES = 4  # a row of claims lists no more
DIGESTS = Path("experiments/numerics/digests.csv")
README = Path("README.md")
FILES = {"numerics": Path("docs/reliability.md")}  # blocks of other files
#: The columns of the table of digests: column of `DIGESTS` -> title.
DIGEST_COLUMNS = {
    "cpu": "CPU", "profile": "profile", "torch": "torch", "logits": "logits",
    "gradients": "gradients", "weights_1": "1 step", "weights_10": "10 steps",
    "weights_20": "20 steps", "mutual_20": "20 more, mutual", "ms_per_step": "ms per step",
}  # fmt: skip
Line = dict[str, str]


def update_readme(blocks: Iterable[str], path: Path | None = None) -> None:
    """Replace the text between the marks of each block, in ``path`` or in its own file.

    Raises:
        SemiresError: a block does not exist, or its marks or its source are missing.
    """
    blocks = list(blocks)
    for block in blocks:
        if block not in BLOCKS:
            raise SemiresError(f"{block}: no such block; there are {', '.join(BLOCKS)}")
    for block in blocks:
        _update(block, path or FILES.get(block, README))


def _update(block: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SemiresError(f"{path}: needs {begin} and {end} once each")
    before, rest = text.split(begin)
    made = BLOCKS[block]()
    parts = (before + begin, *([made] if made else []), end + rest.split(end)[1])
    write_text(path, "\n\n".join(parts))


def _report() -> Path:
    """The folder of the results to show: those of `make study` if they are there."""
    study = layout.REPORTS / "study"
    return study if (study / "main.csv").is_file() else layout.REPORTS


def _lines(path: Path) -> list[Line]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _results() -> str:
    """The claims in one line, val overall IoU of the first data set, Figure 1."""
    folder = _report()
    lines = [line for line in _lines(folder / "main.csv") if line["split"] == SPLIT]
    parts = [_claims_line(folder)]
    made = [line["dataset"] for line in lines if line["method"] == "cpi-u" and line["value"]]
    for dataset in made[:1]:
        parts.append(_compact(dataset, [line for line in lines if line["dataset"] == dataset]))
    figure = folder / "figure1.png"
    parts.append(f"![Overall IoU against hours of labelling, ours and the paper's]({figure})")
    return "\n\n".join(part for part in parts if part)


def _compact(dataset: str, found: list[Line]) -> str:
    fractions = dict.fromkeys(line["fraction"] for line in found)
    made = {(line["method"], line["fraction"]): line for line in found if line["value"]}
    values = {
        key: line["value"] + (line["sd"] and f" ± {line['sd']}") for key, line in made.items()
    }
    titles = [f"{DISPLAY_NAMES.get(dataset, dataset)}, {SPLIT}", *(f"{f} %" for f in fractions)]
    rows = [
        [title, *(values.get((method, fraction), "–") for fraction in fractions)]
        for method, title in ROWS.items()
    ]
    seeds = sorted({line["seeds"] for (method, _), line in made.items() if method in ROWS})
    over = f"{' or '.join(seeds)} seed{'s' * (seeds != ['1'])}"
    deviation = "" if seeds == ["1"] else " ± standard deviation"
    note = f"Overall IoU in percent by labelled fraction, mean{deviation} over {over}."
    return "\n".join([*pipe_table(titles, rows), "", note])


def _claims_line(folder: Path) -> str:
    path = folder / "claims.csv"
    if not path.is_file():
        return ""
    in_paper = {claim.id for claim in load_claims(*load_definitions()) if claim.in_paper}
    verdicts = [line["verdict"] for line in _lines(path) if line["id"] in in_paper]
    line = count_line(verdicts).replace("claims", "claims of the paper", 1)
    return f"**{line}**: [claim by claim]({folder}/claims.md)."


def _claims() -> str:
    """One line per claim of the paper: its place, our differences, the number of each verdict.

    More than four differences are given as their range. The last line counts the verdicts of this
    project's own claims.
    """
    path = _report() / "claims.csv"
    if not path.is_file():
        return ""
    found: dict[str, list[Line]] = {}
    for line in _lines(path):
        found.setdefault(line["id"], []).append(line)
    rows, own, not_run = [], Counter[str](), 0
    for claim in load_claims(*load_definitions()):
        lines = found.get(claim.id, [])  # a claim that the report leaves out has no line
        counts = Counter(line["verdict"] for line in lines)
        if set(counts) <= {NOT_RUN}:
            not_run += bool(lines)
        elif claim.in_paper:
            ours = differences([float(line["ours"]) for line in lines if line["ours"]])
            where = claim.where.partition(" (")[0]
            rows.append([md(claim.claim), md(where), ours, _verdicts(counts)])
        else:
            own += counts
    if own:
        rows.append(["Claims of this project", "not in the paper", "", _verdicts(own)])
    titles = ["claim", "where", "left - right, points", "verdict"]
    table = "\n".join(pipe_table(titles, rows, left=range(4)))
    return f"{table}\n\nNot run here: {not_run} claims." if not_run else table


def differences(values: list[float]) -> str:
    """Signed numbers with one decimal, or their range if there are many."""
    shown = values if len(values) <= MOST_DIFFERENCES else [min(values), max(values)]
    return (", " if shown is values else " to ").join(f"{value:+.1f}" for value in shown)


def _verdicts(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])


def _digests() -> str:
    """Digests of the probe by CPU and profile, and the time of a step."""
    lines = _lines(DIGESTS)
    busy = [line for line in lines if line["machine"] == "busy"]
    for line in busy:
        line["ms_per_step"] += "*"
    rows = [[md(line[column]) for column in DIGEST_COLUMNS] for line in lines]
    titles = list(DIGEST_COLUMNS.values())
    table = pipe_table(titles, rows, left=range(len(titles)))
    return "\n".join([*table, *(["", "\\* measured beside other work"] if busy else [])])


def _pipeline() -> str:
    """The stages of dvc.yaml as a Mermaid graph, from `dvc dag`."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--mermaid", "--collapse-foreach-matrix"],
        capture_output=True, text=True, check=False, env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SemiresError(f"`dvc dag` failed: {done.stderr.strip()}")
    return mermaid(done.stdout)


def mermaid(graph: str) -> str:
    """`dvc dag --mermaid` as a Markdown block, one line per stage with all that follows it."""
    names = dict(re.findall(r'(node\d+)\["(.*?)"\]', graph))
    after: dict[str, list[str]] = {}
    for source, target in re.findall(r"(node\d+)-->(node\d+)", graph):
        after.setdefault(names[source], []).append(names[target])
    joined = {stage for targets in after.values() for stage in targets} | after.keys()
    lines = [f"  {stage}" for stage in names.values() if stage not in joined]
    lines += [f"  {stage} --> {' & '.join(targets)}" for stage, targets in after.items()]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def _made_with() -> str:
    """Machine, threads, versions, commits and dates of runs."""
    records = [(RunRecord.read(folder), Provenance.read(folder)) for folder in run_folders()]
    places = [
        {**record.numerics, "git_commit": made and made.git_commit} for record, made in records
    ]
    device, threads, torch, commit = (
        ", ".join(sorted({str(place.get(name))[:12] for place in places}))
        for name in ("device", "threads", "torch", "git_commit")
    )
    dates = sorted(made.finished[:10] for _, made in records if made) or ["?"]
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    several = "s" * (threads != "1")
    return f"on {device} with {threads} thread{several}, torch {torch}, commit {commit}, {when}"


def _times() -> str:
    """Seconds of each kind of stage as DVC last ran it."""
    if not STAGE_TIMES.is_file():
        raise SemiresError(f"{STAGE_TIMES}: no stage has run here; run `make repro` first")
    lines = STAGE_TIMES.read_text(encoding="utf-8").splitlines()
    latest = {row["stage"]: row for row in map(json.loads, lines)}
    kinds: dict[str, list[float]] = {}
    for stage, row in latest.items():
        kinds.setdefault(stage.partition("@")[0], []).append(float(row["seconds"]))
    means = [f"{sum(s) / len(s):.1f}" for s in kinds.values()]
    totals = [sum(s) for s in kinds.values()]
    rows = [
        ["runs", *map(str, (len(latest), *map(len, kinds.values())))],
        ["seconds a run", "", *means],
        ["seconds", *(f"{total:.0f}" for total in (sum(totals), *totals))],
    ]
    note = f"Each stage as `dvc repro` last ran it, {_made_with()}."
    return "\n".join([*pipe_table(["stage", "all", *kinds], rows), "", note])


BLOCKS: dict[str, Callable[[], str]] = {
    "results": _results,
    "claims": _claims,
    "pipeline": _pipeline,
    "numerics": _digests,
    "times": _times,
}


if __name__ == "__main__":
    try:
        update_readme(sys.argv[1:] or list(BLOCKS))
    except SemiresError as error:
        print(f"semires: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
