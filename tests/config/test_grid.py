"""The grid: blocks of `study` become runs, each once, with names that DVC keeps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from semires.config.grid import check_grid, expand, grid_text, searches, stages, write_grid
from semires.config.schema import Params
from semires.config.validate import read_yaml, validate
from semires.errors import ConfigError
from semires.runs.key import RunKey

DEMO = read_yaml(ROOT / "experiments/demo.yaml")


def block(**changes: Any) -> dict[str, Any]:
    values = {"datasets": ["refscenes"], "fractions": [1], "methods": [], "seeds": [0]}
    return values | changes


def study(*blocks: dict[str, Any], tune: Any = (), refine: Any = None) -> Params:
    tree = copy.deepcopy(DEMO)
    tree["study"].update(runs=list(blocks), tune=list(tune))
    tree["refine"].update(refine or {})
    return validate(tree)


def key(method: str, fraction: float = 1, seed: int = 0, source: str | None = None) -> RunKey:
    return RunKey("refscenes", fraction, method, seed, source)


def test_the_runs_of_the_default_study():
    methods = ["supervised", "baseline", "cpi-u"]
    wanted = {key(method, fraction) for method in methods for fraction in (0.1, 1, 5, 10)}
    wanted |= {key(method, 1) for method in ("control", "iom", "cpi-u-tuned")}
    params = validate(DEMO)
    assert set(expand(params)) == wanted
    assert searches(params) == [key(method) for method in ("iom", "cpi", "cpi-o", "cpi-u")]
    tuned = stages(params)["mutual"]["refscenes-1-cpi-u-tuned-0"]
    assert tuned["thresholds"] == "experiments/tuned/refscenes-1-cpi-u.yaml"


@pytest.mark.parametrize("methods", [[], ["supervised"]])
def test_a_block_without_methods_is_burn_ins_alone(methods: list[str]):
    params = study(block(methods=methods, fractions=[5, 100], seeds=[0, 3]))
    assert expand(params) == [key("supervised", f, s) for f in (5, 100) for s in (0, 3)]
    assert stages(params)["mutual"] == stages(params)["propose"] == {}


def test_a_run_that_two_blocks_ask_for_is_made_once_under_one_name():
    one, two = block(methods=["iom", "cpi"]), block(methods=["cpi", "iom"], seeds=[0, 1])
    params = study(one, two)
    runs = expand(params)
    assert len(runs) == len(set(runs)) == 6
    assert set(stages(study(two, one))["mutual"]) == set(stages(params)["mutual"]) == {
        f"refscenes-1-{method}-{seed}" for method in ("iom", "cpi") for seed in (0, 1)
    }  # fmt: skip


def test_a_source_names_a_run_only_where_it_matters():
    params = study(block(methods=["baseline", "cpi-u"], sources=["sam", "felzenszwalb"]))
    assert set(expand(params)) == {
        key("supervised"), key("baseline"), key("cpi-u"), key("cpi-u", source="felzenszwalb")
    }  # fmt: skip
    mutual = stages(params)["mutual"]
    assert mutual["refscenes-1-cpi-u-0"]["source"] == "sam"
    other = mutual["refscenes-1-cpi-u+felzenszwalb-0"]
    assert (other["source"], other["label"]) == ("felzenszwalb", "cpi-u+felzenszwalb")
    assert set(stages(params)["propose"]) == {"refscenes-sam", "refscenes-felzenszwalb"}


def test_data_sets_of_the_same_images_share_their_proposals():
    tree = copy.deepcopy(DEMO)
    names = ["refscenes+", "refscenes-g"]
    blocks = [block(datasets=names, methods=["cpi-u"])]
    tree["study"].update(generated=["refscenes", *names], runs=blocks, tune=blocks)
    made = stages(validate(tree))
    assert made["propose"] == {"refscenes-sam": {"dataset": "refscenes", "source": "sam"}}
    assert set(made["prepare"]) == {*names, "refscenes"}
    assert set(made["generate"]) == {"refscenes"}
    wanted = {n: {"dataset": n, "scenes": "data/raw/refscenes"} for n in names}
    assert made["express"] == wanted
    consumers = [item for kind in ("labels", "tune", "mutual") for item in made[kind].values()]
    assert [item["proposals"] for item in consumers] == ["refscenes"] * 6


def test_a_model_names_its_runs_and_its_parameters():
    params = study(
        block(methods=["cpi-u"]),
        block(methods=["cpi-u"], sources=["felzenszwalb"], model="rela"),
    )
    rela = RunKey("refscenes", 1, "cpi-u", 0, "felzenszwalb", "rela")
    assert set(expand(params)) == {key("supervised"), key("cpi-u"), rela, rela.burn_in}
    assert rela.burn_in == RunKey("refscenes", 1, "supervised", 0, model="rela")
    made = stages(params)
    assert set(made["burn_in"]) == {"refscenes-1-0", "refscenes-1-rela-0"}
    assert set(made["mutual"]) == {"refscenes-1-cpi-u-0", "refscenes-1-rela.cpi-u+felzenszwalb-0"}
    item = made["mutual"]["refscenes-1-rela.cpi-u+felzenszwalb-0"]
    assert (item["model"], item["option"]) == ("models.rela", " --model rela")
    assert f"runs/refscenes/1/{item['start']}/seed0" == str(rela.burn_in.folder)
    assert f"runs/refscenes/1/{item['label']}/seed0" == str(rela.folder)
    lavt = made["mutual"]["refscenes-1-cpi-u-0"]
    assert (lavt["start"], lavt["model"], lavt["option"]) == ("supervised", "model", "")


def test_a_folder_names_its_run():
    for run in (
        key("supervised"),
        key("cpi-u", 0.1, 7, "felzenszwalb"),
        RunKey("refscenes", 5, "supervised", 0, model="rela"),
        RunKey("a+b", 0.5, "cpi", 3, "sam", "rela"),
    ):
        assert RunKey.of_folder(run.folder) == RunKey.of_folder(Path("x") / run.folder) == run
    assert "model" not in key("cpi-u").values(), "run.json of the default model keeps its bytes"


def test_every_run_starts_from_a_burn_in_of_the_grid_on_proposals_of_the_grid():
    params = study(
        block(methods=["cpi-u"], fractions=[0.1, 5], seeds=[0, 1], sources=["felzenszwalb"]),
        block(methods=["control"], fractions=[100]),
    )
    made = stages(params)
    for item in made["mutual"].values():
        name = f"{item['dataset']}-{item['fraction']}"
        assert f"{name}-{item['seed']}" in made["burn_in"]
        assert name in made["split"]
        assert f"{item['dataset']}-{item['source']}" in made["propose"]
    # At 100 % there is no pseudo-label to measure.
    names = {f"refscenes-{fraction}-{seed}" for fraction in ("0.1", "5") for seed in (0, 1)}
    assert set(made["labels"]) == names


def test_a_tuned_method_depends_on_the_search_s_result():
    tuned = {"mine": {"strategy": "cpi-u", "threshold_u": 0.7, "pwa": True, "thresholds": "tuned"}}
    runs, search = block(methods=["mine", "cpi-u"], seeds=[0, 1]), block(methods=["mine"])
    made = stages(study(runs, tune=[search], refine=tuned))
    assert set(made["tune"]) == {"refscenes-1-mine-0"}
    for seed in (0, 1):  # all seeds share the result
        item = made["mutual"][f"refscenes-1-mine-{seed}"]
        assert item["thresholds"] == "experiments/tuned/refscenes-1-mine.yaml"
    assert made["mutual"]["refscenes-1-cpi-u-0"]["thresholds"] == "data/splits/refscenes/1.json"
    with pytest.raises(ConfigError, match=r"study\.tune\.0: mine at 1 % is searched twice"):
        study(runs, tune=[search | {"seeds": [0, 1]}], refine=tuned)
    with pytest.raises(ConfigError, match=r"refine\.mine: `thresholds: tuned` needs a search"):
        study(runs, refine=tuned)


def test_two_runs_of_one_name_are_refused():
    tree = copy.deepcopy(DEMO)
    tree["datasets"]["refscenes-1"] = copy.deepcopy(tree["datasets"]["refscenes"])
    tree["refine"]["2-cpi"] = copy.deepcopy(tree["refine"]["cpi"])
    tree["study"].update(tune=[], runs=[
        block(methods=["2-cpi"]), block(datasets=["refscenes-1"], fractions=[2], methods=["cpi"])
    ])  # fmt: skip
    with pytest.raises(ConfigError, match="two runs are named refscenes-1-2-cpi-0"):
        stages(validate(tree))


def test_a_grid_that_does_not_fit_the_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    params, other = study(block()), study(block(seeds=[1]))
    with pytest.raises(ConfigError, match="run `semires grid`"):
        check_grid(params)
    assert write_grid(params) == "experiments/grid.yaml: 1 runs, 1 of them burn-ins"
    check_grid(params)
    with pytest.raises(ConfigError, match=r"experiments/grid\.yaml: .* run `semires grid`"):
        check_grid(other)
    Path("experiments/grid.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="run `semires grid`"):
        check_grid(params)


def test_names_and_fractions_are_text_for_every_reader_of_yaml(tmp_path: Path):
    path = tmp_path / "grid.yaml"
    path.write_text(grid_text(study(block(fractions=[0.1, 5], methods=["cpi-u"]))))
    tree = read_yaml(path)
    assert tree["runs"] == 4
    assert tree["grid"]["mutual"]["refscenes-0.1-cpi-u-0"]["fraction"] == "0.1"
    assert tree["grid"]["tune"] == {}
