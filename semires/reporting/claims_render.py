"""Judged claims as CSV, Markdown and HTML, and their counts in one line."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from semires.config.schema import Params
from semires.reporting import markup
from semires.reporting.claims import NOT_RUN, VERDICTS, Judgement
from semires.reporting.definitions import display_name
from semires.reporting.render import csv_of, csv_text, md, md_note, plain, signed

CLAIM_COLUMNS = [
    *("id", "dataset", "fraction", "split", "metric", "left", "right", "paper", "ours", "low"),
    *("high", "seeds", "verdict"),
]
_TITLES = ["Higher", "Lower", "%", "Paper", "Ours [95 % interval]", "Seeds", "Verdict"]


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
    for dataset, group in _by_dataset(judgements):
        lines += [f"## {md(display_name(params, dataset))}", "", f"{_counts(group)}.", ""]
        rows = []
        for claim, judged in groupby(group, key=lambda j: j.claim):
            rows.append([f"**{md(claim.claim)}** {md(claim.where)}", *[""] * (len(_TITLES) - 1)])
            rows += [[*map(md, _cells(j)[:-1]), _verdict(j)] for j in judged]
        lines += [*markup.pipe_table(_TITLES, rows, left=(0, 1, 6)), ""]
    return "\n".join([*lines, *(f"- {md_note(note)}" for note in notes(judgements))]) + "\n"


def claims_html(params: Params, judgements: list[Judgement]) -> str:
    """The same for the page, with a link from each claim to its table or figure."""
    parts = []
    for dataset, group in _by_dataset(judgements):
        name = html.escape(display_name(params, dataset))
        parts.append(f"<p><strong>{name}: {html.escape(_counts(group))}.</strong></p>")
        parts.append('<div class="scroll"><table class="claims">')
        parts.append(markup.head(_TITLES))
        for claim, rows in groupby(group, key=lambda j: j.claim):
            judged = list(rows)
            link = f'<a href="#s-{html.escape(judged[0].link)}">{html.escape(claim.where)}</a>'
            title = f"{html.escape(claim.claim)} {link}"
            parts.append(f"<tbody>{markup.section(title, len(_TITLES))}")
            parts += [_html_row(j) for j in judged]
            parts.append("</tbody>")
        parts.append("</table></div>")
    return "\n".join([*parts, markup.notes(map(markup.note, notes(judgements)))])


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


def _by_dataset(judgements: list[Judgement]) -> list[tuple[str, list[Judgement]]]:
    datasets = dict.fromkeys(j.dataset for j in judgements)
    return [(name, [j for j in judgements if j.dataset == name]) for name in datasets]


def _counts(group: list[Judgement]) -> str:
    """Counts of the paper's claims and, separately, of ours."""
    line = count_line(j.verdict for j in group if j.claim.in_paper).replace(
        "claims supported", "claims of the paper supported"
    )
    ours = [j.verdict for j in group if not j.claim.in_paper]
    return f"{line}; of our own, {count_line(ours)}" if ours else line


def _cells(j: Judgement) -> list[str]:
    right = j.right
    if j.claim.margin:
        right += f" + {j.claim.margin:g} points"
    if (j.split, j.metric) != ("val", "oIoU"):
        right += f" ({j.metric}, {j.split})"
    ours = "–" if j.ours is None else signed(j.ours)
    if j.low is not None and j.high is not None:
        ours += f" [{signed(j.low)}, {signed(j.high)}]"
    paper = "–" if j.paper is None else signed(j.paper)
    return [j.left, right, j.fraction, paper, ours, str(j.seeds or "–"), j.verdict]


def _verdict(j: Judgement) -> str:
    return j.verdict if j.verdict in (NOT_RUN, "undecided") else f"**{j.verdict}**"


def _html_row(j: Judgement) -> str:
    left, right, *cells = _cells(j)
    numbers = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[:-1])
    title = f' title="{html.escape(j.reason.replace("`", ""))}"' if j.reason else ""
    kind = j.verdict.replace(" ", "-")
    names = "".join(f'<th scope="row">{html.escape(name)}</th>' for name in (left, right))
    return f'<tr>{names}{numbers}<td class="verdict {kind}"{title}>{j.verdict}</td></tr>'
