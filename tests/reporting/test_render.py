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

from semires.reporting import render
from semires.reporting.tables import Row, Section, Table, Value

NASTY = "=cmd|'/c calc'!A0 <script>alert(1)</script> & 5_% $x^2$ {\\input{/etc/passwd}} #~ [é→]"


def table(label=NASTY, comparable=False, name="t_1"):
    value = Value(43.705, 41.0, 46.125, 0.8, 3, 60, 348)
    rows = [
        Row(label, "m", "1", (True, False), {"val": value}, {"val": 32.26, "testA": 35.71}),
        Row("empty", "n", "1", (False, False), footnote=0),
    ]
    sections = [Section(f"D {label}", "d", "1", comparable, rows)]
    notes = [f"a note: {label}", "in percent, 95 % of * and `code_x %`."]
    footnotes = [f"no run: `dvc exp run -S 'a=[1]' --x {label.replace('`', '')}` fills it."]
    return Table(
        name, label, "Claim & 5 %", label, ["val", "testA"], ["A_1", "B"], sections, notes,
        footnotes,
    )  # fmt: skip


def test_csv_has_one_line_per_number_rounded_to_two_decimals():
    lines = list(csv.DictReader(io.StringIO(render.to_csv(table("CPI-U")))))
    assert len(lines) == 4
    assert lines[0]["value"] == f"{43.705:.2f}"
    assert (lines[0]["ci_low"], lines[0]["ci_high"], lines[0]["sd"]) == ("41.00", "46.12", "0.80")
    assert (lines[0]["paper"], lines[0]["comparable"]) == ("32.26", "no")
    assert lines[1]["value"] == ""
    assert lines[1]["paper"] == "35.71"
    assert lines[2]["missing"].startswith("no run: dvc exp run")


@given(st.text(string.printable, max_size=30))
def test_csv_text_is_never_a_formula_and_survives_a_round_trip(text):
    cell = render.csv_text(text)
    assert cell.lstrip()[:1] not in ("=", "+", "-", "@")
    assert not set(cell) & set("\t\r\n")
    lines = list(csv.DictReader(io.StringIO(render.to_csv(table(text or "x")))))
    assert len(lines) == 4
    assert set(lines[0]) == set(render.CSV_COLUMNS)


def test_markdown_rows_have_as_many_cells_as_the_header():
    text = render.to_markdown(table("a | b"))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    counts = {line.replace("\\|", "").count("|") for line in rows}
    assert counts == {7}
    outside_code = re.sub("`[^`]*`", "", render.to_markdown(table()))
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
    checker.feed(render.to_html(table()))
    assert checker.open == []
    assert "script" not in checker.tags


def test_signs():
    assert render.signed(1.234) == "+1.23"
    assert render.signed(-1.236) == "−1.24"
    assert render.signed(-0.001) == "0.00"
    assert [render.letter(i) for i in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]


def test_a_papers_data_set_shows_the_difference():
    shown = table("CPI-U", comparable=True)
    assert render.headers(shown)[-2:] == ["Paper", "Ours − paper"]
    cells = render.body(shown)[0][1][0]
    assert cells[-1].main == f"+{43.705 - 32.26:.2f} / –"
    assert render.headers(table())[-1] == "Paper: RefCOCO (not comparable)"


def test_a_difference_that_excludes_zero_is_marked():
    clear = Value(-2.0, -3.0, -1.0, None, 1, 9, 9)
    vague = Value(0.5, -0.1, 1.1, None, 1, 9, 9)
    rows = [Row("A − B", "a - b", "1", (), {"val": clear, "testA": vague})]
    shown = Table("t_differences", "T", "", "", ["val", "testA"], [],
                  [Section("S", "d", "1", False, rows)], [], [], "difference")  # fmt: skip
    cells = render.body(shown)[0][1][0]
    assert [c.main for c in cells] == ["A − B", "−2.00 *", "+0.50"]
    assert cells[1].small == "[−3.00, −1.00]"
    assert "-2.00" in render.to_csv(shown)


@given(st.text(max_size=40))
def test_tex_text_has_no_live_special_character(text):
    out = render.tex_escape(text)
    assert out.isascii()
    bare = out
    for known in ("\\textbackslash{}", "\\textasciitilde{}", "\\textasciicircum{}",
                  "\\textbar{}", "$\\pm$", "$\\bullet$", "$\\times$", "$\\geq$", "$-$", "$<$",
                  "$>$", "$^{*}$", "\\&", "\\%", "\\$", "\\#", "\\_", "\\{", "\\}", "{[}", "{]}",
                  "-{}-"):  # fmt: skip
        bare = bare.replace(known, "")
    assert not set(bare) & set("\\&%$#_{}~^")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tex_compiles_as_it_stands(tmp_path):
    (tmp_path / "t.tex").write_text(render.to_tex(table()))
    (tmp_path / "u.tex").write_text(render.to_tex(table("CPI-U", comparable=True, name="u")))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "all.tex").write_text(document + r"\input{t}\input{u}\end{document}")
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "too large" not in done.stdout


def test_a_long_table_is_several_in_tex():
    rows = [Row(f"r{i}", "m", "1", (True, False)) for i in range(60)]
    long = replace(table(), sections=[Section("S", "d", "1", False, rows)])
    tex = render.to_tex(long)
    assert tex.count(r"\begin{table}") == tex.count(r"\emph{S}") == 3
    assert tex.count(r"\label{tab:t-1-2}") == 1
    assert all(f"\nr{i} & " in tex for i in range(60))
