"""CSV, Markdown, LaTeX and HTML: rounding, escaping, and that LaTeX and HTML take them."""

import csv
import io
import re
import shutil
import string
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semires.reporting import formats, grids
from semires.reporting.page import by_metric, templates
from semires.reporting.selection import Value
from semires.reporting.tables import FilledRow, FilledTable, TableSection

SPLITS = {"val": "val", "testA": "testA"}
NASTY = "=cmd|'/c calc'!A0 <script>alert(1)</script> & 5_% $x^2$ {\\input{/etc/passwd}} #~ [é→]"


def table(label=NASTY, comparable=False, name="t_1"):
    value, paper = Value(43.705, 41.0, 46.125, 0.8, 3, 60, 348), {"val": 32.26, "testA": 35.71}
    rows = [
        FilledRow(label, "m", "1", (True, False), {"oIoU": {"val": value}}, paper),
        FilledRow("empty", "n", "1", (False, False), footnote=0),
    ]
    sections = [TableSection(f"D {label}", "d", "1", comparable, rows, SPLITS)]
    notes = [f"a note: {label}", "in percent, 95 % of * and `code_x %`."]
    footnotes = [f"no run: `dvc exp run -S 'a=[1]' --x {label.replace('`', '')}` fills it."]
    return FilledTable(
        name, label, "Claim & 5 %", label, ["val", "testA"], ["A_1", "B"], sections, notes,
        footnotes,
    )  # fmt: skip


def to_html(shown):
    return str(templates().get_template("parts").module.tables(by_metric(shown)))


def test_csv_has_one_line_per_number_rounded_to_two_decimals():
    lines = list(csv.DictReader(io.StringIO(grids.to_csv(table("CPI-U")))))
    assert len(lines) == 4
    assert lines[0]["value"] == f"{43.705:.2f}"
    assert (lines[0]["ci_low"], lines[0]["ci_high"], lines[0]["sd"]) == ("41.00", "46.12", "0.80")
    assert (lines[0]["paper"], lines[0]["comparable"]) == ("32.26", "no")
    assert lines[1]["value"] == ""
    assert lines[1]["paper"] == "35.71"
    assert lines[2]["missing"].startswith("no run: dvc exp run")


@given(st.text(string.printable, max_size=30))
def test_csv_text_is_never_a_formula_and_survives_a_round_trip(text):
    cell = formats.csv_text(text)
    assert cell.lstrip()[:1] not in ("=", "+", "-", "@")
    assert not set(cell) & set("\t\r\n")
    lines = list(csv.DictReader(io.StringIO(grids.to_csv(table(text or "x")))))
    assert len(lines) == 4
    assert set(lines[0]) == set(grids.CSV_COLUMNS)


def test_markdown_rows_have_as_many_cells_as_the_header():
    text = grids.to_markdown(table("a | b"))
    for part, bars in zip(text.split("Mean IoU and P@0.5:"), (7, 8), strict=True):
        rows = [line for line in part.splitlines() if line.startswith("| ")]
        assert {line.replace("\\|", "").count("|") for line in rows} == {bars}
    outside_code = re.sub("`[^`]*`", "", grids.to_markdown(table()))
    assert "<script>" not in outside_code
    assert "&lt;script&gt;" in outside_code
    assert "43.71 ± 0.80" in text or "43.70 ± 0.80" in text
    assert "– <sup>a</sup>" in text


