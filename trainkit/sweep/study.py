"""Study: the trials of a sweep in Optuna's storage, and which process has each of them.

Optuna's storage is the only record of trials: their numbers, values and states. What it has no words for, such as a
trial that is paused or whose process was killed, is in one attribute of each trial. Drivers change it under a lock of
the sweep's directory, which the kernel releases when its holder is killed.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from trainkit.checkpoint import run_directory, write_text
from trainkit.errors import ConfigError
from trainkit.sweep import samplers
from trainkit.sweep.population import following
from trainkit.sweep.rungs import Rungs
from trainkit.sweep.settings import Settings, require_same
from trainkit.sweep.storage import JOURNAL, mend_journal, open_storage, without_password
from trainkit.sweep.trial import KEY, Phase, Record, Trial, trial_of

SETTINGS_FILE, LOCK = "sweep.json", ".lock"
TRIALS, DRIVERS = "trials", "drivers"
NAME = "trainkit"  # of the study in a journal of its own


class Study:
    """The study of a sweep, opened by one driver, or by a reader.

    Args:
        directory: of the sweep.
        settings: of the sweep.
        storage: the URL of a database, such as `postgresql+psycopg://host/name`; None: a journal file in the directory.
        metrics: names, each after a `-` where higher is better.
        driver: a name for this driver; None: it only reads.

    Raises:
        ConfigError: where the storage cannot be opened.
    """

    def __init__(
        self, directory: Path, settings: Settings, *, storage: str | None, metrics: Sequence[str], driver: str | None
    ) -> None:
        import optuna
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.directory, self.settings, self.driver = directory.resolve(), settings, driver
        self.metrics = [metric.removeprefix("-") for metric in metrics]
        self.signs = [-1.0 if metric.startswith("-") else 1.0 for metric in metrics]
        self.varied = settings.variations()
        self._num_trials = samplers.num_trials(settings, self.varied)
        self._distributions = samplers.distributions(self.varied)
        self._lock, self._depth = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666), 0
        self._journal = self.directory / JOURNAL if storage is None else None
        self._ended: list[Trial] = []  # the first trials, as long as all of them have ended
        directions = [StudyDirection.MAXIMIZE if sign < 0 else StudyDirection.MINIMIZE for sign in self.signs]
        with self.locked():
            self._storage = open_storage(self.directory, storage)
            try:
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=NAME if storage is None else f"{NAME} {self.directory}",
                    directions=directions,
                    load_if_exists=True,
                )
            except optuna.exceptions.OptunaError as error:
                raise ConfigError(f"--storage {without_password(storage)}: {error}") from error
            number = self._study.user_attrs.get(f"{KEY} drivers", 0)
            if driver is not None:
                self._study.set_user_attr(f"{KEY} drivers", number + 1)
            self._study.sampler = samplers.sampler(settings, self.varied, number=number)
        self._median = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0)

    def close(self) -> None:
        """Lets go of the lock's file and the storage."""
        os.close(self._lock)
        self._storage.remove_session()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other driver changes the study."""
        if self._depth == 0:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            if self._journal is not None:
                mend_journal(self._journal)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    @property
    def num_trials(self) -> int:
        """Of the whole sweep; of `pbt`, as far as is known."""
        return self._num_trials * self._num_generations()

    def _num_generations(self) -> int:
        if self.settings.sampler != "pbt" or self.num_evaluations is None:
            return 1
        return math.ceil(self.num_evaluations / self.settings.interval)

    # -- reading -----------------------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """All trials, by their numbers."""
        with self.locked():  # of a journal, no line may be read that is being written
            found = self._study.get_trials(deepcopy=False)
        for number in range(len(self._ended), len(found)):
            if not found[number].state.is_finished():
                break
            self._ended.append(trial_of(found[number]))
        return [*self._ended, *(trial_of(each) for each in found[len(self._ended) :])]

    def run_dir(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.directory / TRIALS / f"{number:05d}"

    def is_alive(self, driver: str | None) -> bool:
        """Whether a driver of this sweep runs."""
        return driver is not None and run_directory.state_of(self.directory / DRIVERS / driver) == "held"

    def overrides(self, trial: Trial) -> list[str]:
        """What a trial's configuration has of its own."""
        return [self.varied[key].of(value) for key, value in trial.params.items()]

    @property
    def num_evaluations(self) -> int | None:
        """Evaluations of a whole trial, once one has been seen."""
        found = self._study.user_attrs.get(f"{KEY} evaluations")
        return int(found) if found is not None else None

    # -- which trial comes next ------------------------------------------------------------------------------------

    def take(self) -> Trial | None:
        """Takes the next trial for this driver: one that was lost, one that may go on, or a new one.

        Returns:
            The trial; None: there is none now. A call after other trials have ended may find one.
        """
        with self.locked():
            trials = self.trials()
            chosen = self._lost(trials) or self._promoted(trials)
            if chosen is None and len(trials) < self.num_trials:
                chosen = self._new(trials)
            if chosen is None:
                return None
            started = replace(
                chosen.record, phase="running", driver=self.driver, num_starts=chosen.record.num_starts + 1
            )
            self._write(chosen.number, started)
            return replace(chosen, record=started, state="running")

    def _new(self, trials: Sequence[Trial]) -> Trial | None:
        """A new trial; None: its generation waits for the one before."""
        parent, size = None, self._num_trials
        if self.settings.sampler == "pbt" and len(trials) >= size:
            first = len(trials) // size * size  # of the new generation
            before = trials[first - size : first]
            if any(trial.state in ("running", "waiting") for trial in before):
                return None
            values = [self.signs[0] * t.values[0] if t.state == "finished" and t.values else math.inf for t in before]
            if not any(map(math.isfinite, values)):
                return None
            members = following(values, [t.params for t in before], self.varied, seed=self.settings.seed + first)
            member = members[len(trials) - first]
            parent = before[member.parent].number
            self._study.sampler = samplers.fixed(lambda number: member.params)
        asked = self._study.ask(self._distributions)
        chosen = next(trial for trial in self.trials() if trial.number == asked.number)
        return replace(chosen, record=replace(chosen.record, parent=parent))

    def _lost(self, trials: Sequence[Trial]) -> Trial | None:
        """A trial that waits, or whose driver is gone and whose processes have ended too."""
        for trial in trials:
            is_open = trial.state == "waiting" or (trial.state == "running" and trial.record.driver != self.driver)
            if not is_open or self.is_alive(trial.record.driver):
                continue
            if run_directory.state_of(self.run_dir(trial.number)) != "held":
                return trial
        return None

    def _promoted(self, trials: Sequence[Trial]) -> Trial | None:
        """The paused trial that may go on and has come furthest."""
        rungs = self._rungs()
        if rungs is None:
            return None
        values = self._by_evaluations(trials)
        paused = [trial for trial in trials if trial.state == "paused"]
        able = [trial for trial in paused if rungs.goes_on(trial.number, values)]
        if not able and len(trials) >= self.num_trials and not any(t.state in ("running", "finished") for t in trials):
            able = paused  # a sweep too small for its rungs still ends with a model
        # Of those that have come equally far, the best.
        return min(able, key=lambda t: (-max(t.reported), self.signs[0] * t.reported[max(t.reported)]), default=None)

    def _rungs(self) -> Rungs | None:
        if self.settings.pruner not in ("halving", "hyperband") or self.num_evaluations is None:
            return None
        eta = self.settings.reduction_factor
        if self.settings.pruner == "halving":
            return Rungs(self.num_evaluations, eta)
        return Rungs.hyperband(self.num_evaluations, eta)

    def _by_evaluations(self, trials: Sequence[Trial]) -> dict[int, dict[int, float]]:
        sign = self.signs[0]
        return {t.number: {at: sign * value for at, value in t.reported.items()} for t in trials}

    # -- what became of a trial --------------------------------------------------------------------------------------

    def report(
        self, number: int, num_evaluations: int, value: float, *, of: int | None
    ) -> Literal["go on", "pause", "prune", "end"]:
        """Stores the first metric of an evaluation of a trial.

        Args:
            number: of the trial.
            num_evaluations: so far, this one included.
            value: of the metric.
            of: evaluations of a whole trial; None: not known yet.

        Returns:
            What becomes of the trial now.
        """
        with self.locked():
            if self.num_evaluations is None and of is not None:
                self._study.set_user_attr(f"{KEY} evaluations", of)
            self._storage.set_trial_intermediate_value(self._id(number), num_evaluations, float(value))
            of = of or self.num_evaluations
            if of is None or num_evaluations >= of:
                return "go on"
            if self.settings.sampler == "pbt":
                generation = number // self._num_trials + 1
                return "end" if num_evaluations >= generation * self.settings.interval else "go on"
            if self.settings.pruner == "median":
                found = self._study.get_trials(deepcopy=False)[number]
                return "prune" if self._median.prune(self._study, found) else "go on"
            rungs = self._rungs()
            if rungs is None or num_evaluations not in rungs.after(number):
                return "go on"
            return "go on" if rungs.goes_on(number, self._by_evaluations(self.trials())) else "pause"

    def leave(self, trial: Trial, phase: Phase, *, seconds: float, num_lost: int = 0) -> None:
        """Gives a trial back, to be continued.

        Args:
            trial: as it was taken.
            phase: `paused` or `waiting`.
            seconds: for which it ran.
            num_lost: as of a Record.
        """
        record = replace(
            trial.record, phase=phase, driver=None, seconds=trial.record.seconds + seconds, num_lost=num_lost
        )
        with self.locked():
            self._write(trial.number, record)

    def finish(self, trial: Trial, values: Sequence[float], *, seconds: float) -> None:
        """Ends a trial with its values."""
        self._end(trial, "COMPLETE", seconds, values=values)

    def prune(self, trial: Trial, *, seconds: float) -> None:
        """Ends a trial that was stopped early."""
        self._end(trial, "PRUNED", seconds)

    def fail(self, trial: Trial, error: str, *, seconds: float, by_its_values: bool = False) -> None:
        """Ends a trial that failed.

        Args:
            trial: as it was taken.
            error: why, in one line.
            seconds: for which it ran.
            by_its_values: whether the configuration is at fault, as where it needs more memory than there is. Optuna's
                samplers ignore what failed, and would propose it again; one that was pruned without a value they take
                for the worst.
        """
        self._end(trial, "PRUNED" if by_its_values else "FAIL", seconds, error=error)

    def end_paused(self) -> int:
        """Ends the trials that are paused for good. Returns their number; 0 as long as any may go on."""
        with self.locked():
            trials = self.trials()
            paused = [trial for trial in trials if trial.state == "paused"]
            if len(trials) < self.num_trials or any(trial.state in ("running", "waiting") for trial in trials):
                return 0
            for trial in paused:
                self._tell(trial.number, "PRUNED")
            return len(paused)

    def _end(
        self,
        trial: Trial,
        state: str,
        seconds: float,
        *,
        values: Sequence[float] | None = None,
        error: str | None = None,
    ) -> None:
        record = replace(trial.record, driver=None, seconds=trial.record.seconds + seconds, error=error)
        with self.locked():
            self._write(trial.number, record)
            self._tell(trial.number, state, values)

    def _tell(self, number: int, state: str, values: Sequence[float] | None = None) -> None:
        import optuna

        self._study.tell(number, values, state=optuna.trial.TrialState[state])

    def _write(self, number: int, record: Record) -> None:
        self._storage.set_trial_user_attr(self._id(number), KEY, asdict(record))

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)


