"""The pictures of docs/compare.md: two runs of a real store, in MLflow's UI, in a real browser.

    python docs/make_compare.py                       # mlflow.db and mlartifacts/ of this checkout
    python docs/make_compare.py --store DB --artifacts FOLDER --runs baseline-1-seed0 cpi-u-1-seed0

Needs Chromium. The store is copied first and stays as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

FOLDER = Path(__file__).parent / "compare"
WIDTH, HEIGHT = 1280, 900
WIDE = 1920  # where MLflow's compare page is narrower, it hides the list of files
WAIT_S = 120.0
KIND = "workflowType=machine_learning"  # as the UI has it after the experiment's own page


def copy_store(source: Path, target: Path) -> None:
    """Copy a database, which may be in use."""
    with (
        contextlib.closing(
            sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)
        ) as old,
        contextlib.closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def find_runs(database: Path, names: list[str]) -> tuple[str, list[str]]:
    """The experiment and the ids of the last finished runs of these names."""
    query = (
        "SELECT experiment_id, run_uuid FROM runs WHERE name = ? AND status = 'FINISHED' "
        "AND lifecycle_stage = 'active' ORDER BY start_time DESC"
    )
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = [connection.execute(query, (name,)).fetchone() for name in names]
    missing = [name for name, row in zip(names, rows, strict=True) if row is None]
    if missing:
        sys.exit(f"the store has no finished run {', '.join(missing)}")
    return str(rows[0][0]), [run for _, run in rows]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[None]:
    """A server that answers at ``url`` before the block begins and is gone after it."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(20)


class Page:
    """A browser's page, driven over its debugging protocol."""

    def __init__(self, channel: Any, folder: Path) -> None:
        self.channel, self.folder, self.number = channel, folder, 0

    async def call(self, method: str, **values: Any) -> dict[str, Any]:
        """One command and its result."""
        self.number += 1
        await self.channel.send_json({"id": self.number, "method": method, "params": values})
        while True:
            answer = await self.channel.receive_json(timeout=WAIT_S)
            if answer.get("id") == self.number:
                return dict(answer.get("result", {}))

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer.get("result", {}).get("value")

    async def until(self, expression: str) -> None:
        """Wait for an expression to become true, then for the layout to settle."""
        deadline = time.monotonic() + WAIT_S
        while not await self.value(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                text = await self.value("document.body.innerText")
                sys.exit(f"the page never came to {expression}, it says:\n{text}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(2)

    async def open(self, url: str, expression: str) -> None:
        """Load a page until it is there, without the assistant at its side."""
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=url)
        await self.until(expression)
        await self.click("[...document.querySelectorAll('button[aria-label=\"Close\"]')]")

    async def click(self, elements: str) -> None:
        """Click all elements that an expression gives."""
        await self.value(f"({elements}).forEach(e => e.click())")
        await asyncio.sleep(1.5)

    async def picture(self, name: str, height: int, width: int = WIDTH) -> None:
        """Write what is seen as a PNG of 128 colours."""
        from PIL import Image

        await self.resize(height, width)
        await self.value("document.querySelectorAll('.modebar').forEach(e => e.remove())")
        shot = await self.call("Page.captureScreenshot", format="png")
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        path = self.folder / f"{name}.png"
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{self.folder.name}/{path.name} {path.stat().st_size // 1000} kB")

    async def resize(self, height: int, width: int = WIDTH) -> None:
        """Make the window as high as what is to be seen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await asyncio.sleep(2)


async def take(debugger: str, folder: Path, visit: Callable[[Page], Awaitable[None]]) -> None:
    """All pictures of a visit, into a folder."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"{debugger}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as channel:
            await visit(Page(channel, folder))


async def visit(page: Page, server: str, experiment: str, runs: list[str]) -> None:
    """The compare page, its files, and the curves of all runs with 1 % of labels."""
    await page.resize(HEIGHT)
    wanted = quote("tags.fraction = '1' and tags.stage != 'tune'")
    url = f"{server}/#/experiments/{experiment}/runs?{KIND}&compareRunsMode=CHART"
    await page.open(f"{url}&searchFilter={wanted}", "document.querySelector('.js-plotly-plot')")
    await page.value("document.querySelector('input[placeholder^=\"Search metric\"]').focus()")
    await page.call("Input.insertText", text="val/oIoU")
    await page.picture("curves", 1180)
    which, where = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (runs, [experiment]))
    url = f"{server}/#/compare-runs?runs={which}&experiments={where}&{KIND}"
    await page.open(url, "document.querySelector('[artifact-name^=panel-]')")
    await page.click("[...document.querySelectorAll('button[role=switch]')].slice(0, 2)")
    await page.picture("compare", 1500)
    await page.resize(HEIGHT, WIDE)
    await page.click("[...document.querySelectorAll('[artifact-name=\"panel-06-random.png\"]')]")
    await page.value("document.querySelector('[artifact-name]').scrollIntoView()")
    await page.picture("panels", 420, WIDE)


@contextlib.contextmanager
def browsing(store: Path, artifacts: Path) -> Iterator[tuple[str, str, Path]]:
    """Addresses of a server of a copy of the store and of a browser's debugger, and the copy."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None or not store.is_file():
        sys.exit(f"{store}: no such file" if chromium else "chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        copy_store(store, folder / "mlflow.db")
        ports = free_port(), free_port()
        server, debugger = (f"http://127.0.0.1:{port}" for port in ports)
        serve = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
            *("--port", str(ports[0]), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(artifacts.absolute())),
        ]
        browse = [
            *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--remote-debugging-port={ports[1]}", f"--user-data-dir={folder}/profile"),
            *(f"--window-size={WIDTH},{HEIGHT}", "about:blank"),
        ]
        with (
            running(serve, f"{server}/health", folder / "server.log"),
            running(browse, f"{debugger}/json/version", folder / "browser.log"),
        ):
            yield server, debugger, folder / "mlflow.db"


def main() -> None:
    """Take the pictures."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--store", type=Path, default=Path("mlflow.db"))
    parser.add_argument("--artifacts", type=Path, default=Path("mlartifacts"))
    parser.add_argument("--runs", nargs="+", default=["baseline-1-seed0", "cpi-u-1-seed0"])
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with browsing(options.store, options.artifacts) as (server, debugger, database):
        experiment, runs = find_runs(database, options.runs)
        asyncio.run(take(debugger, FOLDER, lambda page: visit(page, server, experiment, runs)))


if __name__ == "__main__":
    main()