def test_html_is_escaped_and_well_formed():
    class Checker(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.tags = [], set()

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)
            self.tags.add(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(to_html(table()))
    assert checker.open == []
    assert "script" not in checker.tags


def test_signs():
    assert formats.signed(1.234) == "+1.23"
    assert formats.signed(-1.236) == "−1.24"
    assert formats.signed(-0.001) == "0.00"
    assert [formats.letter(i) for i in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]


def test_a_papers_data_set_shows_the_difference():
    shown = table("CPI-U", comparable=True)
    assert grids.grid_of(shown).titles[-2:] == ["Paper's oIoU", "Ours − paper's"]
    cells = grids.grid_of(shown).sections[0][1][0]
    assert cells[-1].main == f"+{43.705 - 32.26:.2f} / –"
    assert grids.grid_of(table()).titles[-1] == "Paper's oIoU (RefCOCO)"


def test_a_difference_that_excludes_zero_is_marked():
    clear = Value(-2.0, -3.0, -1.0, None, 1, 9, 9)
    vague = Value(0.5, -0.1, 1.1, None, 1, 9, 9)
    rows = [FilledRow("A − B", "a - b", "1", (), {"oIoU": {"val": clear, "testA": vague}})]
    sections = [TableSection("S", "d", "1", False, rows, SPLITS)]
    names = ("t_differences", "T", "", "", ["val", "testA"])
    shown = FilledTable(*names, [], sections, [], [], is_difference=True)
    cells = grids.grid_of(shown).sections[0][1][0]
    assert [c.main for c in cells] == ["A − B", "−2.00 *", "+0.50"]
    assert cells[1].small == "[−3.00, −1.00]"
    assert "-2.00" in grids.to_csv(shown)


@given(st.text(max_size=40))
def test_tex_text_has_no_live_special_character(text):
    out = formats.tex_escape(text)
    assert out.isascii()
    bare = out
    for known in ("\\textbackslash{}", "\\textasciitilde{}", "\\textasciicircum{}",
                  "\\textbar{}", "$\\pm$", "$\\bullet$", "$\\times$", "$\\geq$", "$\\to$",
                  "$-$", "$<$", "$>$", "$^{*}$", "\\&", "\\%", "\\$", "\\#", "\\_", "\\{",
                  "\\}", "{[}", "{]}", "-{}-"):  # fmt: skip
        bare = bare.replace(known, "")
    assert not set(bare) & set("\\&%$#_{}~^")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tex_compiles_as_it_stands(tmp_path):
    (tmp_path / "t.tex").write_text(grids.to_tex(table()))
    (tmp_path / "u.tex").write_text(grids.to_tex(table("CPI-U", comparable=True, name="u")))
    document = r"\documentclass{article}\usepackage{booktabs,longtable}\begin{document}"
    (tmp_path / "all.tex").write_text(document + r"\input{t}\input{u}\end{document}")
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "too large" not in done.stdout


def test_tex_repeats_its_header_and_breaks_across_pages():
    rows = [FilledRow(f"r{i}", "m", "1", (True, False)) for i in range(60)]
    long = replace(table(), sections=[TableSection("S", "d", "1", False, rows, SPLITS)])
    tex = grids.to_tex(long)
    assert tex.count(r"\begin{longtable}") == tex.count(r"\emph{S}") == 1
    assert tex.count("Method & ") == 2  # on the first page and on the others
    assert all(f"\n\\raggedright r{i} & " in tex for i in range(60))


def test_tex_headers_hold_no_comment():
    """A raw % in a title would hide the rest of its line, with the row's end."""
    shown = replace(table(), splits=["val", "5 %"])
    for tex in (grids.to_tex(shown), grids.to_tex(shown, grids.OTHERS)):
        lines = tex.splitlines()[1:]
        assert not [line for line in lines if re.search(r"(?<!\\)%", line)]
        (header,) = {line for line in lines if line.startswith("Method & ")}
        assert "5 \\%" in header
        assert header.endswith("\\\\")


def test_other_metrics_have_columns_in_every_format():
    values = {
        m: {"val": Value(n, n - 1, n + 1, 0.5, 2, 9, 9)}
        for m, n in (("oIoU", 43), ("mIoU", 51), ("P@0.5", 62))
    }
    shown = replace(
        table(), sections=[TableSection("S", "d", "1", False, [
            FilledRow("r", "m", "1", (True, False), values)], SPLITS)], splits=["val"],
    )  # fmt: skip
    (line,) = csv.DictReader(io.StringIO(grids.to_csv(shown)))
    assert [line[c] for c in ("value", "mIoU", "mIoU_low", "P@0.5", "P@0.5_sd")] == [
        "43.00", "51.00", "50.00", "62.00", "0.50"]  # fmt: skip
    text = grids.to_markdown(shown)
    assert "val mIoU | val P@0.5 |" in text
    assert "51.00 ± 0.50" in text
    tex = grids.to_tex(shown, grids.OTHERS)
    assert r"62.00 $\pm$ 0.50" in tex
    assert "43.00" not in tex
    tables = to_html(shown).split('<div class="m')[1:]
    for number, (text, value) in enumerate(zip(tables, ("43.00", "51.00", "62.00"), strict=True)):
        assert text.startswith(f'{number}">')
        assert f"<td>{value} ± 0.50<small>" in text
