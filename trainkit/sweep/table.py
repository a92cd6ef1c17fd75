"""Table: the trials of a sweep in the order of their values, as rows of text, and as records for other programs."""

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.checkpoint import write_text
from trainkit.config.overrides import read
from trainkit.errors import ConfigError
from trainkit.json_text import parse_json
from trainkit.sweep.study import Study
from trainkit.sweep.trial import Trial
from trainkit.tracking import jsonl
from trainkit.tracking.console import duration

STATES = ("finished", "running", "paused", "waiting", "pruned", "failed")
SUFFIXES = (".csv", ".json", ".jsonl")
_TAIL = 1 << 16


def front(trials: Sequence[Trial], signs: Sequence[float]) -> list[Trial]:
    """The finished trials that no other one beats: of one metric the best, of several the Pareto front.

    Args:
        trials: of a sweep.
        signs: of each metric, -1 where higher is better.

    Returns:
        In the order of the first metric, then of the numbers; of one metric one trial; empty where none has finished.
    """
    found = sorted((_costs(trial, signs), trial.number, trial) for trial in trials if _is_finite(trial))
    if len(signs) == 1:
        return [trial for _, _, trial in found[:1]]
    kept: list[Trial] = []
    costs_of_kept = np.empty((len(found), len(signs)))
    for costs, _, trial in found:  # sorted: a later one beats none before it
        others = costs_of_kept[: len(kept)]
        if not np.any((others <= costs).all(1) & (others < costs).any(1)):
            costs_of_kept[len(kept)] = costs
            kept.append(trial)
    return kept


def ordered(trials: Sequence[Trial], signs: Sequence[float]) -> list[Trial]:
    """Trials, the best one first.

    Those that have finished come first, by their value; of several metrics those that fewer others beat. Then come
    the others, by how far they have come, and by the value that they had there; and last those that have failed.

    Args:
        trials: of a sweep.
        signs: of each metric, -1 where higher is better.
    """
    finished = [trial for trial in trials if _is_finite(trial)]
    of_front = {trial.number for trial in front(finished, signs)}
    finished.sort(key=lambda t: (t.number not in of_front, _costs(t, signs), t.number))
    done = {trial.number for trial in finished}
    rest = [trial for trial in trials if trial.number not in done]
    rest.sort(key=lambda t: (t.state == "failed", -evaluations(t), _or_worst(last(t), signs[0]), t.number))
    return [*finished, *rest]


def results(trial: Trial) -> Sequence[float] | None:
    """The values of a trial that has finished; Optuna gives those that were pruned one, too."""
    return trial.values if trial.state == "finished" else None


def evaluations(trial: Trial) -> int:
    """How many evaluations of a trial are known."""
    return max(trial.reported, default=0)


def last(trial: Trial) -> float | None:
    """The first metric of a trial as it was measured last."""
    values = results(trial)
    if values is not None:
        return values[0]
    return trial.reported[evaluations(trial)] if trial.reported else None


def counts(trials: Sequence[Trial]) -> str:
    """How many trials are in each state, in words."""
    numbers = Counter(trial.state for trial in trials)
    return ", ".join(f"{numbers[state]:,} {state}" for state in STATES if numbers[state]) or "no trials yet"


def times(trials: Sequence[Trial]) -> str:
    """How long the processes of all trials ran, and in which time, in words."""
    words = f"{duration(sum(trial.record.seconds for trial in trials))} of trials"
    ended = max((trial.ended for trial in trials if trial.ended is not None), default=None)
    if ended is None:
        return words
    return f"{words} in {duration(max(0.0, ended - min(trial.started for trial in trials)))}"


def named(trial: Trial, metrics: Sequence[str]) -> str:
    """A finished trial and its values, in words."""
    assert trial.values is not None
    values = ", ".join(f"{name} {number(value)}" for name, value in zip(metrics, trial.values, strict=True))
    return f"trial {trial.number}: {values}"


