"""Golden losses of the first steps of burn-in and mutual learning, per numerics class."""

import pytest
from helpers import ROOT

from semires.numerics import PROFILES
from semires.training.probe import measure

ADD = "python experiments/numerics/digest.py"


@pytest.mark.parametrize("profile", PROFILES)
def test_losses_are_the_golden_ones_of_this_numerics_class(profile: str):
    """Fails if a change of the model, the losses or the refinement changes bits."""
    probe = measure(profile)
    golden = ROOT / "tests/golden/losses" / f"{probe.name}.txt"
    if not golden.is_file():
        pytest.skip(f"no golden losses of {probe.name}; `{ADD} {profile}` adds them")
    assert probe.losses_text() == golden.read_text(), f"if meant so: {ADD}"
