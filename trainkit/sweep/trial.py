"""Trial: one configuration of a sweep, and what became of it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

KEY = "trainkit"
"""Of the attribute of Optuna's trials, and of the study, that is ours."""

Phase = Literal["running", "paused", "waiting"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a trial beside Optuna's own.

    Args:
        phase: `running`; `paused`, until it is among the best; or `waiting` to be started or continued.
        driver: the name of the driver that runs it.
        num_starts: how often it was started.
        num_lost: how often in a row its process was killed without a new checkpoint.
        seconds: of its processes, those that were killed included.
        error: why it failed, in one line.
        parent: the trial whose checkpoint it started from.
    """

    phase: Phase = "waiting"
    driver: str | None = None
    num_starts: int = 0
    num_lost: int = 0
    seconds: float = 0.0
    error: str | None = None
    parent: int | None = None


@dataclass(frozen=True)
class Trial:
    """One trial, as the storage has it.

    Args:
        number: from 0 on.
        params: the value of each key.
        state: `running`, `finished`, `pruned` or `failed`; `paused` and `waiting` as of a Record.
        values: what its metrics ended with; None: it has not, or did not.
        reported: the first metric by how many evaluations.
        record: beside Optuna's own.
        started: in seconds since 1970.
        ended: likewise; None: it has not.
    """

    number: int
    params: Mapping[str, Any]
    state: str
    values: Sequence[float] | None
    reported: Mapping[int, float]
    record: Record
    started: float
    ended: float | None = None


def trial_of(found: "FrozenTrial") -> Trial:
    """The trial that Optuna's storage has.

    Args:
        found: Optuna's.
    """
    stored = found.user_attrs.get(KEY)
    record = Record(**stored) if stored else Record()
    state = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}.get(found.state.name, record.phase)
    if state == "pruned" and record.error is not None:
        state = "failed"
    started = found.datetime_start.timestamp() if found.datetime_start else time.time()
    ended = found.datetime_complete.timestamp() if found.datetime_complete else None
    return Trial(found.number, found.params, state, found.values, found.intermediate_values, record, started, ended)
