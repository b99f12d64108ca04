"""The pictures of docs/tuning.md: a search in MLflow's UI and in optuna-dashboard, in a browser.

    python docs/make_tuning.py                    # the stores of this checkout
    python docs/make_tuning.py --run tune-cpi-1-seed0

Needs Chromium; without optuna-dashboard, its picture is left out. Both stores are copied first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from make_compare import (
    HEIGHT,
    KIND,
    WIDE,
    Page,
    browsing,
    copy_store,
    find_runs,
    free_port,
    running,
    take,
)

FOLDER = Path(__file__).parent / "tuning"
STUDIES = Path(".work/optuna/studies.db")
# The innermost element with this text opens the list of columns, which has a box for each group.
MORE_COLUMNS = (
    "[...document.querySelectorAll('*')].filter("
    "e => e.textContent.trim().startsWith('Show more columns')).pop()"
)
CHECKBOX = (
    "[...document.querySelectorAll('[class*=tree-treenode]')].filter("
    "e => e.textContent.trim().startsWith('%s')).slice(0, 1)"
    ".map(e => e.querySelector('[class*=tree-checkbox]'))"
)


@contextlib.contextmanager
def dashboard() -> Iterator[str | None]:
    """The address of optuna-dashboard on a copy of the studies; None if it is not installed."""
    program = shutil.which("optuna-dashboard", path=Path(sys.executable).parent)
    if program is None or not STUDIES.is_file():
        print("optuna-dashboard: not installed, or no studies; its picture is left out")
        yield None
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        copy_store(STUDIES, Path(name) / "studies.db")
        port = free_port()
        command = [program, f"sqlite:///{name}/studies.db", "--port", str(port)]
        with running(command, f"http://127.0.0.1:{port}", Path(name) / "dashboard.log"):
            yield f"http://127.0.0.1:{port}"


async def visit(page: Page, server: str, experiment: str, run: str, studies: str | None) -> None:
    """The searches as a table, the curves of one search, and its study."""
    await page.resize(HEIGHT, WIDE)
    url = f"{server}/#/experiments/{experiment}/runs?{KIND}&searchFilter="
    row = "document.querySelector('[role=row] a[href*=\"/runs/\"]')"
    await page.open(url + quote("tags.stage = 'tune'"), row)
    await page.click(f"[{MORE_COLUMNS}].filter(Boolean)")
    for group in ("Metrics", "Attributes", "Attributes"):  # all metrics; all attributes, then none
        await page.click(CHECKBOX % group)
    await page.call(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="Escape",
        code="Escape",
        windowsVirtualKeyCode=27,
    )
    await page.picture("searches", 500, WIDE)
    artifact = "document.querySelector('[artifact-name=\"curves.png\"]')"
    await page.open(f"{server}/#/experiments/{experiment}/runs/{run}/artifacts", artifact)
    await page.click(f"[{artifact}]")
    await page.picture("curves", HEIGHT, WIDE)
    if studies is not None:
        await page.open(f"{studies}/dashboard", "document.querySelector('a[href*=studies]')")
        await page.click("[document.querySelector('a[href*=studies]')]")
        await page.until("document.querySelector('.js-plotly-plot')")
        await page.picture("dashboard", HEIGHT, WIDE)


def main() -> None:
    """Take the pictures."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--store", type=Path, default=Path("mlflow.db"))
    parser.add_argument("--artifacts", type=Path, default=Path("mlartifacts"))
    parser.add_argument("--run", default="tune-cpi-1-seed0")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with (
        browsing(options.store, options.artifacts) as (server, debugger, database),
        dashboard() as studies,
    ):
        experiment, (run,) = find_runs(database, [options.run])
        asyncio.run(
            take(debugger, FOLDER, lambda page: visit(page, server, experiment, run, studies))
        )


if __name__ == "__main__":
    main()
