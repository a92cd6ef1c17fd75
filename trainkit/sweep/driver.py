"""Driver: keeps every slot of a machine busy with the trials of a sweep, and decides about them."""

import math
import os
import selectors
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainkit.checkpoint.run_directory import RunLock
from trainkit.config import compose_onto, compose_unresolved, groups
from trainkit.errors import ClusterError, ConfigError, TrainkitError, nearest
from trainkit.sweep.reporter import GO_ON, STOP
from trainkit.sweep.settings import Settings
from trainkit.sweep.slots import Slot
from trainkit.sweep.study import DRIVERS, Study
from trainkit.sweep.trial import Trial
from trainkit.sweep.worker import LOG_FILE
from trainkit.sweep.worker_process import WorkerProcess

MOST_LOST = 5
"""Starts in a row that end by SIGKILL without a new checkpoint, after which a trial has failed."""
_IDLE_S = 1.0
_MOST_FAILED = 3  # starts of a worker


@dataclass
class Worker:
    """The worker of one slot, and the trial that it runs.

    Args:
        process: of the slot.
    """

    process: WorkerProcess
    is_ready: bool = False
    num_failed: int = 0
    """Starts in a row that it did not survive."""
    trial: Trial | None = None
    pid: int | None = None
    """Of the first process of the trial."""
    began: float = 0.0
    busy_s: float = 0.0
    """Seconds for which it has run trials."""
    share: float | None = None
    """Of the trial that is done."""
    step: int = 0
    every: int | None = None
    """Steps between two evaluations of the trial; None: one at its end."""
    outcome: Mapping[str, Any] | None = None
    """The last event of the trial."""
    stops_for: Literal["", "pause", "prune", "end", "driver"] = ""
    newest: str = ""
    """The newest checkpoint when the trial was started."""


@dataclass(frozen=True)
class Looked:
    """What a recipe says about its metrics.

    Args:
        best_metric: as of a Recipe.
        better: as of a Recipe.
    """

    best_metric: str | None
    better: Mapping[str, str] = field(default_factory=dict)


