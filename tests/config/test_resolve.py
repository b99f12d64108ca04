"""The parameters of one run: overrides of methods and models, and tuned thresholds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.demo_params import changed, with_method

from semires.config.compose import missing_files
from semires.config.load import validate_file
from semires.config.resolve import resolve
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError
from semires.runs.key import RunKey


def without_steps(params: Params) -> Params:
    """The parameters of a fraction that ``burn_in.steps_by_fraction`` does not list."""
    burn_in = params.burn_in.model_copy(update={"steps_by_fraction": {}})
    return params.model_copy(update={"burn_in": burn_in})


def test_overrides_reach_the_parameters():
    params = with_method(overrides={"mutual.ema": 0.5, "loss.pwa.offset": 2.0})
    resolved = resolve(params, RunKey("refscenes", 1, "mine", 0))
    assert resolved.mutual.ema == 0.5
    assert resolved.loss.pwa.offset == 2.0
    assert params.mutual.ema != 0.5
    assert resolve(params, RunKey("refscenes", 1, "iom", 0)) == without_steps(params)


def test_the_steps_of_a_fraction_replace_those_of_burn_in():
    params = validate(changed("burn_in/steps_by_fraction", {"5": 70}))
    five, ten = (resolve(params, RunKey("refscenes", f, "supervised", 0)) for f in (5, 10))
    assert (five.burn_in.steps, ten.burn_in.steps) == (70, params.burn_in.steps)
    # Run records of fractions that are not listed do not depend on the list.
    assert "steps_by_fraction" not in five.model_dump()["burn_in"]
    assert ten == without_steps(params)


def test_a_run_of_another_model_has_its_section_and_its_overrides():
    tree = validate(read_yaml(ROOT / "experiments/demo.yaml")).model_dump()
    tree["models"]["rela"]["overrides"] = {"burn_in.lr": 0.5, "mutual.ema": 0.25}
    tree["refine"]["mine"] = {
        "strategy": "none", "pwa": False, "overrides": {"mutual.ema": 0.75}
    }  # fmt: skip
    params = validate(tree)
    supervised = resolve(params, RunKey("refscenes", 1, "supervised", 0, model="rela"))
    assert supervised.model == params.models["rela"].model
    assert (supervised.burn_in.lr, supervised.mutual.ema) == (0.5, 0.25)
    mine = resolve(params, RunKey("refscenes", 1, "mine", 0, model="rela"))
    assert (mine.model.name, mine.mutual.ema) == ("rela", 0.75), "the method's override comes last"
    for method in ("supervised", "iom"):
        assert resolve(params, RunKey("refscenes", 1, method, 0)) == without_steps(params)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model/regions", 15, "models.rela: model.regions: 15 is not the square of a number"),
        ("overrides", {"mutual.emma": 1}, "models.rela.overrides: 'mutual.emma': mutual has no"),
        ("overrides", {"refine.iom": 1}, "'refine.iom' is not a dotted key of optimizer, burn_in"),
        ("overrides", {"mutual.ema": 5}, "models.rela: mutual.ema: "),
    ],
)
def test_another_model_is_checked_before_any_work(key: str, value: Any, says: str):
    with pytest.raises(ConfigError, match=re.escape(says)):
        validate_file(changed(f"models/rela/{key}", value), "params.yaml")


def test_files_of_other_models_are_named_only_if_the_study_uses_them():
    tree = validate(read_yaml(ROOT / "experiments/demo.yaml")).model_dump()
    tree["models"]["rela"]["model"]["swin"]["pretrained"] = "nowhere.pth"
    assert not any("nowhere.pth" in line for line in missing_files(validate(tree)))
    tree["study"]["runs"][1]["model"] = "rela"
    lines = list(missing_files(validate(tree)))
    assert any(line.startswith("models.rela.model.swin.pretrained: nowhere.pth") for line in lines)


@pytest.mark.parametrize("key", ["model.name", "mutual", "mutual.emma", "loss.pwa.x.y"])
def test_overrides_elsewhere_are_refused(key: str):
    params = with_method(overrides={key: 0.5})
    with pytest.raises(ConfigError, match=r"refine\.mine\.overrides"):
        resolve(params, RunKey("refscenes", 1, "mine", 0))


def test_tuned_thresholds_come_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    params = with_method(strategy="cpi-u", threshold_u=0.7, thresholds="tuned")
    cell = RunKey("refscenes", 1, "mine", 0)
    with pytest.raises(ConfigError, match="semires tune --dataset refscenes --fraction 1 "):
        resolve(params, cell)
    folder = tmp_path / "experiments/tuned"
    folder.mkdir(parents=True)
    (folder / "refscenes-1-mine.yaml").write_text("# from a search\nthreshold_u: 0.25\n")
    assert resolve(params, cell).refine["mine"].threshold_u == 0.25
    assert resolve(params, cell, tuned=False).refine["mine"].threshold_u == 0.7
    (folder / "refscenes-1-mine.yaml").write_text("threshold_u: 25\n")
    with pytest.raises(ConfigError, match=re.escape("refine.mine.threshold_u")):
        resolve(params, cell)
    other = with_method(strategy="cpi-u", threshold_u=0.7, thresholds="tuned:cpi-u")
    with pytest.raises(ConfigError, match=r"refscenes-1-cpi-u\.yaml: no such file.*--method cpi-u"):
        resolve(other, cell)
    (folder / "refscenes-1-cpi-u.yaml").write_text("threshold_u: 0.5\npwa_mean: 0.6\nema: 0.9\n")
    found = resolve(other, cell)
    assert found.refine["mine"].threshold_u == 0.5
    assert (found.loss.pwa.mean, found.mutual.ema) == (0.6, 0.9)
    assert found.loss.pwa.offset == other.loss.pwa.offset
