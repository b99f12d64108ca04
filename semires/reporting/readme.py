"""The results block of README.md, copied from reports/ and run records; nothing in it is typed."""

from __future__ import annotations

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
    figure = "![What refinement does](reports/qualitative.png)"
    block = "\n\n".join((BEGIN, table, figure, _times() + END))
    write_text(path, before + block + after)


def _times() -> str:
    """Mean seconds of the trainings by method, with machine, date and commit, from run records."""
    records = [read_json(p) for p in sorted(layout.RUNS.glob("*/*/*/*/run.json"))]
    if not records:
        return ""
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record["cell"]["label"], []).append(record["duration_s"])
    parts = [f"{name} {sum(s) / len(s):.0f}" for name, s in seconds.items()]
    last = max(records, key=lambda r: r["finished"])
    where = last["environment"]
    return (
        f"Seconds a run, mean: {', '.join(parts)}. {len(records)} runs, the last one finished "
        f"{last['finished'][:10]} on {where['device']} with {where['threads']} threads, "
        f"torch {where['torch']}, commit {str(where['git_commit'])[:10]}; made by `make repro`.\n"
    )


if __name__ == "__main__":
    update_readme()
