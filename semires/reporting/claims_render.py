"""Judged claims as CSV and Markdown, and their counts in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from semires.config.schema import Params
from semires.reporting.claims import NOT_RUN, VERDICTS, Claim, Judgement
from semires.reporting.definitions import display_name
from semires.reporting.formats import csv_of, csv_text, md, md_note, pipe_table, plain, signed

CLAIM_COLUMNS = [
    *("id", "dataset", "fraction", "split", "metric", "left", "right", "paper", "ours", "low"),
    *("high", "seeds", "verdict"),
]
TITLES = ["Higher", "Lower", "%", "Paper", "Ours [95 % interval]", "Seeds", "Verdict"]


def claims_csv(judgements: Iterable[Judgement]) -> str:
    """One line per judged inequality; differences in percentage points, two decimals."""
    return csv_of(CLAIM_COLUMNS, map(_csv_line, judgements))


def _csv_line(j: Judgement) -> dict[str, str]:
    line = {name: csv_text(getattr(j, name)) for name in CLAIM_COLUMNS[:7]}
    numbers = {name: getattr(j, name) for name in ("paper", "ours", "low", "high")}
    line |= {name: plain(number) for name, number in numbers.items() if number is not None}
    return {**line, "seeds": str(j.seeds or ""), "verdict": j.verdict}


def count_line(verdicts: Iterable[str]) -> str:
    """``N of M claims supported (K contradicted, U undecided, X not run)``; M claims were run."""
    counts = Counter(verdicts)
    judged = sum(n for verdict, n in counts.items() if verdict != NOT_RUN)
    rest = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS[1:] if counts[verdict]]
    line = f"{counts[VERDICTS[0]]} of {judged} claims supported"
    return f"{line} ({', '.join(rest)})" if rest else line


def claims_markdown(params: Params, judgements: list[Judgement]) -> str:
    """A section for each data set: its counts and a table of claims."""
    lines = ["# The paper's claims, judged", ""]
    for dataset, counts, claims in by_dataset(params, judgements):
        lines += [f"## {md(dataset)}", "", f"{counts}.", ""]
        rows = []
        for claim, judged in claims:
            rows.append([f"**{md(claim.claim)}** {md(claim.where)}", *[""] * (len(TITLES) - 1)])
            rows += [[*map(md, cells(j)), _verdict(j)] for j in judged]
        lines += [*pipe_table(TITLES, rows, left=(0, 1, 6)), ""]
    return "\n".join([*lines, *(f"- {md_note(note)}" for note in notes(judgements))]) + "\n"


def notes(judgements: list[Judgement]) -> list[str]:
    """The meaning of numbers and verdicts, and the commands that make missing runs."""
    result = [
        "Paper, Ours: higher minus lower in percentage points, of overall IoU on val unless the "
        "row states otherwise. The paper's differences are on RefCOCO if the data set is not "
        "one of the paper's.",
        "Interval: paired bootstrap over images and seeds together. Supported: the interval is "
        "above 0, or above the claim's margin. Contradicted: it is below. Undecided: it contains "
        "0 or the margin.",
        "Pseudo-labels: the share that refinement makes better minus the share that it makes "
        "worse. Smallest difference: of all evaluations during training, over seeds only, since "
        "they are not recorded by image.",
    ]
    if any(j.seeds == 1 for j in judgements):
        result.append("With one seed, the interval covers images only.")
    missing: dict[str, list[str]] = {}
    for j in judgements:
        if j.verdict == NOT_RUN:
            missing.setdefault(j.reason, []).append(j.id)
    for reason, ids in missing.items():
        result.append(f"Not run: {', '.join(dict.fromkeys(ids))}; {reason}.")
    return result


def by_dataset(
    params: Params, judgements: list[Judgement]
) -> Iterator[tuple[str, str, list[tuple[Claim, list[Judgement]]]]]:
    """For each data set its name, the counts of verdicts, and the judgements by claim."""
    for dataset in dict.fromkeys(j.dataset for j in judgements):
        group = [j for j in judgements if j.dataset == dataset]
        by_claim = [(claim, list(js)) for claim, js in groupby(group, key=lambda j: j.claim)]
        yield display_name(params, dataset), _counts(group), by_claim


def _counts(group: list[Judgement]) -> str:
    """Counts of the paper's claims and, separately, of ours."""
    line = count_line(j.verdict for j in group if j.claim.in_paper).replace(
        "claims supported", "claims of the paper supported"
    )
    ours = [j.verdict for j in group if not j.claim.in_paper]
    return f"{line}; of our own, {count_line(ours)}" if ours else line


def cells(j: Judgement) -> list[str]:
    """The cells under TITLES, without the verdict."""
    right = j.right
    if j.claim.margin:
        right += f" + {j.claim.margin:g} points"
    if (j.split, j.metric) != ("val", "oIoU"):
        right += f" ({j.metric}, {j.split})"
    ours = "–" if j.ours is None else signed(j.ours)
    if j.low is not None and j.high is not None:
        ours += f" [{signed(j.low)}, {signed(j.high)}]"
    paper = "–" if j.paper is None else signed(j.paper)
    return [j.left, right, j.fraction, paper, ours, str(j.seeds or "–")]


def _verdict(j: Judgement) -> str:
    return j.verdict if j.verdict in (NOT_RUN, "undecided") else f"**{j.verdict}**"
