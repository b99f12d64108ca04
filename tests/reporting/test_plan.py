"""The parts of a study that tables need, on the shipped study."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT

from semires.cli import main
from semires.config.compose import composed
from semires.config.grid import expand, grid_text, searches
from semires.config.load import load_params, validate_file
from semires.config.schema import Params
from semires.config.validate import parse_yaml
from semires.errors import ConfigError
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.plan import Plan, part_of
from semires.runs.key import RunKey

LAVT = {"supervised", "baseline", "cpi-u"}


def shipped(name: str) -> Params:
    path = ROOT / f"experiments/{name}.yaml"
    return validate_file(parse_yaml(composed(path)), str(path))


@pytest.fixture(scope="module")
def study() -> Params:
    return shipped("study")


def part(study: Params, *names: str) -> Params:
    """The study with a part of its runs."""
    values = study.model_dump() | {"study": part_of(study, names).model_dump()}
    return validate_file(values, "part")


def test_table_7_is_two_models_at_one_fraction(study: Params):
    made = part(study, "7")
    assert set(expand(made)) == {
        RunKey("refscenes", 1, method, seed, model=model)
        for method in LAVT
        for model in (None, "rela")
        for seed in (0, 1, 2)
    }
    assert (made.study.generated, made.study.tune) == (["refscenes"], [])
    assert made.study.reports == "reports/part"


def test_a_definition_that_spans_the_study_has_each_fraction_with_all_its_runs(study: Params):
    plan, (tables, figures) = Plan(study, PaperValues()), load_definitions()

    def keys_at(dataset: str, *methods: str):
        return lambda fraction: [RunKey(dataset, fraction, method, 0) for method in methods]

    both, main_table = keys_at("refscenes", "baseline", "cpi-u"), [0.1, 1, 5, 10]
    assert plan.fractions(figures["figure1"], both) == [0.1, 0.5, 1, 2, 5, 10]
    alone = plan.fractions(tables["main"], keys_at("refscenes", "cpi-u"))
    assert alone == [0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50]
    assert plan.fractions(tables["main"], keys_at("refscenes", "control")) == main_table
    assert plan.fractions(figures["figure6"], both) == [1], "its own fractions"


def test_several_tables_are_the_union_of_their_runs(study: Params):
    whole, one, two = (part(study, *names) for names in (("table1", "8"), ("1",), ("8",)))
    assert set(expand(whole)) == set(expand(one)) | set(expand(two))
    assert one.study.datasets == ["refscenes", "refscenes+", "refscenes-g"]
    assert {key.method for key in expand(one)} == LAVT
    fractions = {name: [0.1, 0.5, 1, 2, 5, 10] for name in one.study.datasets}
    found = {n: sorted({k.fraction for k in expand(one) if k.dataset == n}) for n in fractions}
    assert found == fractions, "no cell of Table 1 is without a run"
    sources = {key.source for key in expand(two)}
    assert sources == {None, "felzenszwalb", "mask2former", "sam-prompts"}


def test_a_tuned_row_brings_its_search_and_the_search_s_burn_in(study: Params):
    made = part(study, "main")
    tuned = [key for key in expand(made) if key.method == "cpi-u-tuned"]
    assert len(tuned) == 12
    found = {(key.fraction, key.method) for key in searches(made)}
    assert {(f, "cpi-u") for f in (0.1, 1, 5, 10)} <= found
    assert (1, "cpi-u-pwa") in found
    assert (0.1, "cpi-o") not in found
    assert {key.burn_in for key in searches(made)} <= set(expand(made))


def test_all_tables_are_the_study_but_for_the_runs_of_figures(study: Params):
    plan = Plan(study, PaperValues(ROOT / "experiments/tables"))
    tables = load_definitions(ROOT / "experiments/tables")[0]
    names = [name for name, definition in tables.items() if plan.makes(definition)]
    assert set(tables) - set(names) == {"beyond"}
    every, made = set(expand(study)), set(expand(part(study, *names)))
    assert made < every
    assert every - made == {
        RunKey(dataset, 1, method, 0)  # Figure 6
        for dataset in ("refscenes+", "refscenes-g")
        for method in ("iom", "cpi")
    }


@pytest.mark.parametrize("name", ["study", "refcoco", "table1-all"])
def test_each_of_the_paper_s_rows_has_a_run(name: str):
    """And each row that a table of the study has."""
    params = shipped(name)
    plan = Plan(params, PaperValues(ROOT / "experiments/tables"))
    tables = load_definitions(ROOT / "experiments/tables")[0]
    wanted = ["main", "table1"] if name == "table1-all" else tables
    rows = [
        (table, row.label, dataset, fraction, plan.planned(row, dataset, fraction))
        for table in wanted
        for dataset, fraction, rows in plan.sections(tables[table])
        for row in rows
        if plan.makes(tables[table])
        and (name == "study" or plan.paper_values(row, dataset, fraction))
    ]
    assert len(rows) >= {"study": 150, "refcoco": 60, "table1-all": 60}[name]
    assert [place for *place, planned in rows if not planned] == []


def test_a_table_that_the_study_does_not_make_is_named(study: Params):
    with pytest.raises(ConfigError, match=r"--tables: '77' is no table .*; did you mean '7'\?"):
        part_of(study, ["1", "77"])
    with pytest.raises(ConfigError, match=r"'beyond' is no table of the study .* it has main, "):
        part_of(study, ["beyond"])
    with pytest.raises(ConfigError, match="--tables: names no table"):
        part_of(study, [])


def test_the_command_writes_the_part_and_its_grid(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], study: Params,
):  # fmt: skip
    target = tmp_path / "params.yaml"
    command = ["--params", str(target), "use", str(ROOT / "experiments/study.yaml"), "--tables"]
    assert main([*command, "2, 7"]) == 0
    assert "27 runs, 6 of them burn-ins" in capsys.readouterr().out
    written = load_params(target)
    assert written == part(study, "2", "7")
    assert "# paper: 0.996" in target.read_text(), "comments are kept"
    assert (tmp_path / "experiments/grid.yaml").read_text() == grid_text(written)
    before = target.read_bytes()
    assert main([*command, "2,seven"]) == 2
    assert "'seven' is no table" in capsys.readouterr().err
    assert target.read_bytes() == before
