"""The threshold search's objective `training`: a short mutual learning per trial, for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from helpers.small_study import small_params

from semires import process, tracking
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import Interrupted, NonFiniteLossError
from semires.runs.key import RunKey
from semires.runs.layout import tuned_file
from semires.samples.dataset import LabelledDataset
from semires.training.context import RunContext
from semires.training.mutual import make_refiner
from semires.tuning import study as studies
from semires.tuning.counts import counts_of, halves
from semires.tuning.refined import make_table, summarise

CELL = RunKey("refscenes", 25, "cpi-u", 0)
FOLDER = Path("tune/refscenes/25/cpi-u/seed0")


class FromThe(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Prunes every trial from a number on, at its first evaluation."""

    def __init__(self, number: int) -> None:
        self.number = number

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number >= self.number


def searching(storage: str | None = None, **changes: Any) -> Params:
    values = {"objective": "training", "trials": 4, "steps": 4, "storage": storage, **changes}
    return small_params(tune=values, evaluation={"bootstrap_samples": 50})


def states_on_disk() -> list[Path]:
    return list(Path(".work").glob("runs-*"))


def trials() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "trials.csv")


@pytest.mark.tracked
def test_trials_are_nested_runs_and_leave_nothing(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setitem(studies.PRUNERS, "median", lambda: FromThe(2))
    studies.tune(searching(f"sqlite:///{tmp_path / 'study.db'}"), CELL)
    assert trials()["state"].tolist() == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert not states_on_disk(), "the state of a finished or pruned trial stays"
    assert not CELL.folder.exists(), "a trial is no run of the study"
    assert set(read_yaml(tuned_file(CELL))) >= {"threshold_u", "ema", "pwa_mean"}
    from semires.mlflow_store import Store

    Path("params.yaml").touch()
    tracking.sync()
    runs = Store().runs()
    nested = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    (parent,) = [r for r in runs if r.data.tags["stage"] == "tune"]
    assert parent.info.run_name == "tune-cpi-u-25-seed0"
    assert [r.data.tags["mlflow.parentRunId"] for r in nested] == [parent.info.run_id] * 4
    assert all(set(r.data.params) >= {"threshold_u", "ema", "pwa_mean"} for r in nested)


def test_the_first_trials_are_the_papers_and_the_best_for_the_labels(teacher: Path, tmp_path: Path):
    params = searching(f"sqlite:///{tmp_path / 'study.db'}", trials=2, pruner="none")
    studies.tune(params, CELL)
    found = trials()["params_threshold_u"].tolist()
    assert found[0] == params.refine["cpi-u"].threshold_u
    counts = counts_of(params, CELL)
    seen, _ = halves(counts.image_ids, params.tune.seed)
    table = make_table(counts.take(seen), "cpi-u")
    reached = [
        summarise(table.outcome({"threshold_u": value}), table.labels)["oIoU"]
        for value in (found[1], *(step / 40 for step in range(41)))
    ]
    assert reached[0] == max(reached)
    given = [name for name in trials() if name.startswith("params_") and "threshold" not in name]
    assert trials()[given].nunique().eq(1).all(), "the rest of the warm start stays as given"


def test_a_weighting_is_searched_without_any_threshold(teacher: Path, tmp_path: Path):
    """FixMatch: its labels stay as they are, and a method trains with the confidence found."""
    params = searching(
        f"sqlite:///{tmp_path / 'study.db'}", trials=2, steps=1, parameters=["confidence"]
    )
    cell = RunKey("refscenes", 25, "fixmatch", 0)
    studies.tune(params, cell)
    folder = Path("tune/refscenes/25/fixmatch/seed0")
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {"history", "slices"}
    table = pd.read_csv(folder / "trials.csv")
    assert table["params_confidence"].between(0.5, 0.99).all()
    assert table["params_confidence"].nunique() == 2
    assert table.loc[0, "params_confidence"] == 0.95
    assert table["matched"].eq(0).all()
    best = read_yaml(tuned_file(cell))
    assert list(best) == ["confidence"]
    tree = params.model_dump()
    rule = {"strategy": "none", "weighting": "confidence", "confidence": 0.95}
    tree["refine"]["mine"] = {**rule, "thresholds": "tuned:fixmatch"}
    block = {"datasets": ["refscenes"], "fractions": [25.0], "seeds": [0]}
    tree["study"]["runs"].append({**block, "methods": ["mine"]})
    tree["study"]["tune"].append({**block, "methods": ["fixmatch"]})
    tuned = resolve(validate(tree), RunKey("refscenes", 25, "mine", 0))
    assert make_refiner(tuned, tuned.refine["mine"]).weighting.threshold == best["confidence"]


def test_trials_are_valued_on_their_half_of_val(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    valued: list[set[int]] = []

    evaluate = RunContext.evaluate

    def spy(context: RunContext, model: Any, samples: LabelledDataset) -> pd.DataFrame:
        table = evaluate(context, model, samples)
        valued.append(set(table["image_id"]))
        return table

    monkeypatch.setattr(RunContext, "evaluate", spy)
    params = searching(f"sqlite:///{tmp_path / 'study.db'}", trials=1)
    studies.tune(params, CELL)
    images = counts_of(params, CELL).image_ids
    seen, held_out = halves(images, params.tune.seed)
    assert valued
    assert all(each == set(images[seen]) for each in valued)
    assert not set(images[seen]) & set(images[held_out])


def test_a_stopped_search_continues_the_interrupted_trial(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    studies.tune(searching(f"sqlite:///{tmp_path / 'a.db'}"), CELL)
    unbroken = trials()
    broken = searching(f"sqlite:///{tmp_path / 'b.db'}")
    with monkeypatch.context() as patch:
        looks = iter(range(1, 10_000))
        patch.setattr(process, "stop_requested", lambda: 143 if next(looks) == 9 else None)
        with pytest.raises(Interrupted):
            studies.tune(broken, CELL)
    assert states_on_disk(), "the interrupted trial continues from its saved state"
    study = optuna.load_study(study_name=None, storage=broken.tune.storage)
    (waiting,) = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    before = len(studies.finished(study))
    studies.tune(broken, CELL)
    assert not states_on_disk()
    names = [name for name in unbroken if name.startswith("params_")]
    same = [*names, "value"]
    pd.testing.assert_frame_equal(trials()[same][: before + 1], unbroken[same][: before + 1])
    assert len(trials()) == len(trials().drop_duplicates(names)) == len(unbroken)
    assert waiting.number == before + 1


def test_a_training_that_diverges_is_a_pruned_trial(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from semires.training import loop

    real, calls = loop.Loop.backward, iter(range(1, 10_000))

    def backward(self: Any, loss: Any, ref_ids: Any) -> None:
        if next(calls) == 6:  # in the second trial
            self.save()
            raise NonFiniteLossError("the loss is nan")
        real(self, loss, ref_ids)

    monkeypatch.setattr(loop.Loop, "backward", backward)
    settings = {"trials": 3, "pruner": "none", "parameters": ["pwa_mean", "pwa_offset"]}
    studies.tune(searching(f"sqlite:///{tmp_path / 'study.db'}", **settings), CELL)
    names = [name for name in trials() if name.startswith("params_")]
    assert names == ["params_pwa_mean", "params_pwa_offset"]
    found = read_yaml(tuned_file(CELL))
    assert list(found) == ["threshold_u", "pwa_mean", "pwa_offset"]
    assert found["threshold_u"] == 0.7, "a threshold that is not searched stays as given"
    assert trials()["state"].tolist() == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert not states_on_disk()
