"""Trainer: the one loop. It owns cadence: when to log, to evaluate, to save, and where to begin."""

import math
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import Tensor

from trainkit import checkpoint
from trainkit.comm.agent import is_restart
from trainkit.config import flat, to_yaml
from trainkit.data.batch import Batch
from trainkit.errors import CheckpointError, ConfigError, NonFiniteError
from trainkit.health.nonfinite import ADVICE, Fault, Tripped
from trainkit.health.signals import REQUEUE_FILE, Preempted, Signals, write_requeue
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.tracking import Status
from trainkit.tracking.means import number_of

MOST_REWINDS = 3  # to the same checkpoint


class Trainer:
    """Runs a recipe from wherever it stands to its end.

    evaluate_every, save_every: in steps; null: only at the end.
    keep_last: newest checkpoints kept.  keep_best: also the best by the recipe's `best_metric`.
    keep_every: also those of every so many steps; null: none.
    resume: `auto` goes on from the newest whole checkpoint of the run directory, or begins where there is none;
        `never` begins, and refuses a run directory that has checkpoints; else the path of a run or a checkpoint.
    data_changed: where a checkpoint of this run directory was trained on other data: `refuse` or `accept` these.
    config: what the run was made of; stored with it.  composed: the same with its interpolations, so that a later
        change acts everywhere.  found: what was found out when it began. Both are stored in checkpoints.
    """

    _signals: Signals

    def __init__(
        self,
        runtime: Runtime,
        recipe: Recipe,
        *,
        evaluate_every: int | None = None,
        save_every: int | None = None,
        keep_last: int = 2,
        keep_best: bool = True,
        keep_every: int | None = None,
        resume: str | Path = "auto",
        data_changed: Literal["refuse", "accept"] = "refuse",
        config: Mapping[str, Any] | None = None,
        composed: Mapping[str, Any] | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        counts = {"evaluate_every": evaluate_every, "save_every": save_every, "keep_every": keep_every}
        for key, every in {**counts, "keep_last": keep_last}.items():
            if every is not None and every < 1:
                raise ConfigError(f"{key}={every}: allowed is 1 or more" + ("" if key == "keep_last" else ", or null"))
        self.runtime, self.recipe = runtime, recipe
        self.evaluate_every, self.save_every = evaluate_every, save_every
        self.keep_last, self.keep_best, self.keep_every = keep_last, keep_best, keep_every
        if data_changed not in ("refuse", "accept"):
            raise ConfigError(f"data_changed={data_changed!r}: must be refuse or accept")
        self.resume, self.config, self.found = str(resume), dict(config or {}), dict(found or {})
        self.data_changed = data_changed
        self._composed = dict(composed or {})
        self.step = 0
        self.left_out: list[list[int]] = []
        """[position, size] of the batches that `nonfinite=rewind` has left out; stored in checkpoints."""
        self._origin: Path | None = None
        self._num_rewinds = 0
        self._has_told_memory = False
        self._evaluated: tuple[int, dict[str, float]] | None = None
        self._saved: tuple[int, bool] | None = None
        """The step of the newest checkpoint, and whether it holds metrics."""
        self._best_value = math.inf
        self._baselines: Mapping[str, Mapping[str, float]] = {}
        self._fingerprints: dict[str, str] = {}

    # -- what a user calls -------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Trains to the recipe's end; the metrics of the last evaluation. Collective: every rank calls.

        On SIGINT (Ctrl-C), SIGTERM or SIGUSR1 to any rank, all save after the same step and raise Preempted, a
        SystemExit; a second one ends the process at once.
        """
        with Signals(self.runtime) as self._signals:
            return self._fit()

    def _fit(self) -> dict[str, float]:
        try:
            self._require_same_everywhere()
            position = self.restore()
            self._best_value = self.runtime.broadcast(min(self._values().values(), default=math.inf))
            self._leave_word(None)
            self._tidy()
            batches = self._begin(position)
            if batches is not None:
                if self.step and self.evaluate_every and self.step % self.evaluate_every == 0:
                    self._evaluate()  # the last process was told to end before it came to that
                self._train(batches)
            else:
                self.runtime.tracker.message(
                    f"the run in {self.runtime.run_dir} is complete at step {self.step}; "
                    f"to train anew, give another run_dir"
                )
            metrics = self._evaluate()
            self._save()
            self.runtime.finish_saving()
            with self.runtime.during("finishing"):
                self.recipe.finish()
        except BaseException as error:
            self.runtime.close(_status_of(error))
            raise
        self.runtime.close()
        return metrics

    def _require_same_everywhere(self) -> None:
        self.runtime.require_same(
            {
                "evaluate_every": self.evaluate_every,
                "save_every": self.save_every,
                "keep_last": self.keep_last,
                "keep_best": self.keep_best,
                "keep_every": self.keep_every,
                "resume": self.resume,
                "data_changed": self.data_changed,
                "recipe": type(self.recipe).__qualname__,
                "num_samples of the recipe": self.recipe.num_samples,
                **{f"fingerprint of the {name} data": text for name, text in self._data().items()},
            }
        )

    def _data(self) -> dict[str, str]:
        self._fingerprints = self._fingerprints or self.recipe.fingerprints()
        return self._fingerprints

    def restore(self) -> int:
        """Fills the recipe from the checkpoint that `resume` means; the position to go on from. Collective."""
        where = where_to_resume(self.runtime, self.resume)
        return self._restore(where) if where is not None else 0

    def _restore(self, where: Path) -> int:
        path = self.runtime.find(where)
        manifest = checkpoint.read_manifest(path)
        values = manifest["values"]
        if "recipe" not in values:
            raise CheckpointError(
                f"{path} was not written by a Trainer: load it with runtime.load(...) in its own script"
            )
        is_own = self._checkpoints is not None and path.parent.resolve() == self._checkpoints.resolve()
        self._load_state(path, manifest)
        self._compare_data(path, values.get("data", {}), is_own)
        self._tell_changes(values.get("config") or {})
        position = self.runtime.load(path, **self.recipe.engines())
        self.runtime.tracker.load_state(values["tracker"])
        self.step, self._origin = values["step"], path
        self.left_out += [kept for kept in values.get("left_out", []) if kept not in self.left_out]
        self._evaluated = (self.step, values["metrics"]) if values["metrics"] else None
        if is_own:
            self._saved = self.step, bool(values["metrics"])
        return position

    def _tell_changes(self, before: Mapping[str, Any]) -> None:
        """Says which keys of the configuration differ from those that a checkpoint was made with."""
        old, new = flat(before), flat(self.config)
        changed = [
            f"{key} {old[key]} -> {new[key]}"
            for key in old
            if key in new and str(old[key]) != str(new[key]) and key not in ("run_dir", "resume")
        ]
        if changed:
            self.runtime.tracker.message(f"changed since the checkpoint: {', '.join(changed)}")

    def _compare_data(self, path: Path, before: Mapping[str, str], is_own: bool) -> None:
        """Says where the data are not those of the checkpoint at `path`; refuses them where the run itself wrote it."""
        now = self._data()
        changed = [name for name, text in before.items() if now.get(name, text) != text]
        if not changed:
            return
        what = f"the {' and '.join(changed)} data are not those that {path} was trained on"
        if is_own and self.data_changed == "refuse":
            raise ConfigError(
                f"{what}: give the data as they were, another run_dir, or data_changed=accept to go on with these"
            )
        self.runtime.tracker.message(f"{what}; goes on with the data of now")

    def _load_state(self, path: Path, manifest: Mapping[str, Any]) -> None:
        name, own, theirs = type(self.recipe).__name__, self.recipe.engines().keys(), manifest["engines"].keys()
        another = f"{path} was written by another recipe than {name}"
        advice = "give the run_dir or resume=... of a run of this recipe, or a new run_dir"
        if not own & theirs:
            raise CheckpointError(f"{another}: its engines are {', '.join(theirs)}, not {', '.join(own)}; {advice}")
        state = manifest["values"]["recipe"]
        try:
            self.recipe.load_state(state)
        except KeyError as error:
            raise CheckpointError(f"{another}: its state has {', '.join(state)}, not {error}; {advice}") from error

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _begin(self, position: int) -> Iterator[Batch] | None:
        """Starts tracking; the batches from `position` on, or None where nothing is left to do."""
        if position >= self.recipe.num_samples:
            self._start_tracking(None)
            return None
        batches = self.recipe.batches(position)
        # The first batch is made before anything is written: what is wrong with the data shows here.
        first = next(batches)
        self._start_tracking(first)
        return chain([first], batches)

    def _train(self, batches: Iterator[Batch]) -> None:
        while True:
            try:
                self._train_on(batches)
                self.runtime.log_rest()
                return self.runtime.guard.read()
            except Tripped as trip:
                fault = trip.fault
            batches = self._go_back(fault)

    def _train_on(self, batches: Iterable[Batch]) -> None:
        runtime, recipe = self.runtime, self.recipe
        for batch in batches:
            self._stop_if_told()
            metrics = self._step(batch)
            self.step += 1
            if not self._has_told_memory:
                self._tell_memory()
            runtime.log(self.step, **metrics)
            self._stop_if_told()
            if self.evaluate_every and self.step % self.evaluate_every == 0:
                self._evaluate()
            if self.save_every and self.step % self.save_every == 0:
                self._save()
            if runtime.position >= recipe.num_samples:
                return

    def _step(self, batch: Batch) -> Mapping[str, Tensor | float]:
        runtime, end = self.runtime, batch.position + batch.size
        if any(start < end and batch.position < start + size for start, size in self.left_out):
            runtime.leave_out()
            return {"skipped": 1.0}
        runtime.guard.step = self.step + 1
        metrics = self.recipe.train_step(batch)
        faults = runtime.guard.skipped()
        if faults:
            runtime.tracker.message(f"{self._report(faults)}. The step is left out")
        return metrics

    def _report(self, faults: Iterable[Fault]) -> str:
        runtime = self.runtime

        def again(batch: Batch) -> None:
            runtime.stand_at(batch)
            self.recipe.train_step(batch)

        with runtime.throughput.paused():
            return runtime.guard.report(faults, self.recipe.engines().values(), again, runtime.run_dir)

    def _go_back(self, fault: Fault) -> Iterator[Batch]:
        """To the newest checkpoint: the batches from there on, that of `fault` left out. Collective.

        Raises NonFiniteError where that was not asked for, or cannot be.
        """
        runtime, told = self.runtime, self._report([fault])
        if runtime.guard.policy != "rewind":
            raise NonFiniteError(f"{told}. {runtime.guard.last_words}")
        self._report_failed_save()
        path = where_to_resume(runtime, "auto") or self._origin
        if path is None or fault.position is None:
            raise NonFiniteError(f"{told}. nonfinite=rewind has no checkpoint to go back to: set save_every lower")
        if self._num_rewinds == MOST_REWINDS:
            raise NonFiniteError(
                f"{told}. nonfinite=rewind went back {MOST_REWINDS} times to {path} already. Stopped: {ADVICE}"
            )
        self._num_rewinds += 1
        self.left_out.append([fault.position, fault.size])
        path = runtime.find(path)
        runtime.tracker.message(f"{told}. Goes back to {path}, and will leave this batch out")
        runtime.end_tracking("interrupted")
        runtime.guard.forget()
        self._has_told_memory = False
        batches = self._begin(self._restore(path))
        assert batches is not None, "a checkpoint from before a step has steps to come"
        return batches

    def _evaluate(self) -> dict[str, float]:
        if self._evaluated is not None and self._evaluated[0] == self.step:
            return self._evaluated[1]
        self.runtime.guard.read()
        with self.runtime.during("evaluation"):
            self.runtime.share_buffers()
            metrics = {name: number_of(name, value) for name, value in self.recipe.evaluate().items()}
            baselines = self.recipe.baselines()
        if baselines != self._baselines:
            self._baselines = baselines
            self.runtime.tracker.baselines(self.step, baselines)
        self.runtime.tracker.evaluation(self.step, metrics)
        self._evaluated = self.step, metrics
        value = self._value_of(metrics)
        if self.keep_best and value is not None and value < self._best_value:
            self._best_value = value
            self._save()  # whatever save_every is: what was measured as the best is what is kept
        return metrics

    def _start_tracking(self, first: Batch | None) -> None:
        self._baselines = {}  # what is told anew may be cut back to before they were told
        if first is not None:  # a run that is complete keeps the configuration that it was trained with
            self._write_config()
        lines = [line for name in self.recipe.engines() for line in self._account_of(name, first)]
        self.runtime.start_tracking(
            config=self.config,
            num_samples=self.recipe.num_samples,
            summary=tuple(lines),
            costs=self.recipe.costs(),
        )

    def _write_config(self) -> None:
        """Writes config.yaml, and keeps another one that an earlier start has left beside it. Collective."""
        error = None
        if self.runtime.is_main and self.runtime.run_dir is not None:
            path, text = self.runtime.run_dir / "config.yaml", to_yaml(self.config)
            try:
                if path.exists() and (before := path.read_text()) != text:
                    checkpoint.write_text(path.with_name(f"config.until_step_{self.step:08d}.yaml"), before)
                checkpoint.write_text(path, text)
            except OSError as caught:
                error = CheckpointError(
                    f"run_dir={path.parent}: {path.name} cannot be written: {caught.strerror or caught}; make room "
                    f"there, or give another run_dir"
                )
        self.runtime.raise_first(error)

    def _account_of(self, name: str, first: Batch | None) -> Iterator[str]:
        engine, ranks = self.recipe.engines()[name], self.runtime.world_size
        yield f"{name}: {sum(map(sum, engine.parameter_sizes())):,} parameters"
        yield f"{name}: on each rank, predicted: {self.runtime.predict(engine)}"
        if first is not None:
            samples = -(-first.size // (ranks * engine.accumulation))
            is_even = first.size == ranks * samples * engine.accumulation
            yield (
                f"{name}: global batch {first.size} = {ranks} ranks x {'' if is_even else 'up to '}{samples} samples "
                f"x {engine.accumulation} micro-batches"
            )

    def _tell_memory(self) -> None:
        self._has_told_memory = True
        for name, engine in self.recipe.engines().items():
            self.runtime.remark(f"{name}: on each rank, counted after a step: {engine.held()}")

    # -- being told to end -------------------------------------------------------------------------------------------

    def _stop_if_told(self) -> None:
        if self._signals.stops_here():
            self._stop(self._signals.number)

    def _stop(self, number: int) -> NoReturn:
        """Saves, leaves word that the run is to go on, and ends it. Collective."""
        self.runtime.log_rest()
        if self.step:
            self._save()
            self.runtime.finish_saving()
        # After Ctrl-C nobody but who typed it decides whether the run goes on.
        self._leave_word(None if number == signal.SIGINT else number)
        told, where = f"{signal.Signals(number).name}: stopped after step {self.step}", self.runtime.run_dir
        if where is None:
            self.runtime.tracker.message(f"{told}; nothing was saved, for there is no run_dir")
        else:
            is_dated = "%" in str(self.config.get("run_dir"))  # the same command would begin another
            command = "the same command" + (f" with run_dir={where}" if is_dated or self.resume != "auto" else "")
            command += " resume=auto" if self.resume != "auto" else ""
            self.runtime.tracker.message(f"{told}, saved in {where}; {command} goes on from there")
        self.runtime.end_tracking("interrupted")
        # A launcher may kill the others when the first has ended.
        self.runtime.broadcast(None)
        raise Preempted(number)

    def _leave_word(self, number: int | None) -> None:
        """The file REQUEUE in the run directory: there after a signal `number`, and at no other time."""
        if not self.runtime.is_main or self.runtime.run_dir is None:
            return
        if number is None:
            (self.runtime.run_dir / REQUEUE_FILE).unlink(missing_ok=True)
        else:
            try:
                write_requeue(self.runtime.run_dir, number=number, step=self.step)
            except OSError as error:  # the checkpoint is there, and counts more
                self.runtime.tracker.message(f"{REQUEUE_FILE} could not be written: {error.strerror or error}")

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path | None:
        return self.runtime.run_dir / "checkpoints" if self.runtime.run_dir is not None else None

    def _save(self) -> None:
        metrics = self._evaluated[1] if self._evaluated and self._evaluated[0] == self.step else {}
        if self._checkpoints is None or self._saved in ((self.step, True), (self.step, bool(metrics))):
            return
        with self.runtime.during("saving"):
            self._report_failed_save()
            self.runtime.save(
                self._checkpoints / f"step_{self.step:08d}",
                wait=False,
                then=self._prune,
                **self.recipe.engines(),
                step=self.step,
                recipe=self.recipe.state(),
                tracker=self.runtime.tracker.state(),
                metrics=metrics,
                data=self._data(),
                config=self.config,
                composed=self._composed,
                found=self.found,
                left_out=self.left_out,
            )
        self._saved, self._num_rewinds = (self.step, bool(metrics)), 0

    def _tidy(self) -> None:
        """What earlier processes of the run have left must not stand in the way of its course from here on."""
        if not self.runtime.is_main or self._checkpoints is None:
            return
        checkpoint.tidy(self._checkpoints)
        for path in checkpoint.set_aside(self._checkpoints, after=self.step):
            self.runtime.tracker.message(f"the run goes on from step {self.step}: a later checkpoint is now {path}")

    def _report_failed_save(self) -> None:
        """Training goes on without a checkpoint that could not be written; its end does not."""
        try:
            self.runtime.finish_saving()
        except CheckpointError as error:
            self.runtime.tracker.message(f"{error}; training goes on")

    def _prune(self) -> None:
        assert self._checkpoints is not None
        best = self._best() if self.keep_best else None
        checkpoint.prune(self._checkpoints, keep_last=self.keep_last, keep_every=self.keep_every, best=best)

    def _best(self) -> Path | None:
        values = self._values()
        return min(values, key=values.__getitem__) if values else None

    def _values(self) -> dict[Path, float]:
        """How good each checkpoint of the run was on the held-out data of now: lower is better."""
        values: dict[Path, float] = {}
        if self._checkpoints is None:
            return values
        held_out = self._data().get("held_out")
        for path in checkpoint.step_directories(self._checkpoints):
            with suppress(CheckpointError):  # one that was damaged meanwhile is not the best of anything
                saved = checkpoint.read_manifest(path)["values"]
                value = self._value_of(saved["metrics"])
                if value is not None and saved.get("data", {}).get("held_out", held_out) == held_out:
                    values[path] = value
        return values

    def _value_of(self, metrics: Mapping[str, float]) -> float | None:
        """The recipe's `best_metric`, as a number of which lower is better; None where it is missing or not finite."""
        name = self.recipe.best_metric or ""
        sign, name = (-1.0, name[1:]) if name.startswith("-") else (1.0, name)
        value = metrics.get(name, math.nan)
        return sign * value if math.isfinite(value) else None


def where_to_resume(runtime: Runtime, resume: str) -> Path | None:
    """The run or checkpoint that `resume` means; None: begin anew. Raises ConfigError. Collective: every rank calls."""
    own = runtime.run_dir / "checkpoints" if runtime.run_dir is not None else None
    # Rank 0 looks, so that all see the same.
    has_own, again = runtime.broadcast((own is not None and bool(checkpoint.step_directories(own)), is_restart()))
    if has_own and again:
        return own  # what this job itself has made comes before what it was told to begin with
    if resume == "never":
        if has_own:
            raise ConfigError(
                f"resume=never, and {own} holds checkpoints: give another run_dir, or resume=auto to go on"
            )
        return None
    if resume == "auto":
        return own if has_own else None
    return Path(resume).expanduser()


def _status_of(error: BaseException) -> Status:
    return "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
