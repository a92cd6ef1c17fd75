"""Document: the trials of a sweep as the JSON values that its report's script draws."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainkit.config.variation import Variation
from trainkit.sweep import table
from trainkit.sweep.study import Study
from trainkit.sweep.trial import Trial
from trainkit.tracking.report import FILE_NAME as REPORT_OF_RUN

MAX_CURVES = 500
DIGITS = 8
NOTHING, DIRECTORY, REPORT = 0, 1, 2
"""What there is of a trial to link to."""


def document(study: Study, trials: Sequence[Trial], best: Sequence[Trial], path: Path) -> dict[str, Any]:
    """Returns the values of trials by column, the curves to draw, and where the run directories are.

    Args:
        study: that they are of.
        trials: the best one first.
        best: that no other one beats.
        path: of the page, from which links lead to run directories.
    """
    places = {trial.number: place for place, trial in enumerate(trials)}
    results = [table.results(trial) for trial in trials]
    start = min((trial.started for trial in trials), default=0.0)
    return {
        "metrics": [{"name": name, "sign": sign} for name, sign in zip(study.metrics, study.signs, strict=True)],
        "keys": [key_of(variation) for variation in study.varied.values()],
        "states": list(table.STATES),
        "number": [trial.number for trial in trials],
        "state": [table.STATES.index(trial.state) for trial in trials],
        "values": [
            [None if values is None else _rounded(values[i]) for values in results] for i in range(len(study.metrics))
        ],
        "last": [
            _rounded(table.last(trial)) if values is None else None
            for trial, values in zip(trials, results, strict=True)
        ],
        "evaluations": [table.evaluations(trial) for trial in trials],
        "params": [[_param(variation, trial.params) for trial in trials] for variation in study.varied.values()],
        "seconds": [_rounded(trial.record.seconds, 5) for trial in trials],
        "starts": [trial.record.num_starts for trial in trials],
        "ended": [_rounded(trial.ended - start, 7) if trial.ended is not None else None for trial in trials],
        "links": [_what_is_there(study.run_dir(trial.number)) for trial in trials],
        "best": [places[trial.number] for trial in best],
        "curves": [{"trial": places[trial.number], **_curve(trial)} for trial in thinned(trials)],
        "trials": _address(study.run_dir(0).parent, path),
        "run_report": REPORT_OF_RUN,
    }


def key_of(variation: Variation) -> dict[str, Any]:
    """The values that a key may take, for an axis."""
    if variation.choices:
        return {"name": variation.key, "choices": list(variation.choices)}
    return {"name": variation.key, "low": variation.low, "high": variation.high, "log": variation.log}


def thinned(trials: Sequence[Trial], most: int = MAX_CURVES) -> list[Trial]:
    """The trials whose curves are drawn: the best half of `most`, and others evenly spread over the order.

    Args:
        trials: the best one first.
        most: of how many a curve is drawn.

    Returns:
        In their order; all that have been evaluated where these are no more.
    """
    curved = [trial for trial in trials if trial.reported]
    if len(curved) <= most:
        return curved
    head, rest = curved[: most // 2], curved[most // 2 :]
    num = most - len(head)
    return [*head, *(rest[i * len(rest) // num] for i in range(num))]


def addresses(study: Study, trial: Trial, path: Path) -> list[str]:
    """Where the page finds what there is of a trial: its run directory, and then its report."""
    directory = study.run_dir(trial.number)
    address = _address(directory, path)
    return [f"{address}/", f"{address}/{REPORT_OF_RUN}"][: _what_is_there(directory)]


def _address(directory: Path, path: Path) -> str:
    """Relative, and quoted so that no name is taken for a scheme such as `javascript:`."""
    return quote(os.path.relpath(directory, path.resolve().parent), safe="/")


def _what_is_there(directory: Path) -> int:
    if (directory / REPORT_OF_RUN).is_file():
        return REPORT
    return DIRECTORY if directory.is_dir() else NOTHING


def _curve(trial: Trial) -> dict[str, Any]:
    points = sorted(trial.reported.items())
    return {"x": [at for at, _ in points], "y": [_rounded(value) for _, value in points]}


def _param(variation: Variation, params: Mapping[str, Any]) -> float | int | None:
    """A number of a range; of choices, the place."""
    value = params.get(variation.key)
    if variation.choices:
        return variation.choices.index(value) if value in variation.choices else None
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float | None, digits: int = DIGITS) -> float | None:
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None
