"""params.yaml: every wrong value is one line that names the key, before any work."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.demo_params import DEMO, changed, with_method
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from semires.config.compose import composed, use
from semires.config.grid import grid_text
from semires.config.load import load_params, validate_file
from semires.config.schema import Params
from semires.config.validate import validate
from semires.errors import ConfigError
from semires.refine.strategies import STRATEGIES, Strategy
from semires.runs.key import RunKey
from semires.tuning.objective import Axis, space

ROOT = Path(__file__).parents[2]


def refusal(tree: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(tree, "params.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def shipped(name: str) -> Params:
    """One of experiments/*.yaml, with the file that it extends merged in."""
    tree = YAML(typ="safe", pure=True).load(composed(ROOT / f"experiments/{name}.yaml"))
    return validate_file(tree, name)


@pytest.mark.parametrize(
    "name", ["demo", "study", "refcoco", "refcoco+", "gref", "table1", "table1-all"]
)
def test_shipped_files_are_valid(name: str):
    embedded = ["refscenes", "refscenes+", "refscenes-g"]
    papers = {"table1": ["refcoco"], "table1-all": ["refcoco", "refcoco+", "gref"]}
    wanted = {"demo": embedded[:1], "study": embedded, **papers}.get(name, [name])
    assert shipped(name).study.datasets == wanted


def test_the_active_parameters_are_the_demo_s_and_the_grid_is_theirs():
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "experiments/demo.yaml").read_bytes()
    assert (ROOT / "experiments/grid.yaml").read_text() == grid_text(shipped("demo"))


def test_the_paper_s_values_are_in_its_files():
    for name in ("refcoco", "refcoco+", "gref"):
        params = shipped(name)
        assert (params.mutual.ema, params.mutual.lr, params.mutual.labelled_batch) == (
            0.996,
            5e-5,
            3,
        )
        assert params.refine["iom"].threshold == 0.5
        assert params.refine["cpi-u"].threshold_u == 0.7
        assert params.loss.pwa.model_dump() == {"mean": 0.5, "variance": 0.1, "offset": 1.3}
        assert params.model.swin.depths == [2, 2, 18, 2]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "gref", "table1", "table1-all"])
def test_every_value_of_the_paper_s_files_says_where_it_is_from(name: str):
    """P, C or H in its comment, or in the comment of its section."""
    path: list[bool] = []
    for line in (ROOT / f"experiments/{name}.yaml").read_text().splitlines():
        found = re.match(r"(?!extends:)([ -]*)[\w+-]+:(.*?)(#.*)?$", line)
        if found is None:
            continue
        depth = len(found[1]) // 2
        path[depth:] = [bool(re.search(r"\b[PCH]\b", found[3] or ""))]
        assert not found[2].strip() or any(path), line


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("study/run", [], "study.run: unknown key; did you mean 'runs'?"),
        ("study/runs/0/sed", [0], "study.runs.0.sed: unknown key; did you mean 'seeds'?"),
        ("mutual/emma", 0.9, "mutual.emma: unknown key; did you mean 'ema'?"),
        ("proposals/sources/sam/point_per_side", 3, "proposals.sources.sam.point_per_side: "
         "unknown key; did you mean 'points_per_side'?"),
        ("proposals/sources/felzenszwalb/sigmas", 3, "did you mean 'sigma'?"),
        ("refine/iom/treshold", 0.5, "refine.iom.treshold: unknown key; did you mean 'threshold'?"),
        ("loss/pwa/varience", 0.5, "loss.pwa.varience: unknown key; did you mean 'variance'?"),
        ("model/swin/depth", 0.5, "model.swin.depth: unknown key; did you mean 'depths'?"),
        ("optimiser", {}, "optimiser: unknown key; did you mean 'optimizer'?"),
        ("datasets/refscenes/image", "x", "did you mean 'images'?"),
    ],
)  # fmt: skip
def test_unknown_keys_offer_the_nearest_name(key: str, value: Any, wanted: str):
    assert wanted in refusal(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("mutual/ema", 1.5, "mutual.ema: "),
        ("mutual/ema", "0.9", "mutual.ema: "),
        ("mutual/accumulate", 1, "mutual.accumulate: unknown key"),
        ("runtime/threads", 10**9, "runtime.threads: "),
        ("model/swin/embed_dim", 10**30, "model.swin.embed_dim: "),
        ("model/bert/dropout", 1.0, "model.bert.dropout: "),
        ("augment/blur_radius", 1e300, "augment.blur_radius: "),
        ("mutual/steps", None, "mutual: give `epochs` or `steps` or both"),
        ("proposals/sources/sam/kind", "sm", "proposals.sources.sam: needs a `kind` of "),
        ("refine/iom/threshold", 1.2, "refine.iom.threshold: "),
        ("refine/cpi/threshold_o", None, "strategy cpi takes threshold_o, threshold_u"),
        ("study/runs", [], "study.runs: "),
        ("study/runs/0/methods", ["cpiu"], "study.runs.0.methods: 'cpiu' is not a key of `refine`; "
         "did you mean"),
        ("study/runs/0/methods", ["mltt"], "did you mean 'mlt'?"),
        ("study/runs/0/datasets", ["refscene"], "study.runs.0.datasets: 'refscene' is not a key of "
         "`datasets`; did you mean 'refscenes'?"),
        ("study/runs/0/sources", ["sum"], "study.runs.0.sources: 'sum' is not a key of "
         "`proposals.sources`; did you mean 'sam'?"),
        ("study/runs/0/sources", [], "study.runs.0.sources: "),
        ("study/runs/0/seeds", [], "study.runs.0.seeds: "),
        ("study/runs/0/seeds", [0, 0], "study.runs.0.seeds: duplicate value 0"),
        ("study/runs/0/methods", ["iom", "iom"], "study.runs.0.methods: duplicate value iom"),
        ("study/runs/0/fractions", [1, 1.0], "study.runs.0.fractions: duplicate value 1"),
        ("study/runs/0/fractions", [101], "study.runs.0.fractions.0: "),
        ("study/runs/0/fractions", [1, 0.001], "0.001 % of scenes.train"),
        ("study/runs/0/fractions", [0.1234567], "0.1234567 has more than six digits; its folder "
         "would be named 0.123457"),
        ("study/runs/0/fractions", [1, 100], "100 leaves no unlabelled image for baseline"),
        ("study/runs/0/model", "rela", "study.runs.0.model: leave it null; the main table"),
        ("study/runs/1/model", "rella", "study.runs.1.model: 'rella' is not a key of `models`; "
         "did you mean 'rela'?"),
        ("models/a.b", {}, "models.a.b.model: missing"),
        ("models/rela/model/witdh", 15, "models.rela.model.witdh: unknown key; did you mean"),
        ("models/rela/model/width", 48, "models.rela.model: width: 48 is no multiple of 32"),
        ("study/generated", ["refscene"], "study.generated: 'refscene' is not a key of `datasets`"),
        ("datasets/refscenes+/images_of", "refcene", "datasets.refscenes+.images_of: 'refcene' is "
         "not a key of `datasets`; did you mean 'refscenes'?"),
        ("datasets/refscenes+/images_of", "refscenes-g", "images_of: name a data set with images "
         "of its own"),
        ("datasets/refscenes+/images", "mine", "datasets.refscenes+.images_of: `images` is mine, "
         "but that of refscenes is data/raw/images/refscenes"),
        ("study/generated", ["refscenes+"], "images_of: add refscenes to study.generated"),
        ("study/tune/0/fractions", [3], "study.tune.0: refscenes at 3 %, seed 0, has no burn-in"),
        ("study/tune/0/seeds", [4], "study.tune.0: refscenes at 1 %, seed 4, has no burn-in"),
        ("study/tune/0/methods", ["baseline"], "study.tune.0.methods: baseline: the strategy "
         "`none` has no thresholds"),
        ("study/tune/0/methods", [], "study.tune.0.methods: list the methods to search"),
        ("study/tune/0/methods", ["supervised"], "study.tune.0.methods: list the methods"),
        ("refine/baseline/thresholds", "tuned", "refine.baseline: `thresholds: tuned` needs a "
         "search of baseline for refscenes at 0.1 %; add it to study.tune"),
        ("refine/control/thresholds", "tuned:cpiu", "refine.control.thresholds: 'cpiu' is not a "
         "key of `refine`; did you mean 'cpi-u'?"),
        ("refine/iom-60/thresholds", "tuned:cpi", "iom-60.thresholds: cpi has other thresholds"),
        ("refine/iom-60/thresholds", "tune", "refine.iom-60.thresholds: "),
        ("study/tune/0/methods", ["iom"], "refine.cpi-u-tuned: `thresholds: tuned:cpi-u` needs a "
         "search of cpi-u for refscenes at 1 %"),
        ("datasets/refscenes/labelled_lists", {1: "a.json"}, "datasets.refscenes.labelled_lists.1: "
         'a key must be text; write "1" in quotes'),
        ("datasets/refscenes/labelled_lists", {0.1: "a.json"}, 'write "0.1" in quotes'),
        ("datasets/refscenes/labelled_lists", {"1.0": "a.json"}, "write 1 instead of '1.0'"),
        ("datasets/refscenes/labelled_lists", {"1%": "a.json"}, "write a percentage instead of"),
        ("burn_in/steps_by_fraction", {5: 10}, 'write "5" in quotes'),
        ("burn_in/steps_by_fraction", {"5.0": 10}, "write 5 instead of '5.0'"),
        ("proposals/source", "sum", "proposals.source: 'sum' is not a key of"),
        ("model/swin/num_heads", [5, 2, 2, 2], "model.swin.num_heads: 5 heads do not divide"),
        ("model/bert/num_heads", 5, "model.bert.num_heads: 5 do not divide"),
        ("model/swin/patch_size", 16, "data.image_size: 96 is less than 8 patches"),
        ("refine/supervised", {"strategy": "none", "pwa": False}, "refine.supervised: "),
        ("refine/a+b", {"strategy": "none", "pwa": False}, "refine.a+b: "),
        ("scenes", None, "scenes: "),
    ],
)  # fmt: skip
def test_wrong_values_name_their_key(key: str, value: Any, wanted: str):
    assert wanted in refusal(changed(key, value))


class DefaultUsed(Exception):
    """A key that may be left out."""


def refusal_unless_default(tree: Any) -> str:
    try:
        validate(tree)
    except ConfigError as error:
        return str(error)
    raise DefaultUsed


def leaves(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = {str(number): block for number, block in enumerate(tree)}
    if not isinstance(tree, dict) or not tree:
        return [prefix]
    return [leaf for k, v in tree.items() for leaf in leaves(v, (*prefix, k))]


@pytest.mark.parametrize("leaf", leaves(DEMO), ids="/".join)
def test_every_key_refuses_a_wrong_type_and_its_absence(leaf: tuple[str, ...]):
    text = refusal(changed("/".join(leaf), {"no": object()}))
    assert leaf[0] in text
    tree = changed("/".join(leaf), None)
    node = tree
    for folder in leaf[:-1]:
        node = node[int(folder) if isinstance(node, list) else folder]
    del node[leaf[-1]]
    with contextlib.suppress(DefaultUsed):
        text = refusal_unless_default(tree)
        assert leaf[-1] in text or leaf[-2] in text


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*DEMO, "x"]), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_anything_else_is_refused_in_one_line(tree: Any):
    refusal(tree)


@given(st.binary(max_size=60))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape("params.yaml")):
        load_params(path)


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "experiments/demo.yaml").read_text().replace("lr: 0.001", "lr: 1e-3"))
    assert load_params(path).burn_in.lr == 0.001


def test_yaml_makes_no_objects(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text("study: !!python/object/apply:os.system ['touch owned']\n")
    with pytest.raises(ConfigError):
        load_params(path)
    assert not Path("owned").exists()


def test_use_keeps_comments_and_the_former_file(tmp_path: Path):
    target = tmp_path / "params.yaml"
    use(ROOT / "experiments/demo.yaml", target)
    demo = target.read_text()
    assert demo == (ROOT / "experiments/demo.yaml").read_text()
    said = use(ROOT / "experiments/study.yaml", target)
    assert "params.yaml.before" in said
    assert (tmp_path / "params.yaml.before").read_text() == demo
    study = target.read_text()
    assert load_params(target).study.seeds == [0, 1, 2]
    # Only the lines that study.yaml names differ, so the comments are still there.
    gone = set(demo.splitlines()) - set(study.splitlines())
    assert len(gone) < 14
    assert "# paper: 0.996" in study
    assert (tmp_path / "experiments/grid.yaml").read_text() == grid_text(load_params(target))


def test_a_file_with_differences_names_the_command_that_merges_it():
    path = ROOT / "experiments/study.yaml"
    with pytest.raises(ConfigError, match=f"extends demo.yaml; run `semires use {path}`"):
        load_params(path)


def test_use_of_a_wrong_file_changes_nothing(tmp_path: Path):
    target = tmp_path / "params.yaml"
    use(ROOT / "experiments/demo.yaml", target)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(f"extends: {ROOT}/experiments/demo.yaml\nmutual: {{emma: 1}}\n")
    with pytest.raises(ConfigError, match=r"mutual\.emma: unknown key; did you mean 'ema'"):
        use(wrong, target)
    assert target.read_text() == (ROOT / "experiments/demo.yaml").read_text()
    wrong.write_text("extends: wrong.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        composed(wrong)


def test_a_strategy_of_ones_own_is_one_entry(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"mine: no strategy 'cpi-a'; did you mean 'cpi-u'"):
        with_method(strategy="cpi-a", threshold=0.5)
    rule = Strategy({"least": 0.4}, scores={"least": lambda overlaps: overlaps.label_coverage})
    monkeypatch.setitem(STRATEGIES, "cpi-a", rule)
    params = with_method(strategy="cpi-a", least=0.5)
    assert space(params, RunKey("refscenes", 1, "mine", 0)) == {"least": Axis(0, 1, 0.5)}
    with pytest.raises(ConfigError, match=r"refine\.mine: strategy cpi-a takes least$"):
        with_method(strategy="cpi-a")
    with pytest.raises(ConfigError, match=r"mine\.leest: unknown key; did you mean 'least'\?$"):
        with_method(strategy="cpi-a", leest=0.5)
    with pytest.raises(ConfigError, match=r"refine\.mine\.least: .* not 1\.5$"):
        with_method(strategy="cpi-a", least=1.5)
    with pytest.raises(ConfigError, match=r"refine\.mine\.threshold_u: unknown key"):
        with_method(strategy="cpi-a", least=0.5, threshold_u=0.5)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  seed: 7\n", "  seed: !!bool foo\n", "not valid YAML"),
        ("  seed: 7\n", "  seed: !!int ''\n", "not valid YAML"),
        ("  seed: 7\n", f"  seed: 0x{'F' * 6000}\n", "scenes.seed: .* a number of 24000 bits"),
        (
            "      crop_n_layers: 0 ",
            "      crop_n_layers: 4 ",
            "have no points; points_per_side is only 8",
        ),
        ("fractions: [0.1, 1, 5, 10] ", "fractions: [1, 1.0] ", "duplicate value 1"),
        ("0.6, pwa: true}", "0.6, pwa: true, overrides: {mutual.emma: 1}}", "did you mean 'ema'"),
        ("0.6, pwa: true}", "0.6, pwa: true, overrides: {mutual.ema: 5}}", "mutual.ema: .* not 5"),
    ],
)
def test_what_a_file_alone_can_hold(tmp_path: Path, old: str, new: str, line: str):
    """Refused by every command, and by `use` before anything is replaced."""
    text = (ROOT / "experiments/demo.yaml").read_text()
    if "crop" in old:
        text = text.replace("downscale_factor: 1 ", "downscale_factor: 3 ")
    assert old in text
    wrong, target = tmp_path / "wrong.yaml", tmp_path / "params.yaml"
    wrong.write_text(text.replace(old, new, 1))
    target.write_bytes(b"\xff before")
    with pytest.raises(ConfigError, match=line) as caught:
        use(wrong, target)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"\xff before"
    assert not (tmp_path / "experiments").exists()


def test_new_keys_of_a_method_are_recorded_only_where_they_are_set():
    """The fingerprint of a run that does not use them stays as it was."""
    method = validate(DEMO).refine["cpi-u"]
    keys = {"strategy", "pwa", "threshold_u", "unlabelled", "keep", "strong", "thresholds"}
    assert set(method.model_dump()) == keys | {"overrides"}
    assert "held_out" not in validate(DEMO).burn_in.model_dump()
    rival = {"strategy": "none", "weighting": "softmatch", "views": 2, "temperature": 2}
    params = validate(changed("refine/rival", rival))
    dumped = params.refine["rival"].model_dump()
    assert dumped.items() >= {**rival, "pwa": False}.items()
    assert validate(params.model_dump()) == params


def test_weighting_and_pwa():
    def rule(**values: Any) -> str:
        return (
            validate(changed("refine/rival", {"strategy": "none", **values}))
            .refine["rival"]
            .weight_rule
        )

    assert [rule(pwa=True), rule(pwa=False)] == ["pwa", "none"]
    assert [rule(weighting=name) for name in ("pwa", "corrmatch")] == ["pwa", "corrmatch"]
    both = {"strategy": "none", "pwa": True, "weighting": "softmatch"}
    assert "refine.rival: `pwa` contradicts `weighting`" in refusal(changed("refine/rival", both))
    wrong = {"strategy": "none", "weighting": "softmax"}
    assert "refine.rival.weighting: no weighting 'softmax'; did you mean 'softmatch'" in refusal(
        changed("refine/rival", wrong)
    )
    for weighting in ("pwa", "softmatch"):  # PWA's are in `loss.pwa`
        other = {"strategy": "none", "weighting": weighting, "pwa_mean": 0.5}
        assert "refine.rival.pwa_mean: unknown key" in refusal(changed("refine/rival", other))
    assert "views" in refusal(changed("refine/cpi-u/views", 3))
    assert "temperature" in refusal(changed("refine/cpi-u/temperature", 0))
