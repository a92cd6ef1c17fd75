"""Trainer: the one loop. It owns cadence: when to log, to evaluate, to save, and where to begin."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import Tensor

from trainkit import checkpoint
from trainkit.data.batch import Batch
from trainkit.errors import CheckpointError, ConfigError, NonFiniteError, StorageError, require_at_least
from trainkit.evaluation import Assessment
from trainkit.health.nonfinite import Fault, NonFiniteStepError
from trainkit.health.signals import TIME_IS_UP, Preempted, Signals
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.tracking.means import Last
from trainkit.training import account, outgrown, result
from trainkit.training.assessing import assess
from trainkit.training.checkpoints import Checkpoints
from trainkit.training.config_file import write_config
from trainkit.training.interruption import mark_requeue, message_of
from trainkit.training.length import Length
from trainkit.training.resume import changes, load_recipe_state, other_data, where_to_resume
from trainkit.training.rewinds import Rewinds
from trainkit.training.trace import Trace


class Trainer:
    """Trains a recipe to its end: logs, evaluates, saves and resumes.

    Args:
        recipe: what is trained; its `runtime` is used.
        evaluate_every: steps; null: only at the end.
        save_every: steps; null: only at the end.
        minutes: of training, evaluations and saves included, in all processes of the run together, after which it ends.
            Learning-rate schedules are compressed to that time.
        patience: evaluations in a row without a better `best_metric` of the recipe, after which the run ends.
        keep_last: newest checkpoints that are kept.
        keep_best: keeps the best checkpoint by the recipe's `best_metric`, too.
        keep_every: keeps the checkpoints of every so many steps, too; null: none.
        resume: `auto` resumes the newest complete checkpoint of the run directory and its copies, or starts where there
            is none; `never` starts, and refuses a run directory or copies with checkpoints; else the path or URL of a
            run or a checkpoint.
        data_changed: `refuse` or `accept` data other than those of the run directory's checkpoints.
        config: the configuration of the run, stored with it.
        composed: the same with its interpolations, stored in checkpoints, so that a later override acts wherever its
            key was interpolated.
        found: what was determined when the run started, such as `grad_accumulation_steps`; stored in checkpoints.

    Raises:
        ConfigError: for arguments that cannot be used.
    """

    _signals: Signals

    def __init__(
        self,
        recipe: Recipe,
        *,
        evaluate_every: int | None = None,
        save_every: int | None = None,
        minutes: float | None = None,
        patience: int | None = None,
        keep_last: int = 2,
        keep_best: bool = True,
        keep_every: int | None = None,
        resume: str | Path = "auto",
        data_changed: Literal["refuse", "accept"] = "refuse",
        config: Mapping[str, Any] | None = None,
        composed: Mapping[str, Any] | None = None,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        cadences = {"evaluate_every": evaluate_every, "save_every": save_every, "keep_every": keep_every}
        require_at_least(1, "", **cadences, keep_last=keep_last)
        if not isinstance(getattr(recipe, "runtime", None), Runtime):
            raise ConfigError(f"{type(recipe).__name__} has no runtime: its __init__ must set self.runtime = runtime")
        self.recipe, self.runtime = recipe, recipe.runtime
        self.checkpoints = Checkpoints(
            self.runtime.run_dir / "checkpoints" if self.runtime.run_dir is not None else None,
            metric=recipe.best_metric,
            last=keep_last,
            best=keep_best,
            every=keep_every,
            held_out=lambda: self._data().get("held_out"),
            copier=self.runtime.checkpoints.copier,
        )
        self.evaluate_every, self.save_every = evaluate_every, save_every
        self.length = Length(
            recipe, self.checkpoints.metric, minutes=minutes, patience=patience, evaluate_every=evaluate_every
        )
        if data_changed not in ("refuse", "accept"):
            raise ConfigError(f"data_changed={data_changed!r}: must be refuse or accept")
        self.resume, self.data_changed = str(resume), data_changed
        self.config, self.found = dict(config or {}), dict(found or {})
        self._composed = dict(composed or self.config)
        self.step = self._began = 0
        self.stop_after: int | None = None
        """Steps after which `fit` ends, with neither an evaluation nor a checkpoint, to be compared with another run;
        None: at the recipe's end. Schedules stay those of the whole run."""
        self.goes_on: Callable[[], bool] | None = None
        """Asked on rank 0 after each evaluation within the run; false: the run saves, and ends as by SIGTERM. Set it on
        all ranks, or on none."""
        self.rewinds = Rewinds()
        self.trace = Trace(self.runtime)
        self._origin: Path | None = None
        self._has_logged_memory = False
        self._evaluated: tuple[int, Assessment] | None = None
        self._saved: tuple[int, bool] | None = None
        """The step of the newest checkpoint, and whether it holds metrics."""
        self._best_value = math.inf
        self._baselines: Mapping[str, Mapping[str, float]] = {}
        self._fingerprints: dict[str, str] = {}

    # -- what a user calls -------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Trains to the recipe's end. Collective: every rank must call.

        On SIGINT (Ctrl-C), SIGTERM or SIGUSR1 to any rank, all ranks save after the same step and raise Preempted, a
        SystemExit whose code says whether it should be started again; a second signal ends the process at once.

        Returns:
            The metrics of the last evaluation.

        Raises:
            CheckpointError: where a checkpoint cannot be read or written.
            ConfigError: where ranks disagree, or the data differ from those of the run's checkpoints.
            NonFiniteError: see `Runtime`.
        """
        with Signals(self.runtime.ranks) as self._signals:
            return self._fit()

    def _fit(self) -> dict[str, float]:
        try:
            self._require_same_everywhere()
            position = self.restore()
            self._best_value = self.runtime.ranks.broadcast_object(
                min(self.checkpoints.values().values(), default=math.inf)
            )
            # What the job began with, not what torchrun's last restart did.
            self._began = int(self.runtime.ranks.same_as_before("began", lambda: str(self.step)))
            mark_requeue(self.runtime, None, self.step)
            self._tidy()
            earlier = self._earlier_result(position)
            metrics = self._run(position) if earlier is None else self._report_earlier(earlier)
        except BaseException as error:
            self.runtime.close("interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed")
            raise
        self.runtime.close()
        return metrics

    def _run(self, position: int) -> dict[str, float]:
        if self.length.reason(position) is None:
            batches = self._begin(position)
            if self.step and self.evaluate_every and self.step % self.evaluate_every == 0:
                self._evaluate()  # the last process was interrupted before it
                self._ask_whether_to_go_on()
            self._train(batches)
            self.trace.end(self.step, self.recipe.engines())
            if self._stops_here():
                return {}
        else:
            self._start_tracking(None)
        assessment = self._evaluate()
        self._save()
        self.runtime.finish_saving()
        with self.runtime.during("finishing"):
            self.recipe.finish()
        self._report_end(assessment)
        self.runtime.finish_copies()
        return dict(assessment.metrics)

    def _require_same_everywhere(self) -> None:
        self.runtime.ranks.require_same(
            {
                "evaluate_every": self.evaluate_every,
                "save_every": self.save_every,
                "minutes": self.length.minutes,
                "patience": self.length.patience.limit,
                "keep_last": self.checkpoints.last,
                "keep_best": self.checkpoints.keeps_best,
                "keep_every": self.checkpoints.every,
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
        """Fills the recipe from the checkpoint that `resume` means; returns its position. Collective."""
        where = where_to_resume(self.runtime, self.resume)
        return self._restore(where) if where is not None else 0

    def _restore(self, where: Path) -> int:
        path = self.runtime.checkpoints.find(where)
        manifest = checkpoint.read_manifest(path)
        load_recipe_state(self.recipe, path, manifest)
        values, is_own = manifest["values"], self.checkpoints.holds(path)
        before, now = values.get("data", {}), self._data()
        self._message(other_data(path, before, now, is_own=is_own, data_changed=self.data_changed))
        self._message(changes(values.get("config") or {}, self.config))
        if is_own:
            is_same = before.get("held_out") == now.get("held_out")
            self.length.load_state_dict(values.get("length", {}), same_held_out=is_same)
        position = self.runtime.load(path, **self.recipe.engines()).position
        self.runtime.tracker.load_state_dict(values["tracker"])
        self.step, self._origin = values["step"], path
        self.rewinds.load(values.get("left_out", []))
        measured = Assessment.of(values["metrics"], values.get("assessment", {}))
        self._evaluated = (self.step, measured) if values["metrics"] else None
        if is_own:
            self._saved = self.step, bool(values["metrics"])
        return position

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _begin(self, position: int) -> Iterator[Batch]:
        """Starts tracking; returns the batches from `position` on."""
        batches = self.recipe.batches(position)
        # The first batch is made before anything is written: what is wrong with the data shows here.
        first = next(batches)
        self._start_tracking(first)
        result.forget(self.runtime)
        return chain([first], batches)

    def _train(self, batches: Iterator[Batch]) -> None:
        self.length.budget.start(self.runtime.position, self.recipe.num_samples)
        self._signals.end_after(self.length.budget.rest_s)
        self.runtime.stream.stretch_schedules(self.length.budget.factor)
        while True:
            try:
                self._train_on(batches)
                self.runtime.log_rest()
                return self.runtime.guard.read()
            except NonFiniteStepError as error:
                fault = error.fault
            batches = self._rewind(fault)

    def _train_on(self, batches: Iterable[Batch]) -> None:
        if self._is_over():
            return
        for batch in batches:
            if self._must_end():
                return
            metrics = self._step(batch)
            self.step += 1
            self.trace.after(self.step, batch, metrics, self.recipe.engines())
            if not self._has_logged_memory:
                self._has_logged_memory = True
                account.log_memory(self.runtime, self.recipe)
            self.runtime.log(self.step, **metrics)
            if self.length.budget.is_limited:
                self._compress_schedules()
            if self._must_end():
                return
            if self.evaluate_every and self.step % self.evaluate_every == 0:
                self._evaluate()
                self._ask_whether_to_go_on()
            if self.save_every and self.step % self.save_every == 0:
                self._save()
            if self._is_over():
                return

    def _is_over(self) -> bool:
        return self._stops_here() or self.length.reason(self.runtime.position) is not None

    def _stops_here(self) -> bool:
        return self.stop_after is not None and self.step >= self.stop_after

    def _compress_schedules(self) -> None:
        factor = self.length.budget.stretch(self.runtime.position, self.recipe.num_samples, self.runtime.ranks)
        self.runtime.stream.stretch_schedules(factor)

    def _step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        runtime = self.runtime
        if self.rewinds.leaves_out(batch):
            runtime.stream.skip()
            return {"skipped": 1.0}
        runtime.guard.step = self.step + 1
        metrics = outgrown.train_step(self.recipe, batch)
        faults = runtime.guard.skipped()
        if faults:
            runtime.tracker.message(f"{self._report(faults)}. The step is skipped")
        return metrics

    def _report(self, faults: Iterable[Fault]) -> str:
        runtime = self.runtime

        def again(batch: Batch) -> None:
            runtime.stream.visit(batch)
            self.recipe.train_step(batch)

        with runtime.run_log.throughput.paused():
            return runtime.guard.describe(faults, self.recipe.engines().values(), again, runtime.run_dir)

    def _rewind(self, fault: Fault) -> Iterator[Batch]:
        """Restores the newest checkpoint; returns the batches from there on, without that of `fault`. Collective.

        Raises:
            NonFiniteError: where rewinding was not configured, or is not possible.
        """
        runtime, report = self.runtime, self._report([fault])
        if runtime.guard.policy != "rewind":
            raise NonFiniteError(f"{report}. {runtime.guard.stop_reason}")
        self._report_failed_save()
        path = runtime.checkpoints.find(
            self.rewinds.add(fault, where_to_resume(runtime, "auto") or self._origin, report)
        )
        runtime.tracker.message(f"{report}. Returns to {path}, and will leave this batch out")
        runtime.run_log.end("interrupted")
        runtime.guard.forget()
        self._has_logged_memory = False
        return self._begin(self._restore(path))

    def _evaluate(self) -> Assessment:
        if self._evaluated is not None and self._evaluated[0] == self.step:
            return self._evaluated[1]
        self.runtime.guard.read()
        with self.runtime.during("evaluation"):
            self.runtime.share_buffers()
            found = assess(self.recipe)
        metrics, tracker = found.metrics, self.runtime.tracker
        if found.baselines != self._baselines:
            self._baselines = found.baselines
            tracker.baselines(self.step, found.baselines)
        tracker.evaluation(self.step, metrics)
        if found.intervals:
            tracker.intervals(self.step, {name: interval.bounds for name, interval in found.intervals.items()})
        self._evaluated = self.step, found
        value = self.runtime.ranks.broadcast_object(self.checkpoints.value_of(metrics))  # all ranks must agree
        self.length.see(self.step, metrics, value)
        if self.checkpoints.keeps_best and value is not None and value < self._best_value:
            self._best_value = value
            self._save()  # whatever save_every is: what was measured as the best is what is kept
        return found

    def _start_tracking(self, first: Batch | None) -> None:
        self._baselines = {}  # a rewind may have removed them from what trackers wrote
        self.runtime.manifest.add("configuration", self.config)
        self.runtime.manifest.add("composed", self._composed)
        self.runtime.manifest.add("data", self._facts_of_data())
        if first is not None:  # nothing is left to train otherwise
            self.trace.begin(self.step)
        if first is not None:  # a run that is complete keeps the configuration that it was trained with
            write_config(self.runtime, self.config, self.step)
        self.runtime.stream.num_samples = self.recipe.num_samples
        self.runtime.run_log.start(
            config=self.config,
            summary=tuple(account.of_start(self.runtime, self.recipe, first, self.found)),
            costs=self.recipe.costs(),
            milestones=self.recipe.milestones(),
        )
        self.runtime.run_log.throughput.end_within(self.length.budget.rest_s)

    def _facts_of_data(self) -> dict[str, Any]:
        counts = account.facts_of(self.recipe, {})["data"]
        return {"counts": counts, "fingerprints": self._data(), "audit": self.found.get("audit")}

    # -- the end -----------------------------------------------------------------------------------------------------

    def _earlier_result(self, position: int) -> dict[str, Any] | None:
        """The result of the run by an earlier process, where nothing is left to train. Collective."""
        found = result.read(self.runtime, self.step)
        if found is None or self._saved is None:  # it may have resumed another run
            return None
        self.length.load_budget(found["budget"])
        return found if self.length.reason(position) is not None else None

    def _report_earlier(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Reports how the run has ended; nothing is written, and trackers get messages only."""
        self._message(f"the run in {self.runtime.run_dir} is complete; nothing was done")
        for line in self._account_of_end(Assessment.of(found["metrics"], found), found["reason"]):
            self._message(line)
        self._message(self.length.to_train_on(self.runtime.position))
        return dict(found["metrics"])

    def _report_end(self, assessment: Assessment) -> None:
        reason = self.length.reason(self.runtime.position) or ""
        for line in self._account_of_end(assessment, reason):
            self.runtime.run_log.message(line)
        ended = {"step": self.step, "metrics": assessment.metrics, "reason": reason, **assessment.facts()}
        ended |= {"audit": self.found["audit"]} if "audit" in self.found else {}
        result.write(self.runtime, {**ended, "budget": self.length.budget.state_dict()})

    def _account_of_end(self, measured: Assessment, reason: str) -> Iterator[str]:
        kept = self.checkpoints.describe()
        return account.of_end(self.runtime, self.recipe, self._composed, self.step, measured, reason, kept, self.found)

    # -- interruption -------------------------------------------------------------------------------------------

    def _must_end(self) -> bool:
        """Whether the time is up; after a signal, ends the run. Collective."""
        if not self._signals.stops_here():
            return False
        if self._signals.number != TIME_IS_UP:
            self._stop(self._signals.number)
        self.length.time_is_up = True
        return True

    def _ask_whether_to_go_on(self) -> None:
        if self.goes_on is not None and not self.runtime.ranks.broadcast_object(self.goes_on()):
            self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> NoReturn:
        """Saves, marks the run to be requeued, and ends it. Collective."""
        self.runtime.log_rest()
        if self.step:
            self._save()
            self.runtime.finish_saving()
            self._report_failed_copy()
        has_saved = self.checkpoints.directory is not None and self.step > self._began
        # After Ctrl-C the user decides whether the run is resumed.
        mark_requeue(self.runtime, number if has_saved and number != signal.SIGINT else None, self.step)
        self._message(message_of(number, self.runtime, self.step, self.config, self.resume, has_saved=has_saved))
        self.runtime.run_log.end("interrupted")
        # A launcher may kill the others when the first has ended.
        self.runtime.ranks.broadcast_object(None)
        raise Preempted(number, has_saved=has_saved)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        found = self._evaluated[1] if self._evaluated and self._evaluated[0] == self.step else None
        metrics = found.metrics if found else {}
        if self.checkpoints.directory is None or self._saved in ((self.step, True), (self.step, bool(metrics))):
            return
        with self.runtime.during("saving"):
            self._report_failed_save()
            self.runtime.save(
                self.checkpoints.path(self.step),
                wait=False,
                then=self.checkpoints.prune,
                **self.recipe.engines(),
                step=self.step,
                recipe=self.recipe.state_dict(),
                tracker=self.runtime.tracker.state_dict(),
                metrics=metrics,
                data=self._data(),
                assessment=found.facts() if found else {},
                facts=account.facts_of(self.recipe, found.baselines if found else {}),
                config=self.config,
                composed=self._composed,
                found=self.found,
                left_out=self.rewinds.left_out,
                length=self.length.state_dict(),
                manifest=self.runtime.manifest.value(),
            )
        self._saved = self.step, bool(metrics)
        self.rewinds.saved()

    def _tidy(self) -> None:
        """Removes what earlier processes have left. Collective, so that all end where the store does not answer."""
        error = None
        if self.runtime.ranks.is_main:
            try:
                for path in self.checkpoints.tidy(self.step):
                    self._message(f"the run continues from step {self.step}: a later checkpoint was moved to {path}")
                self.checkpoints.copy_rest()
            except StorageError as caught:
                error = caught
        self.runtime.ranks.raise_first(error)

    def _message(self, text: str | None) -> None:
        if text is not None:
            self.runtime.tracker.message(text)

    def _report_failed_save(self) -> None:
        """Training continues without a checkpoint that could not be written; the end of a run raises it."""
        try:
            self.runtime.finish_saving()
        except CheckpointError as error:
            self._message(f"{error}; training continues")

    def _report_failed_copy(self) -> None:
        try:
            self.runtime.finish_copies()
        except CheckpointError as error:  # it is saved here, and the run is to be started again
            self._message(str(error))
