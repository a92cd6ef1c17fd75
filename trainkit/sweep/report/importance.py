"""Importance: how much each key decides whether a trial is among the best, by PED-ANOVA."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainkit.sweep import samplers, table
from trainkit.sweep.trial import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from trainkit.config.variation import Variation

LEAST = 20
"""Finished trials, below which nothing is said."""
BEST_SHARE, LEAST_BEST = 0.1, 5  # Optuna's documentation asks for five trials or more among the best


def importances(
    trials: Sequence[Trial], signs: Sequence[float], varied: "Mapping[str, Variation]"
) -> dict[str, float] | None:
    """Shares of the keys in what tells the best trials from the others.

    By PED-ANOVA (Watanabe, Bansal & Hutter 2023, IJCAI, arXiv 2304.10255): how far the values of a key among the best
    trials are from those among all. It takes time in proportion to the trials, needs no other model of them, and takes
    several metrics by their Pareto fronts; fANOVA fits a random forest, which needs far more of them.

    Args:
        trials: of a sweep; those that have finished count.
        signs: of each metric, -1 where higher is better.
        varied: the values of each key.

    Returns:
        By key, the largest first; they sum to 1. None: too few trials have finished.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = samplers.distributions(varied)
    found = [_frozen(trial, distributions) for trial in trials if table.results(trial) is not None]
    finished = [trial for trial in found if trial is not None]
    if len(finished) < LEAST:
        return None
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(directions=[maximize if sign < 0 else minimize for sign in signs])
    study.add_trials(finished)
    share = share_of_best(len(finished))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that several metrics are taken by their fronts
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _frozen(trial: Trial, distributions: "dict[str, BaseDistribution]") -> "FrozenTrial | None":
    """A trial as Optuna has it; None where a value is outside of the range that the sweep has now."""
    import optuna

    try:
        return optuna.trial.create_trial(
            params=dict(trial.params), distributions=distributions, values=[*(trial.values or ())]
        )
    except ValueError:
        return None


def share_of_best(num_finished: int) -> float:
    """The share of the trials that counts as the best."""
    return max(BEST_SHARE, LEAST_BEST / num_finished)
