"""Optuna's samplers with a separate seed for each trial.

A sampler of Optuna that is seeded once repeats its first trials when a search continues in a new
process, and two processes would draw the same trials. Here the seed depends on the trial's number,
which is unique in a study.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from semires.errors import ConfigError
from semires.tuning.objective import Axis


class SeededSampler(BaseSampler):  # type: ignore[misc]
    """Makes a new sampler of Optuna for each trial, seeded by the trial's number.

    Args:
        kind: tpe, cmaes, random, or qmc: the points of one scrambled Sobol sequence by the trial's
            number (Optuna's own sampler repeats its points in a study that is continued).
            ``grid`` samples nothing, since all of its points are queued.
        seed: of the search.
        axes: the whole space, so that no sampler has to infer it from earlier trials.
        parallel: trials are long, and several processes run some at once.

    Raises:
        ConfigError: ``cmaes`` with one parameter, which it cannot search.
    """

    def __init__(
        self, kind: str, seed: int, axes: Mapping[str, Axis], parallel: bool = False
    ) -> None:
        if kind == "cmaes" and len(axes) < 2:
            raise ConfigError(
                f"tune.sampler: cmaes needs two parameters or more, and this search has only "
                f"{', '.join(axes)}; choose tpe"
            )
        self.kind, self.seed, self.parallel = kind, seed, parallel
        self.space = {
            name: FloatDistribution(axis.low, axis.high, log=axis.log)
            for name, axis in axes.items()
        }
        self._sampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self.kind == "tpe":
                return TPESampler(seed=seed, constant_liar=self.parallel)
            if self.kind == "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            return RandomSampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Make the trial's sampler."""
        self._sampler = self._make(trial.number)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, Any]:
        """The whole space, for the samplers that sample all parameters at once."""
        return {} if self.kind in ("random", "grid") else dict(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """The point of the Sobol sequence, or a value drawn by the trial's sampler."""
        if self.kind == "qmc":
            return self._sobol(trial.number)
        values: dict[str, Any] = self._sampler.sample_relative(study, trial, search_space)
        return values

    def _sobol(self, number: int) -> dict[str, float]:
        """A point of the scrambled Sobol sequence, scaled to the axes."""
        from scipy.stats import qmc  # takes a second to import

        engine = qmc.Sobol(len(self.space), scramble=True, rng=self.seed)
        if number:
            engine.fast_forward(number)
        units = zip(self.space.items(), engine.random(1)[0], strict=True)
        return {name: scaled(axis, float(unit)) for (name, axis), unit in units}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: Any,
    ) -> Any:
        """Delegate to the trial's sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def scaled(axis: FloatDistribution, unit: float) -> float:
    """A number in [0, 1] as a value on the axis."""
    if axis.log:
        low, high = np.log([axis.low, axis.high])
        return float(np.clip(np.exp(low + unit * (high - low)), axis.low, axis.high))
    return float(axis.low + unit * (axis.high - axis.low))
