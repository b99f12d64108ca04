"""The label quality of every rule: right numbers, the whole command, and what the report shows."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.small_study import made_study, small_params

from semires.cli import main
from semires.data.expressions import expressions
from semires.data.kinds import kind_of
from semires.data.scenes import sample_scene
from semires.errors import CorruptCacheError
from semires.refine.partition import Partition
from semires.refine.strategies import STRATEGIES
from semires.reporting import labels as shown
from semires.reporting.style import save
from semires.runs.key import RunKey
from semires.training.burn_in import burn_in
from semires.tuning.counts import PseudoLabel, count
from semires.tuning.labels import BEST, COLUMNS, TEACHER, groups, measure, outcomes

KEY = RunKey("refscenes", 25, "supervised", 0)


def square(top, left, side):
    mask = np.zeros((8, 8), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def example():
    """Three references; the label covers half of the object, which is the union of proposals."""
    masks = np.stack([square(0, 0, 2), square(0, 2, 2), square(4, 4, 4)])
    truth = masks[0] | masks[1]
    labels = [
        PseudoLabel(1, 7, 0, masks[0], truth),
        PseudoLabel(2, 7, 1, square(4, 4, 3), masks[2]),
        PseudoLabel(3, 7, 0, square(6, 0, 2), square(6, 0, 2)),
    ]
    return count(labels, {7: Partition.from_masks(masks)})


def test_numbers_of_known_labels():
    rows = {(r["rule"], r["group"]): r for r in measure(example(), groups(example(), {}))}
    assert {rule for rule, _ in rows} == {TEACHER, BEST, *STRATEGIES} - {"none"}
    teacher, cpi, best = (rows[name, "all"] for name in (TEACHER, "cpi-u", BEST))
    assert teacher["oIoU"] == pytest.approx(100 * (4 + 9 + 4) / (8 + 16 + 4))
    assert teacher["unmatched"] == 100
    # CPI-U completes the second label; the third lies in no proposal.
    assert cpi["oIoU"] == pytest.approx(100 * (4 + 16 + 4) / (8 + 16 + 4))
    assert (cpi["better"], cpi["worse"]) == (pytest.approx(100 / 3), 0)
    assert cpi["unmatched"] == pytest.approx(100 / 3)
    assert best["oIoU"] == 100
    assert [rows[TEACHER, g]["mIoU"] for g in ("small", "medium", "large")] == [
        pytest.approx(v) for v in (100, 50, 900 / 16)
    ]


def test_the_best_possible_is_never_worse_than_a_rule_that_makes_unions():
    rng = np.random.default_rng(0)
    labels = [
        PseudoLabel(i, i, 0, rng.random((8, 8)) < 0.4, rng.random((8, 8)) < 0.3) for i in range(20)
    ]
    partitions = {i: Partition.from_masks(rng.random((5, 8, 8)) < 0.4) for i in range(20)}
    counts = count(labels, partitions)
    iou = {rule: outcome.intersection / outcome.union for rule, _, outcome in outcomes(counts)}
    matched = {rule: outcome.matched for rule, _, outcome in outcomes(counts)}
    for name in ("cpi", "cpi-u", "iom", "expected-iou", "soft-cpi", "f-beta"):
        assert (iou[BEST] >= iou[name] - 1e-12)[matched[name]].all(), name


def test_kinds_of_expressions_are_those_that_were_drawn():
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = sample_scene(rng, 96)
        for index in range(len(scene.objects)):
            for kind, texts in expressions(scene, index).items():
                assert {kind_of(text) for text in texts} <= {kind}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A very small study with a burn-in and its label quality, by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMIRES_TRACKING", "off")
        with made_study(tmp_path_factory.mktemp("labels")):
            params = small_params()
            burn_in(params, KEY)
            patch.setattr("semires.config.load.load_params", lambda path: params)
            assert main(["labels", "--dataset", "refscenes", "--fraction", "25"]) == 0
            yield params


def test_the_command_writes_every_part_group_and_rule(measured, capsys):
    path = Path("labels/refscenes/25/seed0/labels.csv")
    table = pd.read_csv(path)
    assert list(table) == list(COLUMNS)
    assert set(table["part"]) == {"val", "unlabelled"}
    assert {"all", "small", "medium", "large", "attribute"} <= set(table["group"])
    whole = table[(table["group"] == "all") & (table["part"] == "unlabelled")]
    assert list(whole["rule"]) == [TEACHER, *(n for n in STRATEGIES if n != "none"), BEST]
    assert set(whole["references"]) == {6}  # evaluation.correction_refs
    assert table["ece"].between(0, 100).all()
    before = path.read_bytes()
    assert main(["labels", "--dataset", "refscenes", "--fraction", "25"]) == 0
    assert path.read_bytes() == before
    assert "| CPI-U |" in capsys.readouterr().out


def test_without_a_burn_in_the_command_names_the_file(measured, capsys):
    assert main(["labels", "--dataset", "refscenes", "--fraction", "25", "--seed", "5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed5/model.safetensors" in line


def test_the_report_shows_the_same_bytes(measured):
    table = shown.read_labels(measured)
    text = shown.markdown(measured, table)
    assert text == shown.markdown(measured, shown.read_labels(measured))
    assert "## RefScenes, 25 % labelled, seed 0" in text
    small = table[(table["part"] == "unlabelled") & (table["group"] == "small")]
    cpi_u = small[small["rule"] == "cpi-u"].iloc[0]
    assert f"| CPI-U | {cpi_u['oIoU']:.1f} / {cpi_u['mIoU']:.1f} |" in text
    assert f"| CPI-U | {cpi_u['better']:.1f} / {cpi_u['worse']:.1f} |" in text
    assert f"Expected calibration error of the teacher: val {table['ece'][0]:.2f} %" in text
    assert shown.to_csv(table).splitlines()[0] == ",".join(COLUMNS)
    assert save(shown.figure(measured, table)) == save(shown.figure(measured, table))
    both = pd.concat([table, table.assign(seed=1, oIoU=table["oIoU"] + 2)], ignore_index=True)
    row = next(line for line in shown.markdown(measured, both).splitlines() if "| CPI-U |" in line)
    first = table[(table["rule"] == "cpi-u") & (table["group"] == "all")]["oIoU"].iloc[0]
    assert f"{first + 1:.1f}" in row


def test_the_report_shows_the_labels_of_the_study_alone(measured, tmp_path, monkeypatch):
    table = shown.read_labels(measured)
    copied = tmp_path / "labels"
    shutil.copytree("labels", copied)
    others = ("refscenes/25/seed1", "refscenes/10/seed0", "refscenes+/25/seed0")
    for place in others:  # of another study in the same project
        dataset, fraction, seed = place.split("/")
        (copied / place).mkdir(parents=True)
        other = table.assign(dataset=dataset, fraction=fraction, seed=int(seed[-1]), oIoU=0.0)
        other.to_csv(copied / place / "labels.csv", index=False)
    monkeypatch.chdir(tmp_path)
    pd.testing.assert_frame_equal(shown.read_labels(measured), table)


def test_fewer_references_than_one_are_refused(measured, capsys):
    for number in ("0", "-3"):
        command = ["labels", "--dataset", "refscenes", "--fraction", "25", "--refs", number]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--refs: {number} is not a number of references" in line


def test_no_measurement_is_an_empty_table_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    params = small_params()
    monkeypatch.chdir(tmp_path)
    assert len(shown.read_labels(params)) == 0
    path = tmp_path / "labels/refscenes/25/seed0/labels.csv"
    path.parent.mkdir(parents=True)
    for text in ("", "a,b\n1,2\n", ",".join(COLUMNS) + "\n" + "x," * len(COLUMNS) + "\n"):
        path.write_text(text)
        with pytest.raises(CorruptCacheError, match=r"labels\.csv: damaged"):
            shown.read_labels(params)