class Driver:
    """Runs the trials of a sweep in the slots of this machine.

    Args:
        directory: of the sweep.
        settings: of the sweep.
        slots: of this machine, one worker each.
        config_dir: a directory laid out like `conf/`.
        report: called with lines for the user.
        left: called with each trial that has ended, or was paused.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        slots: Sequence[Slot],
        *,
        config_dir: Path | None = None,
        report: Callable[[str], None] = lambda text: None,
        left: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        self.directory, self.settings, self.config_dir = directory.resolve(), settings, config_dir
        self.study: Study
        self.report, self.left = report, left
        self.name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns() % 10**9:09d}"
        self._selector = selectors.DefaultSelector()
        self._shared = tempfile.TemporaryDirectory(prefix="trainkit_sweep_")
        imported = Path(self._shared.name) / "modules"
        imported.touch()
        self.workers = [
            Worker(WorkerProcess(slot, num_processes=settings.processes, imported=imported)) for slot in slots
        ]
        self._began = time.monotonic()
        self._signal: int | None = None
        self._base: dict[tuple[str, ...], dict[str, Any]] = {}
        self._varied = settings.variations()
        self._error: TrainkitError | None = None

    # -- before the first trial --------------------------------------------------------------------------------------

    def look(self) -> Looked:
        """Makes the recipe once, with its data, in a process of the first slot; trains nothing.

        Raises:
            ConfigError: for what no trial could do without.
        """
        worker, *others = self.workers
        first = [variation.extremes()[0] for variation in self._varied.values()]
        log = self.directory / "look.log"
        config = self._config(first)
        config |= {"run_dir": None, "copy_to": None, "resume": "never", "on_leak": "ignore"}
        config["memory"] = {**config["memory"], "budget": None}
        for each in self.workers:
            self._start(each)
        worker.process.send({"looks": True, "config": config, "log": str(log)})
        for each in others:
            each.process.send({"prepares": True, "config": config})
        has_ended = False
        while not has_ended:
            for other, event in self._events(_IDLE_S):
                other.is_ready |= event["event"] == "ready"
                has_ended |= other is worker and event["event"] in ("ended", "gone")
        found, worker.outcome = worker.outcome or {}, None
        if found.get("event") != "looked":
            why = found.get("error") or f"its process was killed; see {log}"
            raise ConfigError(f"the first configuration ({' '.join(first)}) cannot be trained: {why}")
        return Looked(found["best_metric"], found["better"])

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, study: Study, *, show: Callable[[], None] = lambda: None) -> None:
        """Runs trials until the sweep is done, or a signal ends it.

        Args:
            study: of the sweep, opened with `name` as its driver.
            show: called after every change, and about once a second.

        Raises:
            ConfigError: where a metric is none that the recipe measures.
            ClusterError: where a worker cannot be started.
            SystemExit: after a signal, once all trials have saved: 75 to be started again; 130 after Ctrl-C.
        """
        self.study, self._began = study, time.monotonic()
        with self._signals():
            while self._keeps_going():
                for worker, event in self._events(_IDLE_S):
                    self._take_event(worker, event)
                show()
        if self._error is not None:
            raise self._error
        if self._signal is not None:
            raise SystemExit(130 if self._signal == signal.SIGINT else os.EX_TEMPFAIL)

    def busy_share(self) -> float:
        """Of the time of the slots since `run` began, the share in which trials ran."""
        return sum(worker.busy_s for worker in self.workers) / len(self.workers) / (time.monotonic() - self._began)

    def seconds_left(self, trials: Sequence[Trial]) -> float | None:
        """How long the rest of the sweep may take, by the trials so far; None: not known.

        Args:
            trials: all of the study.
        """
        ended = [trial for trial in trials if trial.state in ("finished", "pruned", "paused")]
        if not ended:
            return None
        mean_s = sum(trial.record.seconds for trial in ended) / len(ended)
        running = sum(1.0 - (worker.share or 0.0) for worker in self.workers if worker.trial is not None)
        new = self.study.num_trials - len(trials) + sum(trial.state == "waiting" for trial in trials)
        return (new + running) * mean_s / len(self.workers)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self.workers:
            self._end(worker)
        self._selector.close()
        self._shared.cleanup()

    def _keeps_going(self) -> bool:
        stops = self._signal is not None or self._error is not None
        is_empty = False
        for worker in self.workers if not stops else ():
            if not worker.process.is_started:
                self._start(worker)
            if worker.is_ready and worker.trial is None and not self._fill(worker):
                is_empty = True
                break
        if any(worker.trial is not None for worker in self.workers):
            return True
        if stops or not is_empty:  # workers are starting
            return not stops
        if any(trial.state in ("running", "waiting") for trial in self.study.trials()):
            return True  # of other drivers: what they find may let a paused trial go on
        return self.study.end_paused() > 0

    def _fill(self, worker: Worker) -> bool:
        """Gives a worker its next trial; returns whether there was one."""
        trial = self.study.take()
        if trial is None:
            return False
        run_dir = self.study.run_dir(trial.number)
        worker.trial, worker.began = trial, time.monotonic()
        worker.share, worker.step, worker.outcome, worker.stops_for = None, 0, None, ""
        worker.newest, worker.pid = _newest(run_dir), None
        try:
            config = {**self._config(self.study.overrides(trial)), "run_dir": str(run_dir)}
        except ConfigError as error:  # values that do not go together
            worker.trial = None
            self.study.fail(trial, str(error), seconds=0.0)
            self.left(self.study.trials()[trial.number])
            return True
        if trial.record.parent is not None and not worker.newest:
            config["resume"] = str(self.study.run_dir(trial.record.parent))
        worker.every = config["evaluate_every"]
        config["tracking"] = _grouped(config["tracking"], self.directory.name, trial.number)
        worker.process.send({"config": config, "log": str(run_dir / LOG_FILE), "processes": self.settings.processes})
        return True

    def _config(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The configuration of a trial, unresolved. To compose one anew takes Hydra a tenth of a second."""
        options = groups(self.config_dir)
        # compose_onto adds no keys, and knows nothing of what weights imply.
        composed = [text for text in overrides if text[0] in "+~" or text.partition("=")[0] in {*options, "weights"}]
        key = tuple(composed)
        if key not in self._base:
            self._base[key] = compose_unresolved([*self.settings.fixed(), *composed], self.config_dir)
        rest = [text for text in overrides if text not in composed]
        return compose_onto(self._base[key], rest, self.config_dir)

    # -- events ------------------------------------------------------------------------------------------------------

    def _events(self, timeout_s: float) -> Iterator[tuple[Worker, Mapping[str, Any]]]:
        """What workers and their trials have told since the last call."""
        for key, _ in self._selector.select(timeout_s):
            worker: Worker = key.data
            events = worker.process.events()
            if events is None:
                yield worker, {"event": "gone"}
                self._end(worker)
            for event in events or ():
                if event["event"] in ("done", "stopped", "failed", "looked"):
                    worker.outcome = event
                yield worker, event

    def _take_event(self, worker: Worker, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            worker.is_ready, worker.num_failed = True, 0
        elif kind == "gone" and not worker.is_ready:
            worker.num_failed += 1
            if worker.num_failed >= _MOST_FAILED:
                self._error = ClusterError(
                    f"the worker of {worker.process.slot.name} ends before it is ready; see its lines above"
                )
                self._stop_all()
        elif worker.trial is None:
            return
        elif kind == "started":
            worker.pid, worker.began = event["pid"], time.monotonic()
            if self._signal is not None:
                self._stop(worker)
        elif kind == "progress":
            worker.share, worker.step = event["share"], event["step"]
        elif kind == "evaluation":
            self._evaluated(worker, event)
        elif kind in ("ended", "gone"):
            self._ended(worker, event.get("code", -signal.SIGKILL))

    def _evaluated(self, worker: Worker, event: Mapping[str, Any]) -> None:
        """Decides about a trial that waits for it."""
        assert worker.trial is not None
        worker.share, worker.step = event["share"], event["step"]
        metric = self.study.metrics[0]
        missing = next((name for name in self.study.metrics if name not in event["metrics"]), None)
        if missing is not None:
            known = [*event["metrics"]]
            self._error = ConfigError(
                f"metric={missing}: the recipe does not measure it, but {', '.join(known)}.{nearest(missing, known)}"
            )
            self._stop_all()
        elif len(self.study.metrics) == 1 and worker.stops_for == "":
            at, of = evaluations(event["step"], event["share"], worker.every)
            found = self.study.report(worker.trial.number, at, event["metrics"][metric], of=of)
            if found != "go on":
                worker.stops_for = found
        worker.process.answer(STOP if worker.stops_for else GO_ON)

    def _ended(self, worker: Worker, code: int) -> None:
        """Takes what a trial ended with into the study."""
        trial, outcome, why = worker.trial, worker.outcome or {}, worker.stops_for
        assert trial is not None
        seconds = time.monotonic() - worker.began
        worker.busy_s += seconds
        worker.trial, worker.pid = None, None
        kind = outcome.get("event")
        if kind == "done":
            self._done(trial, outcome["metrics"], seconds)
        elif kind == "stopped" and why == "prune":
            self.study.prune(trial, seconds=seconds)
        elif kind == "stopped" and why == "end":
            reported = self.study.trials()[trial.number].reported
            self.study.finish(trial, [reported[max(reported)]], seconds=seconds)
        elif kind == "stopped" and why == "pause":
            self.study.leave(trial, "paused", seconds=seconds)
        elif kind == "failed":
            by_values = outcome["kind"] in ("memory", "nonfinite")
            self.study.fail(trial, outcome["error"], seconds=seconds, by_its_values=by_values)
        elif kind == "stopped" or why:
            self.study.leave(trial, "waiting", seconds=seconds, num_lost=trial.record.num_lost)
        else:
            self._lost(trial, code, _newest(self.study.run_dir(trial.number)) != worker.newest, seconds)
        self.left(self.study.trials()[trial.number])

    def _done(self, trial: Trial, metrics: Mapping[str, float], seconds: float) -> None:
        values = [metrics.get(name, float("nan")) for name in self.study.metrics]
        wrong = [name for name, value in zip(self.study.metrics, values, strict=True) if not abs(value) < float("inf")]
        if wrong:
            self.study.fail(trial, f"{wrong[0]} is not finite", seconds=seconds, by_its_values=True)
        else:
            self.study.finish(trial, values, seconds=seconds)

    def _lost(self, trial: Trial, code: int, has_saved: bool, seconds: float) -> None:
        """Of a trial whose processes were killed: it is continued, unless that leads nowhere."""
        num_lost = 0 if has_saved else trial.record.num_lost + 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log = self.study.run_dir(trial.number) / LOG_FILE
        if num_lost < MOST_LOST and code < 0:
            self.report(f"trial {trial.number} {how}: it will be continued")
            self.study.leave(trial, "waiting", seconds=seconds, num_lost=num_lost)
            return
        why = " (Linux does that when memory runs out)" if code == -signal.SIGKILL else ""
        times = f" {num_lost} times in a row without a new checkpoint" if code < 0 else ""
        self.study.fail(trial, f"{how}{times}{why}; see {log}", seconds=seconds, by_its_values=code == -signal.SIGKILL)

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, worker: Worker) -> None:
        """Makes the trial of a worker save and end, after whichever step it is in."""
        worker.stops_for = "driver"
        if worker.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)

    def _stop_all(self) -> None:
        for worker in self.workers:
            if worker.trial is not None:
                self._stop(worker)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A context in which SIGINT and SIGTERM end all trials, which save; a second signal ends all at once."""

        def caught(number: int, frame: object) -> None:
            if self._signal is not None:
                self._kill()
                raise SystemExit(128 + number)
            self._signal = number
            self.report(f"{signal.Signals(number).name}: all trials save and end; the same command goes on")
            self._stop_all()

        before = {number: signal.signal(number, caught) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _kill(self) -> None:
        for worker in self.workers:
            worker.process.kill()

    # -- processes ---------------------------------------------------------------------------------------------------

    def _start(self, worker: Worker) -> None:
        worker.process.start()
        worker.is_ready = False
        self._selector.register(worker.process, selectors.EVENT_READ, worker)

    def _end(self, worker: Worker) -> None:
        if worker.process.is_started:
            self._selector.unregister(worker.process)
            worker.process.end()


def evaluations(step: int, share: float | None, every: int | None) -> tuple[int, int | None]:
    """Counts the evaluations of a trial, by its steps: those that a killed process has made come again.

    Args:
        step: steps done.
        share: of the run that is done; None: not known.
        every: steps between two evaluations; None: only one at the end.

    Returns:
        Evaluations so far, and those of the whole run; None: not known.

    Example:
        >>> evaluations(50, 0.25, 25), evaluations(190, 1.0, 50)
        ((2, 8), (4, 4))
    """
    if every is None:
        return 1, 1
    return math.ceil(step / every), math.ceil(round(step / share) / every) if share else None


@contextmanager
def present(directory: Path, name: str) -> Iterator[None]:
    """A context in which other drivers see that this one runs.

    Args:
        directory: of the sweep.
        name: of the driver.
    """
    own = directory / DRIVERS / name
    own.mkdir(parents=True, exist_ok=True)
    lock = RunLock(own)
    try:
        yield
    finally:
        lock.release()


def _grouped(tracking: Any, sweep: str, number: int) -> Any:
    """The tracking of a trial, whose run Weights & Biases shows in the group of its sweep."""
    wandb = tracking.get("wandb") if isinstance(tracking, Mapping) else None
    if not isinstance(wandb, Mapping) or wandb.get("group") or wandb.get("name"):
        return tracking
    return {**tracking, "wandb": {**wandb, "group": sweep, "name": f"{sweep}-{number:05d}"}}


def _newest(run_dir: Path) -> str:
    """The name of the newest checkpoint of a run; empty where there is none."""
    return max((path.name for path in (run_dir / "checkpoints").glob("step_*")), default="")
