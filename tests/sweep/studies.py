"""Sweeps for tests, without training."""

import math
import random
from typing import Any

from trainkit.sweep.settings import Settings
from trainkit.sweep.study import DRIVERS, begin
from trainkit.sweep.trial import Record, Trial

SPACE = {"optimizer.lr": "log(1e-4,1e-1)", "recipe.batch_size": "4,8,16", "recipe.dropout": "interval(0.0,0.5)"}


def opened(directory, metrics=("held_out_loss",), **settings):
    """An empty study as a driver has it."""
    (directory / DRIVERS / "own").mkdir(parents=True)
    given: dict[str, Any] = {"overrides": ("experiment=toy_short",), "space": SPACE, "trials": 40} | settings
    made = Settings(**given)
    return begin(directory, made, metrics=metrics, storage=None, driver="own")


def trial(
    number, values=None, *, state="finished", reported=None, params=None, error=None, seconds=2.0, starts=1, parent=None
):
    """A trial as a study has it."""
    params = params or {"optimizer.lr": 0.01, "recipe.batch_size": "4", "recipe.dropout": 0.1}
    record = Record(num_starts=starts, seconds=seconds, error=error, parent=parent)
    started = 1e9 + 3.0 * number
    ended = started + seconds if state in ("finished", "pruned", "failed") else None
    return Trial(number, params, state, values, reported or {}, record, started, ended)


def value(one):
    """The first value of a trial that has finished."""
    return one.values[0]


def drawn(num, *, num_metrics=1, num_evaluations=8, seed=0, states=True):
    """Trials whose first value depends on the learning rate, and hardly on anything else."""
    draw = random.Random(seed)
    found = []
    for number in range(num):
        lr, dropout = 10 ** draw.uniform(-4, -1), draw.uniform(0, 0.5)
        params = {"optimizer.lr": lr, "recipe.batch_size": draw.choice(["4", "8", "16"]), "recipe.dropout": dropout}
        value = (
            0.2 + (math.log10(lr) + 2.3) ** 2 + 0.02 * draw.random() + (50 * draw.random() if number % 40 == 7 else 0)
        )
        curve = {at: value + 3 * math.exp(-at / 2) for at in range(1, num_evaluations)} | {num_evaluations: value}
        kind = number % 10 if states else 0
        values = [value, *(1 / value + draw.random() for _ in range(num_metrics - 1))]
        if kind in (3, 6):
            first = dict(list(curve.items())[: num_evaluations // 2]) if num_metrics == 1 else {}
            found.append(trial(number, state="pruned", params=params, reported=first, seconds=1.0))
        elif kind == 9:
            found.append(
                trial(number, state="failed", params=params, error="CUDA out of memory. Tried to allocate 2 GiB")
            )
        else:
            found.append(trial(number, values, params=params, reported=curve if num_metrics == 1 else {}))
    return found
