"""Length: when a run ends."""

from collections.abc import Mapping
from typing import Any

from trainkit.errors import ConfigError
from trainkit.recipe import Recipe
from trainkit.training.budget import Budget
from trainkit.training.patience import Patience


class Length:
    """Ends a run at the recipe's `num_samples`, or before: by a time budget, or when evaluations stop improving.

    All ranks decide alike.

    Args:
        recipe: of the run.
        metric: the name of the recipe's `best_metric`.
        minutes: see `Trainer`.
        patience: see `Trainer`.
        evaluate_every: see `Trainer`.

    Raises:
        ConfigError: for a `patience` without a metric or evaluations, and `minutes` with schedules that restart.
    """

    def __init__(
        self, recipe: Recipe, metric: str, *, minutes: float | None, patience: int | None, evaluate_every: int | None
    ) -> None:
        if patience is not None:
            _require_measure(recipe, metric, patience, evaluate_every)
        if minutes is not None and recipe.restarts_schedules:
            raise ConfigError(
                f"minutes={minutes:g} compresses one learning-rate schedule, and each phase of this run has its own: "
                f"set minutes=null, and the num_steps of the phases to what fits the time"
            )
        self.recipe, self._metric, self.minutes = recipe, metric, minutes
        self.budget, self.patience = Budget(minutes), Patience(patience)
        self.time_is_up = False

    def reason(self, position: int) -> str | None:
        """Why the run ends at `position`; empty: at its configured length; None: it does not end."""
        if position >= self.recipe.num_samples:
            return ""
        if self.patience.is_exhausted:
            return (
                f"no better {self._metric} than that of step {self.patience.best_step} in {self.patience.limit} "
                f"evaluations: patience={self.patience.limit}"
            )
        if self.time_is_up:
            return f"minutes={self.minutes:g} are over, at {position / self.recipe.num_samples:.0%} of all samples"
        return None

    def to_train_on(self, position: int) -> str:
        """How to continue a run that has ended, or to start over."""
        again = "to train again from the start: the same command with another run_dir"
        more = "a larger patience, or null" if self.patience.is_exhausted else "more minutes, or null"
        if position >= self.recipe.num_samples:
            if self.recipe.length_key is None:
                return again
            more = f"a larger {self.recipe.length_key}"
        return f"to train on: the same command with {more}; {again}"

    def see(self, step: int, metrics: Mapping[str, float], value: float | None) -> None:
        """Takes an evaluation into account.

        Args:
            step: steps done.
            metrics: of the evaluation.
            value: the recipe's metric, lower is better; None: it is not finite.

        Raises:
            ConfigError: where `patience` is set and its metric is not among `metrics`.
        """
        if self.patience.limit is not None and self._metric not in metrics:
            raise ConfigError(
                f"patience={self.patience.limit}: best_metric of {type(self.recipe).__name__} is {self._metric!r}, and "
                f"its evaluate() returns {', '.join(metrics) or 'nothing'}"
            )
        self.patience.see(step, value)

    def state_dict(self) -> dict[str, Any]:
        """The states of the budget and of patience."""
        return {"budget": self.budget.state_dict(), "patience": self.patience.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, same_held_out: bool) -> None:
        """Takes over the state of a checkpoint.

        Args:
            state: of `state_dict`.
            same_held_out: whether the checkpoint was evaluated on the current held-out data.
        """
        if same_held_out:
            self.patience.load_state_dict(state.get("patience", {}))
        self.load_budget(state.get("budget", {}))

    def load_budget(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of the budget alone."""
        self.budget.load_state_dict(state)
        self.time_is_up = self.time_is_up or self.budget.was_spent


def _require_measure(recipe: Recipe, metric: str, patience: int, evaluate_every: int | None) -> None:
    if patience < 1:
        raise ConfigError(f"patience={patience}: must be 1 or more evaluations, or null")
    if not metric:
        raise ConfigError(
            f"patience={patience}: {type(recipe).__name__} has no best_metric to improve; leave patience out"
        )
    if evaluate_every is None:
        raise ConfigError(f"patience={patience} counts evaluations: give evaluate_every, in steps")
