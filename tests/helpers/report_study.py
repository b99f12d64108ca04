"""The small study of the report's tests: its parameters, and the report in a process of its own."""

from helpers import ROOT
from semires.config.validate import read_yaml, validate
from semires.reporting.report import report

PAPERS = {"coco": "refcoco", "coco+": "refcoco+"}  # data sets of the paper with RefScenes' files


def small_study():
    """The embedded study with two fractions, two seeds and two methods."""
    values = read_yaml(ROOT / "experiments/demo.yaml")
    block = {"fractions": [1, 10], "seeds": [0, 1], "methods": ["baseline", "cpi-u"]}
    values["study"]["runs"][0] |= block
    del values["study"]["runs"][2:]  # the trainings with tuned thresholds
    values["evaluation"]["bootstrap_samples"] = 200
    return validate(values)


def with_study(params, **lists):
    """The parameters with other lists in the study's first block, and the data sets of PAPERS."""
    values = params.model_dump()
    for name, dataset in PAPERS.items():
        values["datasets"][name] = values["datasets"]["refscenes"] | {"dataset": dataset}
    values["study"]["runs"][0] |= lists
    del values["study"]["runs"][2:]  # the trainings with tuned thresholds
    values["study"]["tune"] = []
    return validate(values)


if __name__ == "__main__":
    report(small_study())
