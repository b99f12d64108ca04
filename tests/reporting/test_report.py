"""The whole `reports/` folder: files, byte stability, the page in a browser, the printout."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import TESTS, fake_runs

from semires.reporting.records import load_records
from semires.reporting.report import print_summary, report
from semires.runs.key import RunKey
from semires.runs.record import run_folders
from semires.tracking import UI

TABLES = ["main", *(f"table{n}" for n in range(2, 10))]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def made(made_workspace, small_params):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made_workspace)
        report(small_params)
    return made_workspace / "reports"


def test_every_format_of_every_table_and_figure(made):
    names = {path.name for path in made.iterdir()}
    for table in TABLES:
        endings = (".md", ".csv", ".tex", "_miou.tex")
        assert {f"{table}{ending}" for ending in endings} <= names
    assert {"main_differences.csv", "metrics.json", "summary.json", "index.html"} <= names
    assert {"claims.md", "claims.csv", "runs.csv", "logs"} <= names
    figures = ("figure1", "figure3-cpi-u", "figure6", "figure7", "qualitative")
    for figure in figures:
        assert {f"{figure}.png", f"{figure}.svg"} <= names
    assert {"labels.md", "labels.csv", "labels.png", "labels.svg"} <= names
    assert "| CPI-U | 41.0 | 46.0 |" in (made / "labels.md").read_text()
    assert 'href="labels.md"' in (made / "index.html").read_text()


def test_metrics_are_the_main_tables_numbers(made):
    metrics = json.loads((made / "metrics.json").read_text())
    line = next(
        line.split(",")
        for line in (made / "main.csv").read_text().splitlines()
        if line.startswith("main,refscenes,10,Baseline,baseline,testA,")
    )
    assert metrics["refscenes"]["10"]["baseline"]["testA"] == float(line[7])


def test_the_same_study_gives_the_same_bytes(made, own_workspace, small_params, capsys):
    for key in (RunKey("refscenes", 1, "sepl", 0), RunKey("refscenes", 1, "cpi-u", 2)):
        fake_runs.write_run(key)  # of another study
    (own_workspace / "reports").mkdir()
    # of `make bench`, `make gpu` and the reports of other studies
    kept = {"benchmarks.md": b"fast", "growth.svg": b"<svg/>", "gpu.md": b"a GPU"}
    for folder in ("study", "beyond"):
        (own_workspace / "reports" / folder).mkdir()
        kept[f"{folder}/main.csv"] = folder.encode()
    for name, content in {**kept, "old.md": b"?", "logs.csv": b"?"}.items():
        (own_workspace / "reports" / name).write_bytes(content)
    report(small_params)
    assert contents(own_workspace / "reports") == contents(made) | kept
    assert "2 runs are in no block of study.runs and are left out" in capsys.readouterr().out


def test_where_and_when_runs_were_made_does_not_matter(made, own_workspace, small_params):
    """Another order of making, other times, host and commit, other settings of matplotlib."""
    for folder in sorted(run_folders(), reverse=True):
        (folder / "provenance.json").unlink()
        aside = shutil.move(folder, "aside")
        shutil.move(aside, folder)
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    Path("matplotlibrc").write_text("font.size: 20\nfont.family: serif\n")
    program = [sys.executable, "-m", "helpers.report_study"]
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    subprocess.run(program, env=environment, check=True)
    assert contents(own_workspace / "reports") == contents(made)


def contents(folder):
    paths = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_without_any_run_everything_is_a_dash(tmp_path, monkeypatch, own_workspace, small_params):
    shutil.rmtree("runs")
    shutil.rmtree("labels")
    report(small_params)
    assert not list(Path("reports").glob("labels*"))
    assert "labels.md" not in Path("reports/index.html").read_text()
    page = (own_workspace / "reports/index.html").read_text()
    assert "no run yet" in page
    assert json.loads((own_workspace / "reports/metrics.json").read_text()) == {}


def test_page_is_complete_and_loads_only_files_beside_it(made):
    page = (made / "index.html").read_text()

    class Collect(HTMLParser):
        ids, sources, tags = [], [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            for key, value in attrs:
                if key == "id":
                    self.ids.append(value)
                if key in ("src", "href") and tag in ("img", "script", "link", "a"):
                    self.sources.append(value)

    found = Collect()
    found.feed(page)
    linked = []
    assert set(TABLES) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert "script" not in found.tags
    for source in found.sources:
        if source.startswith("#"):
            assert source[1:] in found.ids
        elif source.startswith(UI):
            linked.append(source)
        elif source != "data:,":  # no icon
            assert (made / unquote(source)).is_file()
    pictures = [source for source in found.sources if source.endswith(".png")]
    assert {path.name for path in made.glob("*.png")} == {*pictures, "qualitative.png"}
    assert page.count('loading="lazy"') == len(pictures)
    assert len(page) < 500_000
    assert len(linked) == len(load_records(made.parent / "runs").all)
    name = "tags.%60semires.key%60%20%3D%20%27runs%2Frefscenes%2F10%2Fcpi-u%2Fseed1%27"
    assert f"{UI}/#/experiments/1/runs?workflowType=machine_learning&searchFilter={name}" in linked
    assert "prefers-color-scheme" in page
    assert "cpi-u-10-seed1" in page
    assert "mutual.ema" in page


def test_what_records_say_is_data(own_workspace, small_params):
    folder = RunKey("refscenes", 1, "baseline", 0).folder
    fake_runs.change(folder, numerics={"device": "<script>alert(1)</script>{{ 7 * 7 }}"})
    report(small_params)
    page = (own_workspace / "reports/index.html").read_text()
    assert "<script>" not in page
    assert "{{ 7 * 7 }}" in page


def test_printed_summary_has_the_main_table(workspace, small_params, capsys):
    print_summary(small_params)
    printed = capsys.readouterr().out
    for label in ("Supervised", "Baseline", "SemiRES (CPI-U)", "1 % labelled", "index.html"):
        assert label in printed
    assert re.search(r"Baseline +[│|] +\d\d\.\d\d ± \d\.\d\d", printed)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (360, "dark")])
def test_page_in_a_browser(made, tmp_path, width, scheme):
    """Every table is laid out, nothing is wider than the window, and the console is silent."""
    probe = """<script>addEventListener('load', () => {
      const wide = document.documentElement.scrollWidth > WIDTH;
      const shown = [...document.querySelectorAll('table[id]')].filter(
        t => t.closest('details') || t.getBoundingClientRect().height > 30);
      const broken = [...document.images].filter(i => !i.complete || !i.naturalWidth);
      const ids = shown.map(t => t.id).join(' ');
      document.title = `wide=${wide} broken=${broken.length} tables=${ids}`; });</script>"""
    page = (made / "index.html").read_text().replace('loading="lazy"', "")
    page = page.replace("<body>", f'<body style="width:{width}px">')  # headless is 500 px at least
    probe = f'<base href="{made.as_uri()}/">' + probe.replace("WIDTH", str(max(width, 500)))
    page = page.replace("</head>", probe + "</head>")
    (tmp_path / "page.html").write_text(page)
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         *dark, f"--user-data-dir={tmp_path}/profile", f"--window-size={max(width, 500)},2000",
         f"--screenshot={tmp_path}/page.png", "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert title.startswith("wide=false broken=0 tables=main")
    assert all(table in title for table in TABLES)
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 10_000
