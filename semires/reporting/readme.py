"""The results block of README.md, copied from reports/ and run records; nothing in it is typed."""

from __future__ import annotations

import json
from pathlib import Path

from semires import layout
from semires.files import read_json, write_text

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def update_readme(path: Path = Path("README.md")) -> None:
    """Replace what stands between the two marks by the last run's main table and times."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = (layout.REPORTS / "main.md").read_text(encoding="utf-8").strip()
    listening = (layout.REPORTS / "listening.md").read_text(encoding="utf-8").strip()
    figure = "![What refinement does](reports/qualitative.png)"
    block = "\n\n".join((BEGIN, table, listening, figure, _times() + END))
    write_text(path, before + block + after)


def _times() -> str:
    """Seconds of each kind of stage as DVC last ran it, with machine, date and commit."""
    records = [read_json(p) for p in sorted(layout.RUNS.glob("*/*/*/*/run.json"))]
    if not records or not layout.STAGE_TIMES.is_file():
        return ""
    lines = layout.STAGE_TIMES.read_text(encoding="utf-8").splitlines()
    latest = {row["stage"]: float(row["seconds"]) for row in map(json.loads, lines)}
    kinds: dict[str, list[float]] = {}
    for stage, seconds in latest.items():
        kinds.setdefault(stage.partition("@")[0], []).append(seconds)
    rows = [
        f"| {kind} | {len(s)} | {sum(s) / len(s):.1f} | {sum(s):.0f} |" for kind, s in kinds.items()
    ]
    last = max(records, key=lambda r: r["finished"])
    where = last["environment"]
    return "\n".join(
        (
            "| stage | runs | seconds a run | seconds |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            f"| all | {len(latest)} | | {sum(latest.values()):.0f} |",
            "",
            f"Each stage as `dvc repro` last ran it, up to {last['finished'][:10]}, on "
            f"{where['device']} with {where['threads']} threads, torch {where['torch']}, "
            f"commit {str(where['git_commit'])[:10]}.",
            "",
        )
    )


if __name__ == "__main__":
    update_readme()
