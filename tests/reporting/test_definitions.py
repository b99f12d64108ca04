"""The definitions in the repository, and what the loader says of wrong ones."""

import json
from pathlib import Path

import pytest

from semires.config.compose import composed
from semires.config.load import load_params, validate_file
from semires.config.validate import parse_yaml
from semires.errors import ConfigError
from semires.reporting.definitions import PaperValues, load_definitions, paper_name
from semires.reporting.report import check_methods

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "experiments/tables"
NOT_PARAMETERS = ("claims", "grid")
SHIPPED = [
    "params.yaml",
    *(
        f"experiments/{path.name}"
        for path in sorted((ROOT / "experiments").glob("*.yaml"))
        if path.stem not in NOT_PARAMETERS
    ),
]


@pytest.fixture(scope="module")
def definitions():
    return load_definitions(TABLES)


def test_every_table_and_figure_of_the_paper_is_there(definitions):
    tables, figures = definitions
    assert list(tables) == ["main", "beyond", "listening", *(f"table{n}" for n in range(1, 10))]
    assert list(figures) == ["figure1", "figure3", "figure6", "figure7", "quality"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_method_is_one_of_every_shipped_parameter_file(definitions, name):
    """`semires report` works with each of them."""
    params = validate_file(parse_yaml(composed(ROOT / name)), name)
    tables, figures = definitions
    for stem, table in tables.items():
        check_methods(params, stem, table)
    known = {"supervised", *params.refine}
    assert {method for figure in figures.values() for method in figure.methods} <= known


def test_rows_without_a_paper_value_are_those_the_paper_lacks(definitions):
    paper = PaperValues(TABLES)
    empty = {
        (name, row.label)
        for name, table in definitions[0].items()
        for row in table.rows
        if table.in_paper and paper.row(row, "RefCOCO", "1") is None
    }
    assert empty == {
        ("main", "Supervised, as long as mutual learning"),
        *(("main", f"SemiRES ({name}), tuned") for name in ("IOM", "CPI", "CPI-U")),
        ("main", "SemiRES (CPI-U), tuned PWA"),
        ("table8", "SemiRES, Felzenszwalb"),
        ("table8", "SemiRES, SAM prompted with the label"),
    }


def test_paper_values_come_from_the_right_cell(definitions):
    paper = PaperValues(TABLES)
    rows = {(n, r.label): r for n, t in definitions[0].items() for r in t.rows}
    semires = rows["main", "SemiRES (CPI-U)"]
    assert paper.row(semires, "RefCOCO+", "5") == {"val": 47.0, "testA": 54.42, "testB": 38.74}
    assert paper.row(semires, "RefCOCO", "10") == {"val": 63.6, "testA": 68.43, "testB": 60.2}
    assert paper.row(semires, "RefCOCO+", "10") is None  # Table 6 is on RefCOCO only
    assert paper.row(semires, "G-Ref(UMD)", "1") == {"val": 34.76, "test": 36.18}
    assert paper.row(semires, "RefCOCO", "0.1") is None
    rela = rows["table7", "ReLA Baseline"]
    assert paper.row(rela, "RefCOCO", "1")["val"] == 38.65
    iom = rows["table3", "IOM, IoU > 0.7"]
    assert paper.row(iom, "RefCOCO", "1")["testB"] == 41.83
    assert paper.corrections("G-Ref(UMD)")["CPI"]["positive"] == 18778


def test_figure_6_counts_add_up_to_the_unlabelled_references():
    paper = PaperValues(TABLES)
    for name, total in (("RefCOCO", 41972), ("RefCOCO+", 41830), ("G-Ref(UMD)", 41797)):
        for counts in paper.corrections(name).values():
            assert sum(counts.values()) == total


def test_paper_values_are_those_of_shared():
    shared = ROOT.parent / "shared/paper/tables.json"
    if not shared.is_file():
        pytest.skip("../shared is not here")
    ours = json.loads((TABLES / "paper.json").read_text())
    assert ours == json.loads(shared.read_text())


def test_refscenes_is_not_in_the_paper():
    assert paper_name(load_params(ROOT / "params.yaml"), "refscenes") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: tabel\n", "kind"),
        ("kind: table\ntitle: t\nclaim: c\nwhere: w\nrows: []\n", "rows"),
        ("kind: table\ntitle: t\nclaim: c\nwhere: w\nrows: [{label: a}]\n", "rows.0.method"),
        ("kind: table\ntitle: t\nclaim: c\nwhere: w\nrowz: 1\nrows: [{label: a, method: b}]",
         "rowz"),
        ("kind: table\ntitle: t\nclaim: c\nwhere: w\nmarks: [X]\nrows: [{label: a, method: b}]",
         "0 of 1 marks"),
        ("[1, 2", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_definition_names_file_and_key(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_definitions(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_definitions_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no table definitions"):
        load_definitions(tmp_path)
