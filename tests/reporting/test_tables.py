"""Cells against numbers computed apart from the code, footnotes, seeds, small objects."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import fake_runs

from semires import files
from semires.config.validate import validate
from semires.errors import ConfigError, CorruptCacheError
from semires.reporting import grids
from semires.reporting.definitions import PaperValues, load_definitions
from semires.reporting.records import load_records, smallest_objects
from semires.reporting.report import build_tables
from semires.reporting.tables import TableBuilder
from semires.runs.key import RunKey


def build(params, name, source="sam"):
    definitions, _ = load_definitions()
    builder = TableBuilder(params, load_records(default_source=source), PaperValues())
    table = builder.build(name, definitions[name])
    return table, builder.differences(table, definitions[name])


def oiou(key, split):
    rows = pd.read_parquet(key.folder / "predictions.parquet")
    rows = rows[rows["split"] == split]
    return 100 * rows["intersection"].sum() / rows["union"].sum()


def test_main_table_has_the_studys_rows_and_fractions(workspace, small_params):
    table, _ = build(small_params, "main")
    assert [s.title for s in table.sections] == [
        "RefScenes, 1 % labelled",
        "RefScenes, 10 % labelled",
    ]
    assert [row.label for row in table.sections[0].rows] == [
        "Supervised", "Baseline", "SemiRES (CPI-U)"]  # fmt: skip
    assert table.splits == ["val", "testA", "testB"]
    assert table.footnotes == []


def test_a_cell_is_the_mean_over_seeds_with_its_deviation(workspace, small_params):
    table, _ = build(small_params, "main")
    value = table.sections[1].rows[2].values["testA"]
    each = [oiou(RunKey("refscenes", 10, "cpi-u", seed), "testA") for seed in (0, 1)]
    assert value.value == pytest.approx(np.mean(each))
    assert value.sd == pytest.approx(np.std(each, ddof=1))
    assert value.seeds == 2
    assert value.low < value.value < value.high


def test_differences_pair_methods_by_seed(workspace, small_params):
    table, pairs = build(small_params, "main")
    first = pairs.sections[0]
    assert [row.label for row in first.rows] == [
        "Baseline − Supervised",
        "SemiRES (CPI-U) − Supervised",
        "SemiRES (CPI-U) − Baseline",
    ]
    values = {row.label: row.values["val"].value for row in table.sections[0].rows}
    assert first.rows[2].values["val"].value == pytest.approx(
        values["SemiRES (CPI-U)"] - values["Baseline"]
    )


def test_the_papers_values_stand_apart_on_refscenes(workspace, small_params):
    table, _ = build(small_params, "main")
    assert table.has_paper
    assert not table.comparable
    assert table.sections[0].rows[0].paper == {"val": 32.26, "testA": 35.71, "testB": 28.02}
    assert any("not comparable" in note for note in table.notes)


def test_an_empty_row_names_the_command_that_fills_it(workspace, small_params):
    table, _ = build(small_params, "table2")
    rows = {row.label: row for row in table.sections[0].rows}
    assert rows["CPI-U"].footnote is None
    assert rows["CPI-O"].values == {}
    block = "`- {datasets: [refscenes], fractions: [1], methods: [cpi-o, cpi], seeds: [0, 1]}`"
    assert block in table.footnotes[rows["CPI-O"].footnote]
    table, _ = build(small_params, "table7")
    assert any("seeds: [0, 1], model: rela}`" in note for note in table.footnotes)
    table, _ = build(small_params, "table8")
    for source in ("felzenszwalb", "mask2former", "sam-prompts"):
        assert any(f"sources: [{source}]" in note for note in table.footnotes)


def test_runs_of_two_models_stay_apart(own_workspace, small_params):
    rela = [
        RunKey("refscenes", 1, method, seed, model="rela")
        for method in ("supervised", "cpi-u")
        for seed in (0, 1)
    ]
    before, _ = build(small_params, "table7")
    for key in rela:
        fake_runs.write_run(key, gain=1.0 if key.method == "supervised" else 20.0)
    after, _ = build(small_params, "table7")
    rows = [{row.label: row for row in t.sections[0].rows} for t in (before, after)]
    assert rows[0]["LAVT SemiRES"] == rows[1]["LAVT SemiRES"]
    assert not rows[0]["ReLA SemiRES"].values
    assert rows[1]["ReLA SemiRES"].runs == tuple(rela[2:])
    values = {label: row.values["val"].value for label, row in rows[1].items() if row.values}
    assert values["ReLA SemiRES"] > values["LAVT SemiRES"] > values["ReLA Supervised"] + 4
    assert values.keys() == set(rows[1]) - {"ReLA Baseline"}


@pytest.mark.parametrize("name", [f"table{n}" for n in range(2, 10)])
def test_a_footnotes_blocks_are_valid_and_make_the_cells_part_of_the_study(
    workspace, small_params, name
):
    table, _ = build(small_params, name)
    values = small_params.model_dump()
    for note in table.footnotes:
        for block in re.findall(r"`(- \{.*?\})`", note):
            values["study"]["runs"] += yaml.safe_load(block)
    table, _ = build(validate(values), name)
    assert all("`dvc repro`" in note for note in table.footnotes)


def test_a_missing_run_of_the_study_is_filled_by_dvc_repro(own_workspace, small_params):
    for seed in (0, 1):
        shutil.rmtree(RunKey("refscenes", 10, "cpi-u", seed).folder)
    table, pairs = build(small_params, "main")
    row = table.sections[1].rows[2]
    assert row.values == {}
    assert "`dvc repro`" in table.footnotes[row.footnote]
    assert len(pairs.sections[1].rows) == 1


def test_smallest_objects_are_whole_references(workspace, small_params):
    table, pairs = build(small_params, "table9")
    rows = pd.read_parquet(RunKey("refscenes", 1, "cpi-u", 0).folder / "predictions.parquet")
    rows = rows[rows["split"] == "val"]
    areas = rows.drop_duplicates("ref_id")["object_area"]
    kept = smallest_objects(rows, 0.1)
    assert kept["ref_id"].nunique() == int(0.1 * rows["ref_id"].nunique())
    assert len(kept) == 3 * kept["ref_id"].nunique()
    assert (areas < kept["object_area"].max()).sum() <= kept["ref_id"].nunique()
    value = table.sections[0].rows[3].values["val"]
    assert value.expressions == len(kept)
    labels = [row.label for row in pairs.sections[0].rows]
    assert len(labels) == 2  # 5 % is not compared with 10 %


def test_a_share_too_small_for_one_reference_keeps_one():
    table = pd.DataFrame({"ref_id": [4, 4, 9], "object_area": [50, 50, 20]})
    assert smallest_objects(table, 0.05)["ref_id"].tolist() == [9]


def test_other_proposals_have_a_row_of_their_own(own_workspace, small_params):
    fake_runs.write_run(RunKey("refscenes", 1, "cpi-u", 0, "felzenszwalb"))
    table, _ = build(small_params, "table8")
    rows = {row.label: row for row in table.sections[0].rows}
    assert rows["SemiRES, Felzenszwalb"].method == "cpi-u+felzenszwalb"
    assert rows["SemiRES, Felzenszwalb"].values["val"].seeds == 1
    assert rows["SemiRES, SAM"].values["val"].seeds == 2
    assert rows["SemiRES, panoptic"].paper == {"val": 47.61, "testA": 56.28, "testB": 43.62}


def test_proposals_have_columns_beside_the_scores(own_workspace, small_params):
    prompted = {"val": {"best_iou": 0.9, "over_half": 1.0, "proposals_per_label": 2.0}}
    files.write_json(Path("proposals/refscenes/sam-prompts/quality.json"), prompted)
    fake_runs.write_run(RunKey("refscenes", 1, "cpi-u", 0, "sam-prompts"))
    table, pairs = build(small_params, "table8")
    rows = {row.label: row for row in table.sections[0].rows}
    sam, about = (
        rows["SemiRES, SAM"].columns,
        rows["SemiRES, SAM prompted with the label"].columns,
    )
    assert {name: sam[name] for name in ("proposals", "best_iou")} == {
        "proposals": 41.2, "best_iou": pytest.approx(81),
    }  # fmt: skip
    assert (about["proposals"], about["best_iou"]) == (2.0, pytest.approx(90))
    metrics = [files.read_json(run.folder / "metrics.json") for run in rows["SemiRES, SAM"].runs]
    assert sam["labels"] == pytest.approx(np.mean([m["pseudo"]["refined_oIoU"] for m in metrics]))
    assert rows["Supervised"].columns == {}
    titles = ["Proposals", "Best IoU", "Labels' oIoU", *table.splits]
    assert grids.grid_of(table).titles[1 : len(titles) + 1] == titles
    text = grids.to_markdown(table)
    line = next(line for line in text.splitlines() if line.startswith("| SemiRES, SAM |"))
    assert line.startswith("| SemiRES, SAM | 41.2 | 81.0 |")
    lines = list(csv.DictReader(io.StringIO(grids.to_csv(table))))
    assert {li["best_iou"] for li in lines if li["row"] == "SemiRES, SAM"} == {"81.00"}
    assert not pairs.columns
    assert grids.grid_of(table, ("mIoU",)).titles == ["Method", *table.splits]


def test_a_new_method_of_the_study_gets_its_row(own_workspace, small_params):
    values = small_params.model_dump()
    values["refine"]["mine"] = values["refine"]["cpi-u"]
    values["study"]["runs"][0]["methods"] = ["mine"]
    fake_runs.write_run(RunKey("refscenes", 1, "mine", 0))
    table, _ = build(validate(values), "main")
    assert [row.label for row in table.sections[0].rows] == ["Supervised", "mine"]
    assert table.sections[0].rows[1].values["val"].seeds == 1


def test_a_tuned_method_has_its_row_where_it_was_tuned(own_workspace, small_params):
    values = small_params.model_dump()
    values["refine"]["mine"] = values["refine"]["cpi-u"] | {"thresholds": "tuned"}
    block = {"datasets": ["refscenes"], "fractions": [1.0], "methods": ["mine"], "seeds": [0]}
    values["study"]["runs"].append(block)
    values["study"]["tune"] = [block]
    table, _ = build(validate(values), "main")
    assert ["mine" in [row.label for row in s.rows] for s in table.sections] == [True, False]


def test_seeds_trained_otherwise_than_the_studys_are_left_out(own_workspace, capsys):
    def change(key):
        fake_runs.change(key.folder, params={"data": {"image_size": 32}})

    def seeds(*study):
        records = load_records(default_source="sam", seeds=study)
        groups = [(10, "baseline"), (10, "cpi-u"), (1, "baseline"), (1, "cpi-u")]
        return [[r.key.seed for r in records.find("refscenes", f, m)] for f, m in groups]

    assert seeds(0) == [[0, 1]] * 4
    assert not capsys.readouterr().out
    change(RunKey("refscenes", 10, "baseline", 1))
    assert seeds(0) == [[0], [0, 1], [0, 1], [0, 1]]
    assert "1 runs have other parameters or data" in capsys.readouterr().out
    change(RunKey("refscenes", 1, "supervised", 0))  # and with it all that started from it
    assert seeds(1) == [[1], [0, 1], [1], [1]]


@pytest.mark.parametrize("value", ["x", None, {"val": True}, {"val": "40"}, [1.0]])
def test_the_papers_values_are_numbers(own_workspace, small_params, value):
    path = own_workspace / "experiments/tables/paper.json"
    values = json.loads(path.read_text())
    values["table1"]["RefCOCO"]["Baseline"]["1%"] = value or {"val": None}
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptCacheError, match=r"paper\.json: .*no numbers"):
        build(small_params, "main")


def test_a_row_of_no_method_is_refused(own_workspace, small_params):
    path = own_workspace / "experiments/tables/table2.yaml"
    path.write_text(path.read_text().replace("method: cpi-u", "method: cpi-uu", 1))
    with pytest.raises(ConfigError, match=r"table2\.yaml: rows\.\d+\.method: 'cpi-uu' .*'cpi-u'"):
        build_tables(small_params, load_records(default_source="sam"))


def test_a_data_set_of_the_paper_is_compared(own_workspace, small_params):
    values = small_params.model_dump()
    values["datasets"]["coco"] = values["datasets"]["refscenes"] | {"dataset": "refcoco"}
    values["study"]["runs"][0] |= {"datasets": ["coco"], "fractions": [1.0]}
    values["study"]["tune"] = []
    fake_runs.write_run(RunKey("coco", 1, "baseline", 0))
    table, _ = build(validate(values), "main")
    assert table.comparable
    assert not any("not comparable" in note for note in table.notes)


def test_a_record_that_contradicts_its_predictions_is_refused(own_workspace, small_params):
    path = RunKey("refscenes", 1, "baseline", 1).folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["testB"]["oIoU"] += 0.5
    path.write_text(json.dumps(metrics))
    fake_runs.seal(path.parent)
    with pytest.raises(CorruptCacheError, match=r"baseline/seed1.*testB"):
        build(small_params, "main")


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "predictions.parquet"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"[]"])
def test_a_damaged_record_is_named(own_workspace, small_params, name, damage):
    path = RunKey("refscenes", 1, "baseline", 0).folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptCacheError, match="baseline"):
        build(small_params, "main")


def test_runs_on_other_expressions_are_not_paired(own_workspace, small_params):
    for seed in (0, 1):
        folder = RunKey("refscenes", 1, "baseline", seed).folder
        rows = pd.read_parquet(folder / "predictions.parquet")
        rows = rows[rows["sentence"] == 0]
        rows.to_parquet(folder / "predictions.parquet")
        metrics = fake_runs.metrics_of(rows)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        fake_runs.seal(folder)
    _, pairs = build(small_params, "main")
    assert [row.label for row in pairs.sections[0].rows] == ["SemiRES (CPI-U) − Supervised"]


def test_rows_of_several_fractions_are_paired_too(own_workspace, small_params):
    assert build(small_params, "table6")[1] is None  # one row has runs: nothing to compare
    for seed in (0, 1):
        folder = RunKey("refscenes", 20, "cpi-u", seed).folder
        shutil.copytree(RunKey("refscenes", 1, "cpi-u", seed).folder, folder)
        fake_runs.change(folder, key=RunKey("refscenes", 20, "cpi-u", seed))
    (row,) = build(small_params, "table6")[1].sections[0].rows
    assert row.label == "SemiRES (CPI-U), 20 % − SemiRES (CPI-U), 10 %"
    assert row.fraction == "20 - 10"
    assert row.values["val"].low < row.values["val"].value < row.values["val"].high
