"""Assessing: an evaluation of a recipe, with what its numbers are worth."""

import math
from collections.abc import Mapping

from trainkit.errors import ConfigError
from trainkit.evaluation import Assessment, Better, Interval, bootstrap
from trainkit.recipe import Recipe
from trainkit.tracking.means import number_of

_TOLERANCE = 1e-3  # between a metric and that of its samples, which may be summed in another order and precision


def assess(recipe: Recipe) -> Assessment:
    """Evaluates a recipe, and computes intervals of its metrics. Collective: every rank must call.

    Args:
        recipe: with its trained engines.

    Returns:
        The metrics, their intervals and baselines.

    Raises:
        ConfigError: for a metric that is no number, samples that give another value than `evaluate`, and a `better`
            that is neither `lower` nor `higher`.
    """
    metrics = {name: number_of(name, value) for name, value in recipe.evaluate().items()}
    baselines = recipe.baselines()
    return Assessment(
        metrics=metrics,
        intervals=_intervals(recipe, metrics),
        baselines={metric: dict(values) for metric, values in baselines.items()},
        better=_directions(recipe),
        ideals=tuple(recipe.ideals),
        decisive=recipe.best_metric.removeprefix("-") if recipe.best_metric else None,
    )


def _intervals(recipe: Recipe, metrics: Mapping[str, float]) -> dict[str, Interval]:
    samples, ranks = recipe.held_out_samples(), recipe.runtime.ranks
    if not samples:
        return {}
    found: dict[str, Interval] = {}
    error: Exception | None = None
    if ranks.is_main:
        try:
            for one in samples:
                for name, value in one.all_once().items():
                    _require_same(recipe, name, value, metrics.get(name))
                found |= bootstrap(one, seed=recipe.runtime.seed)
        except Exception as caught:
            error = caught
    ranks.raise_first(error)
    return ranks.broadcast_object(found)


def _require_same(recipe: Recipe, name: str, value: float, measured: float | None) -> None:
    whose = type(recipe).__name__
    if measured is None:
        raise ConfigError(f"{whose}.held_out_samples() has {name}, which evaluate() does not return")
    if math.isfinite(measured) and not math.isclose(value, measured, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        raise ConfigError(
            f"{name} is {measured:.6g} by {whose}.evaluate(), and {value:.6g} by its held_out_samples(): an interval "
            f"would be that of another number; both must be of the same samples"
        )


def _directions(recipe: Recipe) -> dict[str, Better]:
    found: dict[str, Better] = {}
    if recipe.best_metric:
        found[recipe.best_metric.removeprefix("-")] = "higher" if recipe.best_metric.startswith("-") else "lower"
    for name, direction in recipe.better.items():
        if direction not in ("lower", "higher"):
            raise ConfigError(f"{type(recipe).__name__}.better[{name!r}]={direction!r}: must be lower or higher")
        if found.setdefault(name, direction) != direction:
            raise ConfigError(
                f"{type(recipe).__name__}.better[{name!r}]={direction!r}, but best_metric={recipe.best_metric!r}, "
                f"by which {found[name]} is better: make them agree"
            )
    return found
