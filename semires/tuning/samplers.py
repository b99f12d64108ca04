"""Samplers whose choice for a trial depends on its place in the study and on the trials before it.

Optuna's own, seeded once, repeat their first trials when a study goes on in a new process, and two
processes would draw the same ones. Here every trial gets a generator of its own, seeded by its
place, so that one process, two processes or a resumed one draw from the same sequence.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from semires.errors import ConfigError
from semires.tuning.objective import PAPER_GRID, Axis
from semires.tuning.storage import slot


class PlacedSampler(BaseSampler):  # type: ignore[misc]
    """Makes a new sampler of a kind for each trial, seeded by the trial's place.

    Args:
        kind: tpe, cmaes, random, qmc or grid (whose points all stand in ``first``).
        seed: of the whole sequence.
        axes: the space.
        first: the points of the first trials.
        parallel: trials are long and several processes run some at once.

    Raises:
        ConfigError: CMA-ES is asked to search one parameter, which it cannot.
    """

    def __init__(
        self,
        kind: str,
        seed: int,
        axes: Mapping[str, Axis],
        first: Sequence[dict[str, float]] = (),
        parallel: bool = False,
    ) -> None:
        if kind == "cmaes" and len(axes) < 2:
            raise ConfigError(
                f"tune.sampler: cmaes needs two parameters or more, and {', '.join(axes)} is all "
                "there is to search; choose tpe"
            )
        self.kind, self.seed, self.axes = kind, seed, axes
        self.first, self.parallel = first, parallel
        self._sampler: BaseSampler = RandomSampler(seed=seed)
        self._point: dict[str, float] = {}

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Seed the trial's own sampler."""
        place = slot(study, trial)
        seed = int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.kind == "tpe":
                self._sampler = TPESampler(seed=seed, constant_liar=self.parallel)
            elif self.kind == "cmaes":
                self._sampler = CmaEsSampler(seed=seed, warn_independent_sampling=False)
            else:
                self._sampler = RandomSampler(seed=seed)
        if place < len(self.first):
            self._point = self.first[place]
        else:
            self._point = self._sobol(place) if self.kind == "qmc" else {}
        self._sampler.before_trial(study, trial)

    def _sobol(self, place: int) -> dict[str, float]:
        """The scrambled Sobol sequence's point number ``place``, scaled to the axes."""
        from scipy.stats import qmc  # a second to import

        engine = qmc.Sobol(len(self.axes), scramble=True, rng=self.seed)
        if place:
            engine.fast_forward(place)
        units = engine.random(1)[0]
        pairs = zip(self.axes.items(), units, strict=True)
        return {name: scaled(axis, float(unit)) for (name, axis), unit in pairs}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, Any]:
        """The whole space: it is known, so that no sampler has to read it off earlier trials."""
        if self._point or self.kind not in ("tpe", "cmaes"):
            return {}
        return {
            name: FloatDistribution(axis.low, axis.high, log=axis.log)
            for name, axis in self.axes.items()
        }

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """As the trial's sampler has it."""
        values: dict[str, Any] = self._sampler.sample_relative(study, trial, search_space)
        return values

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: Any,
    ) -> Any:
        """The given or Sobol point's coordinate, or as the trial's sampler has it."""
        if param_name in self._point:
            return self._point[param_name]
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        state: optuna.trial.TrialState,
        values: Any,
    ) -> None:
        """As the trial's sampler has it."""
        self._sampler.after_trial(study, trial, state, values)


def scaled(axis: Axis, unit: float) -> float:
    """A number in [0, 1] as a value on the axis."""
    if axis.log:
        low, high = np.log([axis.low, axis.high])
        return float(np.clip(np.exp(low + unit * (high - low)), axis.low, axis.high))
    return axis.low + unit * (axis.high - axis.low)


def grid(axes: Mapping[str, Axis]) -> list[dict[str, float]]:
    """The paper's grid of Table 3 over the thresholds; other axes stay at their given values."""
    choices = [
        PAPER_GRID if name.startswith("threshold") else (axis.given,) for name, axis in axes.items()
    ]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*choices)]