def require_free(directory: Path, settings: Settings) -> None:
    """Makes the directory of a sweep, and checks that there is no sweep of another space in it.

    Args:
        directory: of the sweep.
        settings: of the sweep; the number of trials may be another one than before.

    Raises:
        ConfigError: there is one, or it cannot be written to.
    """
    with suppress(FileNotFoundError):
        require_same(_facts(directory / SETTINGS_FILE)["settings"], settings, directory)
    try:
        (directory / DRIVERS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--to {directory}: cannot write there: {error.strerror or error}; give another") from error


def begin(directory: Path, settings: Settings, *, metrics: Sequence[str], storage: str | None, driver: str) -> Study:
    """Opens the study of a sweep for a driver, and writes into the directory what readers need.

    Args:
        directory: of the sweep.
        settings: of the sweep.
        metrics: as of a Study.
        storage: as of a Study; its password is not written.
        driver: as of a Study.

    Raises:
        ConfigError: it cannot be opened, or is a sweep for another metric.
    """
    path = directory / SETTINGS_FILE
    facts = {"settings": settings.facts(), "metrics": [*metrics], "storage": without_password(storage)}
    with suppress(FileNotFoundError):
        before = _facts(path)
        if before["metrics"] != facts["metrics"]:
            was, now = ", ".join(before["metrics"]), ", ".join(metrics)
            raise ConfigError(f"--to {directory} has a sweep for the metric {was}, and not {now}; give another --to")
        if before["storage"] != facts["storage"]:
            raise ConfigError(f"--to {directory} has its trials in {before['storage'] or JOURNAL}; give that --storage")
    study = Study(directory, settings, storage=storage, metrics=metrics, driver=driver)
    write_text(path, json.dumps(facts, indent=1) + "\n")
    return study


def read(directory: Path) -> Study:
    """Opens the study of a sweep to look at it.

    Args:
        directory: of the sweep.

    Raises:
        ConfigError: there is none, or its database cannot be opened.
    """
    try:
        facts = _facts(directory / SETTINGS_FILE)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{directory} is no sweep: it has no {SETTINGS_FILE}; trainkit sweep --to makes one"
        ) from error
    known = {key: value for key, value in facts["settings"].items() if key in Settings.__dataclass_fields__}
    settings = Settings(**{**known, "overrides": tuple(known.get("overrides", ()))})
    return Study(directory, settings, storage=facts["storage"], metrics=facts["metrics"], driver=None)


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; give another --to") from error
    if not (isinstance(facts, dict) and facts.keys() >= {"settings", "metrics", "storage"}):
        raise ConfigError(f"{path} is damaged: it is no mapping of settings, metrics and storage; give another --to")
    return facts
