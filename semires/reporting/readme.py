"""README.md's two blocks: results from reports/ and run records, seconds from the stages' notes.

`python -m semires.reporting.readme results` (or `times`) renews one, without a word both. Nothing
between the marks is typed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from semires.files import write_text
from semires.process import STAGE_TIMES
from semires.runs import layout
from semires.runs.record import Provenance, RunRecord, run_folders


def update_readme(blocks: Iterable[str], path: Path = Path("README.md")) -> None:
    """Replace what stands between the marks of each block (`results`, `times`)."""
    text = path.read_text(encoding="utf-8")
    for block in blocks:
        begin, end = f"<!-- {block} -->", f"<!-- /{block} -->"
        before, rest = text.split(begin)
        made = {"results": _results, "times": _times}[block]()
        text = "\n\n".join((before + begin, made, end + rest.split(end)[1]))
    write_text(path, text)


def _results() -> str:
    """Main table, listening table, one figure, and what they were made with."""
    parts = [
        "#" + (layout.REPORTS / f"{name}.md").read_text(encoding="utf-8").strip()  # below the title
        for name in ("main", "listening")
    ]
    parts.append("![What refinement does](reports/qualitative.png)")
    records = _records()
    hours = sum(made.duration_s for _, made in records if made) / 3600
    parts.append(
        f"Made from {len(records)} runs of {hours:.1f} hours in all (two side by side take half), "
        f"{_made_with(records)}."
    )
    return "\n\n".join(parts)


def _records() -> list[tuple[RunRecord, Provenance | None]]:
    return [(RunRecord.read(folder), Provenance.read(folder)) for folder in run_folders()]


def _made_with(records: list[tuple[RunRecord, Provenance | None]]) -> str:
    """Machine, threads, versions, commits and dates of runs."""
    places = [
        {**record.numerics, "git_commit": made and made.git_commit} for record, made in records
    ]

    def values(name: str) -> str:
        return ", ".join(sorted({str(place[name])[:12] for place in places}))

    threads = f"{values('threads')} thread{'s' * (values('threads') != '1')}"
    dates = sorted(made.finished[:10] for _, made in records if made) or ["?"]
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"on {values('device')} with {threads}, torch {values('torch')}, "
        f"commit {values('git_commit')}, {when}"
    )


def _times() -> str:
    """Seconds of each kind of stage as DVC last ran it."""
    lines = STAGE_TIMES.read_text(encoding="utf-8").splitlines()
    latest = {row["stage"]: row for row in map(json.loads, lines)}
    kinds: dict[str, list[float]] = {}
    for stage, row in latest.items():
        kinds.setdefault(stage.partition("@")[0], []).append(float(row["seconds"]))
    rows = [
        f"| {kind} | {len(s)} | {sum(s) / len(s):.1f} | {sum(s):.0f} |" for kind, s in kinds.items()
    ]
    total = sum(sum(seconds) for seconds in kinds.values())
    records = _records()
    return "\n".join(
        (
            "| stage | runs | seconds a run | seconds |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            f"| all | {len(latest)} | | {total:.0f} |",
            "",
            f"Each stage as `dvc repro` last ran it, {_made_with(records)}.",
        )
    )


if __name__ == "__main__":
    update_readme(sys.argv[1:] or ["results", "times"])
