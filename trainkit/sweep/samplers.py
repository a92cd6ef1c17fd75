"""Samplers: Optuna's search algorithms by name, and its distributions of a space."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trainkit.config.variation import Variation
from trainkit.errors import ConfigError
from trainkit.sweep.settings import Settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_MOST = 1_000_000  # values of a stepped range that a grid may have


def distributions(varied: Mapping[str, Variation]) -> "dict[str, BaseDistribution]":
    """The distributions that Optuna draws from, by key.

    Args:
        varied: the values of each key.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, variation in varied.items():
        if variation.choices:
            found[key] = CategoricalDistribution(variation.choices)
        elif variation.is_integer:
            step = 1 if variation.log else int(variation.step or 1)
            found[key] = IntDistribution(int(variation.low), int(variation.high), log=variation.log, step=step)
        else:
            found[key] = FloatDistribution(variation.low, variation.high, log=variation.log, step=variation.step)
    return found


def sampler(settings: Settings, varied: Mapping[str, Variation], *, number: int) -> "BaseSampler":
    """Optuna's sampler of this name.

    Args:
        settings: names it.
        varied: the values of each key.
        number: of the driver among those of the sweep: with one seed, two would draw the same configurations.

    Raises:
        ConfigError: where its package is not installed.
    """
    from optuna import samplers

    seed = (settings.seed * 1_000_003 + number) % 2**32
    if settings.sampler in ("random", "pbt"):  # of the first generation
        return samplers.RandomSampler(seed=seed)
    if settings.sampler == "grid":
        return _in_order(grid(varied), settings.seed)
    if settings.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed)
    if settings.sampler == "cmaes":
        try:
            importlib.import_module("cmaes")
        except ImportError as error:
            raise ConfigError("sampler=cmaes needs the package cmaes: pip install 'trainkit[cmaes]'") from error
        return samplers.CmaEsSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def _in_order(values: Mapping[str, list[Any]], seed: int) -> "BaseSampler":
    """All points of a grid, each once, in a random order by which they are found by a trial's number.

    Optuna's GridSampler raises RuntimeError when the last trial is told outside of `optimize` (5.0.0).
    """
    sizes = [len(each) for each in values.values()]
    order = np.random.default_rng(seed).permutation(math.prod(sizes))

    def point(number: int) -> dict[str, Any]:
        places = np.unravel_index(int(order[number % len(order)]), sizes)
        return {key: each[int(place)] for (key, each), place in zip(values.items(), places, strict=True)}

    return fixed(point)


def fixed(params: Callable[[int], Mapping[str, Any]]) -> "BaseSampler":
    """A sampler that draws nothing.

    Args:
        params: returns the value of each key, by the number of the trial.
    """
    from optuna.samplers import BaseSampler

    class Fixed(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return params(trial.number)[param_name]

    return Fixed()


def grid(varied: Mapping[str, Variation]) -> dict[str, list[Any]]:
    """All values of each key.

    Args:
        varied: choices, and ranges with a step.

    Raises:
        ConfigError: for a range that has too many.
    """
    found: dict[str, list[Any]] = {}
    for key, variation in varied.items():
        if variation.choices:
            found[key] = [*variation.choices]
            continue
        assert variation.step is not None
        num = math.floor((variation.high - variation.low) / variation.step + 1e-9) + 1
        if num > _MOST:
            raise ConfigError(f"sampler=grid: {key}={variation.text} has {num:,} values; give fewer")
        found[key] = [variation.low + i * variation.step for i in range(num)]
    return found


def num_trials(settings: Settings, varied: Mapping[str, Variation]) -> int:
    """How many trials a sweep has; of `pbt`, a generation.

    Args:
        settings: of the sweep.
        varied: the values of each key.
    """
    if settings.sampler == "pbt":
        return settings.trials or 8
    if settings.sampler != "grid":
        return settings.trials or 20
    all_of_grid = math.prod(len(values) for values in grid(varied).values())
    return min(settings.trials or all_of_grid, all_of_grid)