def steps(run_dir: Path) -> int | None:
    """How many steps a run has logged; None: none."""
    try:
        with (run_dir / jsonl.FILE_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
        found = parse_json(lines[-1])["step"]
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or it is being written
        return None
    return found if isinstance(found, int) else None


def number(value: Any) -> str:
    """A value of a metric or a key as text of a few letters."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def headings(metrics: Sequence[str], keys: Sequence[str]) -> list[str]:
    """What the columns of `rows` are called."""
    return ["trial", "state", *metrics, "evaluations", *keys, "time", "starts"]


def rows(trials: Sequence[Trial], metrics: Sequence[str], keys: Sequence[str]) -> list[list[str]]:
    """Trials as rows of text. What has not finished has the value that it had last.

    Args:
        trials: in the order of the rows.
        metrics: their names.
        keys: that are varied.

    Returns:
        For each trial, texts below `headings`.
    """
    found = []
    for trial in trials:
        values: list[float | None] = [*(results(trial) or ())] or [last(trial), *[None] * (len(metrics) - 1)]
        num = evaluations(trial)
        found.append(
            [
                str(trial.number),
                trial.state,
                *map(number, values),
                str(num) if num else "",
                *(number(trial.params.get(key)) for key in keys),
                duration(trial.record.seconds),
                str(trial.record.num_starts),
            ]
        )
    return found


def failures(trials: Sequence[Trial]) -> list[tuple[int, str]]:
    """The number of each trial that has failed, and why in one line."""
    failed = [trial for trial in trials if trial.state == "failed"]
    return [(trial.number, " ".join((trial.record.error or "no reason is known").split())) for trial in failed]


def records(study: Study, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Trials as JSON-able values.

    Args:
        study: that they are of.
        trials: in the order of the records.
    """
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "values": _named(study.metrics, results(trial)),
            "last": _finite(last(trial)),
            "params": {key: _typed(study, key, value) for key, value in trial.params.items()},
            "reported": {str(at): _finite(value) for at, value in sorted(trial.reported.items())},
            "seconds": trial.record.seconds,
            "starts": trial.record.num_starts,
            "parent": trial.record.parent,
            "error": trial.record.error,
            "run_dir": str(study.run_dir(trial.number)),
        }
        for trial in trials
    ]


def export(study: Study, path: Path) -> int:
    """Writes all trials into a file for other programs, by its suffix: `.csv`, `.json` or `.jsonl`.

    Args:
        study: of the sweep.
        path: of the file, which must not exist.

    Returns:
        The number of trials.

    Raises:
        ConfigError: for another suffix, a file that exists, and one that cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: must end in {', '.join(SUFFIXES)}, such as {path.with_suffix('.csv')}")
    if path.exists():
        raise ConfigError(f"{path}: there is such a file; give another name, or remove it")
    found = records(study, study.trials())
    if path.suffix == ".csv":
        text = _csv(found, study.metrics, [*study.varied])
    elif path.suffix == ".json":
        text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    else:
        text = "".join(json.dumps(one, allow_nan=False) + "\n" for one in found)
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    return len(found)


def _csv(found: Sequence[Mapping[str, Any]], metrics: Sequence[str], keys: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = ["seconds", "starts", "parent", "error", "run_dir"]
    writer.writerow(["number", "state", *metrics, "last", "evaluations", *keys, *plain])
    for one in found:
        values, num = one["values"] or {}, max(map(int, one["reported"]), default=None)
        writer.writerow(
            [
                one["number"],
                one["state"],
                *(values.get(name) for name in metrics),
                one["last"],
                num,
                *(_cell(one["params"].get(key)) for key in keys),
                *(one[name] for name in plain),
            ]
        )
    return text.getvalue()


def _cell(value: Any) -> Any:
    """As it is typed in an override."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _typed(study: Study, key: str, value: Any) -> Any:
    """A choice is stored as it was typed."""
    return read([f"{key}={value}"])[0].value if isinstance(value, str) and key in study.varied else value


def _named(metrics: Sequence[str], values: Sequence[float] | None) -> dict[str, float | None] | None:
    return None if values is None else dict(zip(metrics, map(_finite, values), strict=True))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _is_finite(trial: Trial) -> bool:
    return trial.state == "finished" and trial.values is not None and all(map(math.isfinite, trial.values))


def _costs(trial: Trial, signs: Sequence[float]) -> tuple[float, ...]:
    assert trial.values is not None
    return tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))


def _or_worst(value: float | None, sign: float) -> float:
    return sign * value if value is not None and math.isfinite(value) else math.inf
