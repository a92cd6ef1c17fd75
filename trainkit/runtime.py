"""Runtime: processes, device, seed, strategy, precision and tracker, in one object that is passed explicitly."""

import atexit
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainkit import checkpoint
from trainkit.backend import Backend
from trainkit.blocks import Checkpointed, check_compiler, compile_blocks
from trainkit.checkpoint import run_directory
from trainkit.comm.cluster import current_cluster
from trainkit.comm.comm import Comm, Plan
from trainkit.comm.device import choose_device, compute_deterministically
from trainkit.comm.reducer import Reducer
from trainkit.data.batch import Batch
from trainkit.engine import Engine, ScheduleFunction
from trainkit.errors import CheckpointError, ConfigError, require_at_least
from trainkit.feed import Feed
from trainkit.health.guard import Guard, Policy, check_policy
from trainkit.health.hang import Watchdog, check_limit
from trainkit.memory import Memory, state_tensors
from trainkit.ops.switch import Kernels, Ops
from trainkit.optim.ema import Average, check_decay
from trainkit.optim.schedule import Schedule
from trainkit.optim.source import OptimizerFactory, OptimizerSource
from trainkit.precision import Kept, Name, Precision
from trainkit.probe import fewest_that_fit
from trainkit.ranks import BESIDE
from trainkit.shard import buffer_shards, share_from_first
from trainkit.strategy import Strategy, StrategyName, by_name
from trainkit.strategy.fitting import convert, require_dense_step, require_shapes
from trainkit.tracking import Means, Run, Status, Throughput, Tracker, picture, trackers

SUMMARY_FILE = "summary.txt"
LAST_SAVE_S = 60.0
"""How long a run that failed waits for the save that it had begun: other ranks may be gone."""


class Position(int):
    """Where a resumed run goes on, in samples; `values` are those that were saved beside the engines."""

    values: dict[str, Any]

    def __new__(cls, position: int, values: dict[str, Any]) -> "Position":
        self = super().__new__(cls, position)
        self.values = values
        return self


class Runtime(Feed):
    """What a training loop runs on.

    strategy: `single`, `ddp`, or a Strategy with arguments of its own.
    comm: how gradients are summed: `auto`, `flat` and so on, see Comm; or a Comm with arguments of its own.
    precision: `fp64`, `fp32`, `tf32`, `bf16`, `fp16`, or a Precision.
    ops: whether the layers of `trainkit.ops` run compiled, `fused`, or as plain PyTorch, `reference`; or an Ops. It
        holds for the process.
    seed: with the position in the data, the only source of randomness.
    deterministic: same bits from the same ranks, strategy and hardware, also after a resume.
    device: `auto` takes a GPU where there is one.
    compile: blocks of modules are compiled when they are first called; names in checkpoints stay.
    activation_checkpointing: classes of which an instance keeps its inputs only, and is computed again in the backward
        pass: less memory, a third more work.
    nonfinite: what a loss or gradient over the global batch that is not finite leads to (in fp16: a gradient that is
        not even with the smallest loss scale). `stop`: NonFiniteError, which names the rank, the parameters and the
        samples.  `skip`: the step is left out, and told.  `rewind`: a Trainer goes back to the newest checkpoint and
        leaves that batch out.  On a GPU, `skip` waits for the device in every step; the others find out when values
        are logged or saved.
    num_workers: processes that fetch data ahead (0: this one does).
    log_every: steps from one `log` that is told to the next; it tells means over them. The last step is told too.
    run_dir: where trackers write, made by rank 0, whose clock fills in %Y, %m, %d, %H, %M and %S;
        without one they only print.
    tracker: by default the console, and with a run directory metrics.jsonl and curve.png.
    hang_after: seconds without progress after which the job ends with a report of which rank did not arrive; `auto`:
        learnt from the run; None: never, and slow ranks are not looked for. See `Watchdog`.

    Making one joins the process group that torchrun describes. Collective: every rank makes one. Raises ConfigError
    and ClusterError before anything is started.
    """

    def __init__(
        self,
        *,
        strategy: StrategyName | Strategy = "ddp",
        comm: Plan | Comm = "auto",
        precision: Name | Precision = "fp32",
        ops: Kernels | Ops = "fused",
        seed: int = 0,
        deterministic: bool = False,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        compile: bool = False,
        activation_checkpointing: Sequence[str] = (),
        nonfinite: Policy = "stop",
        num_workers: int = 0,
        log_every: int = 10,
        run_dir: str | Path | None = None,
        tracker: Tracker | None = None,
        hang_after: float | Literal["auto"] | None = "auto",
    ) -> None:
        check_limit(hang_after)
        require_at_least(1, log_every=log_every)
        require_at_least(0, num_workers=num_workers)
        check_policy(nonfinite)
        cluster = current_cluster()
        chosen = choose_device(device, cluster)
        self.strategy = by_name(strategy) if isinstance(strategy, str) else strategy
        self.precision = Precision(name=precision) if isinstance(precision, str) else precision
        self.comm = Comm(plan=comm) if isinstance(comm, str) else comm
        self.comm.check(self.strategy.name, deterministic)
        self.ops = Ops(kernels=ops) if isinstance(ops, str) else ops
        self.ops.apply()
        self.strategy.check(cluster, self.precision, chosen)
        if compile:
            check_compiler(chosen)
        self.compile, self._checkpointed = compile, Checkpointed(activation_checkpointing)
        self.precision_obtained, self._kept = self.precision.apply(chosen), Kept(self.precision)
        super().__init__(
            cluster,
            chosen,
            needs_group=self.strategy.needs_group,
            seed=seed,
            dtype=self.precision.dtype,
            num_workers=num_workers,
        )
        self.deterministic, self.log_every = deterministic, log_every
        others = {"nonfinite": nonfinite, "run_dir": run_dir, "hang_after": hang_after}
        self._require_same_arguments(activation_checkpointing=[*activation_checkpointing], **others)
        if deterministic:
            compute_deterministically()
        self.tracker = (tracker or _default_tracker(run_dir is not None)) if self.is_main else Tracker()
        self._run_lock: run_directory.RunLock | None = None
        self.run_dir = self._make_run_dir(run_dir) if run_dir is not None else None
        self._seed_globally(self._global_key("start"))  # modules are made next, and every rank must make the same
        self.step = 0
        """Steps done; the Trainer and `log` keep it."""
        self.guard = Guard(nonfinite, self, self._clock, tell=lambda text: self.tracker.message(text))
        self._is_tracking = False
        self._resumed_step: int | None = None
        self.throughput, self._means = Throughput(), Means()
        self._engine_names: set[str] = set()
        self._buffers: list[Tensor] = []  # of engines; not the engines, which may be let go of at any time
        self._saver: checkpoint.Saver | None = None
        self._verified: Path | None = None
        self._watchdog = self._make_watchdog(hang_after)
        self._clock.meet = self._watchdog.times.meet
        self._reducer = self._make_reducer()
        atexit.register(self.close)

    def _require_same_arguments(self, **others: Any) -> None:
        """Leaves the process group where ranks were given other ones. Collective."""
        from trainkit import __version__  # not set yet while the package imports this module

        try:
            self.require_same(
                {
                    "trainkit": __version__,
                    "torch": torch.__version__,
                    "device": self.device.type,
                    "strategy": self.strategy,
                    "precision": self.precision,
                    "comm": self.comm,
                    "ops": self.ops,
                    "seed": self.seed,
                    "deterministic": self.deterministic,
                    "compile": self.compile,
                    "log_every": self.log_every,
                    **others,
                }
            )
        except ConfigError:
            self._leave()
            raise

    def _make_watchdog(self, hang_after: float | Literal["auto"] | None) -> Watchdog:
        return Watchdog(
            self.cluster,
            self.device,
            hang_after=hang_after,
            directory=self.run_dir,
            topic=self.broadcast(f"{time.time_ns()}"),
            tell=self.tracker.message,
            own_store=self.own_store,
            rescue=self._rescue,
        )

    def _rescue(self) -> None:
        """Finishes a save that was begun and tells trackers what is outstanding, where the run hangs elsewhere."""
        try:
            if self._saver is not None:
                self._saver.finish(timeout_s=LAST_SAVE_S)
        finally:
            self.end_tracking("failed")

    def _make_reducer(self) -> Reducer:
        reducer = Reducer(
            self.comm,
            cluster=self.cluster,
            device=self.device,
            deterministic=self.deterministic,
            group=self._patient,
            report=self.remark,
            during=self.during,
        )
        if self.strategy.name == "ddp":
            reducer.check()
        return reducer

    def _make_run_dir(self, run_dir: str | Path) -> Path:
        """Makes the directory, and holds it as long as this runtime lives. Collective."""
        made = self.same_as_before("run_dir", lambda: str(run_directory.make(run_dir))) if "%" in str(run_dir) else None
        path, error = Path(made or run_dir).expanduser(), None
        if self.is_main:
            try:
                path = run_directory.make(path)
                self._run_lock = run_directory.RunLock(path, report=self.tracker.message)
            except ConfigError as caught:
                error = caught
        try:
            self.raise_first(error)
        except ConfigError:
            self._leave()
            raise
        return path

    # -- where we are ------------------------------------------------------------------------------------------------

    @property
    def device_name(self) -> str:
        """What the device calls itself."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def summary(self) -> tuple[str, ...]:
        """Lines that say what this runtime is, for the start of a run."""
        ranks = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        exact = ", deterministic" if self.deterministic else ""
        return (
            f"strategy {self.strategy.name} on {ranks} ({self.strategy.layout(self.cluster)}), {self.device_name}, "
            f"{torch.get_num_threads()} threads a rank",
            f"precision asked {self.precision.name}, obtained {self.precision_obtained}; ops {self.ops.kernels}",
            f"seed {self.seed}{exact}" + (f", run directory {self.run_dir}" if self.run_dir else ""),
        )

    # -- engines -----------------------------------------------------------------------------------------------------

    def setup(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | OptimizerFactory,
        *,
        name: str | None = None,
        blocks: Sequence[type[nn.Module]] = (),
        clip: float | None = None,
        schedule: ScheduleFunction | None = None,
        ema: float | None = None,
        accumulation: int = 1,
        inherit: Engine | None = None,
        inherit_optimizer: bool = True,
    ) -> Engine:
        """An Engine of `module`, moved to the run's device and dtype. May be called at any time. Collective.

        optimizer: an instance without state, or a function of parameter groups that makes one.
        name: keys the engine's dropout masks; by default `engine0`, `engine1` ... in the order of the calls.
        blocks: classes of the repeated parts that the module is made of, such as a transformer's layer: FSDP gathers
            one at a time, and `compile` compiles each by itself.
        clip: largest global gradient norm.  schedule: (position, batch size) -> factor on the learning rates.
        ema: decay of averaged weights.  accumulation: micro-batches a step.
        inherit: an engine whose place this one takes, with its weights, averaged weights and optimizer state (unless
            `inherit_optimizer` is false) of the parameters of the same name and shape. The old engine is retired.
        """
        _check_setup(clip=clip, schedule=schedule, ema=ema, accumulation=accumulation)
        if name is None:
            name = inherit.name if inherit is not None else f"engine{len(self._engine_names)}"
        self._engine_names.add(name)
        require_shapes(module, name=name)
        self.require_same(
            {
                "name": name,
                "clip": clip,
                "ema": ema,
                "accumulation": accumulation,
                **{f"{name}.{key}": [*p.shape, p.dtype, p.requires_grad] for key, p in module.named_parameters()},
            }
        )
        backend = self._attach(module, optimizer, blocks, name=name)
        backend.reducer = self._reducer
        engine = Engine(
            backend,
            name=name,
            clock=self._clock,
            cluster=self.cluster,
            device=self.device,
            precision=self.precision,
            guard=self.guard,
            clip=clip,
            schedule=schedule,
            # After the strategy: it gives every rank the weights of rank 0.
            average=Average(backend.weights(), buffer_shards(module), ema) if ema is not None else None,
            accumulation=accumulation,
            is_compiled=self.compile,
        )
        if inherit is not None:
            engine.inherit(inherit, optimizer=inherit_optimizer)
        self._buffers += engine.own_buffers()
        return engine

    def _attach(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | OptimizerFactory,
        blocks: Sequence[type[nn.Module]],
        *,
        name: str,
    ) -> Backend:
        """`module` as it computes in this run, with its optimizer, which is the same on all ranks. Collective."""
        if (converted := convert(module, self.device, self.dtype, name=name)) is not None:
            self.remark(converted)
        self._kept.apply(module)
        if self.compile:
            compile_blocks(module, blocks)
        self._checkpointed.apply(module)
        backend = self.strategy.attach(
            module,
            OptimizerSource(module, optimizer, engine_name=name),
            cluster=self.cluster,
            device=self.device,
            deterministic=self.deterministic,
            blocks=blocks,
        )
        require_dense_step(backend.optimizer)
        self.require_same(
            {
                f"optimizer.{key} of group {number} of {name}": value
                for number, group in enumerate(backend.optimizer.param_groups)
                for key, value in group.items()
                if key != "params" and not callable(value)  # a function prints its address
            }
        )
        return backend

    def fewest_micro_batches(self, attempt: Callable[[int], None], *, largest: Callable[[], int]) -> int:
        """The smallest accumulation, up to `largest()`, with which `attempt(accumulation)` fits into memory everywhere.

        `attempt` sets engines up, makes a step or two, and leaves nothing behind; one rank may run out of memory in it
        while others do not. Raises ConfigError when nothing fits. Collective: every rank calls.
        """
        with self._reducer.set_aside():
            return fewest_that_fit(attempt, largest=largest, group=self._patient, report=self.tracker.message)

    def begin_anew(self) -> None:
        """Makes what is set up next equal to what would have been set up first: seeds and names are as at the start."""
        self._seed_globally(self._global_key("start"))
        self._engine_names.clear()
        self._buffers.clear()
        self.guard.forget()

    def share_buffers(self) -> None:
        """Gives every rank the buffers of rank 0, such as BatchNorm's statistics: those that a checkpoint holds.

        `evaluation_batches`, `Engine.averaged` and a Trainer's evaluation do it: what is measured then can be loaded
        again. Collective: every rank calls.
        """
        share_from_first(self._buffers)

    def predict(self, engine: Engine) -> Memory:
        """What each rank will hold of `engine`, by formula."""
        trained, frozen = engine.parameter_sizes()
        predicted = self.strategy.predict(trained, frozen, state_tensors(engine.optimizer), self.cluster)
        return predicted if self.dtype == torch.float32 else predicted.twice()

    # -- watching ----------------------------------------------------------------------------------------------------

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """For what is no training step and takes a while, such as `with runtime.during("sampling"):`.

        It does not count in samples/s, and the hang watchdog learns how long it takes by itself.
        """
        with self.throughput.paused(), self._watchdog.during(activity):
            yield

    def _iterated(self, batches: Iterator[Batch], *, is_training: bool) -> Iterator[Batch]:
        if is_training:
            self._kept.require_all_found()
        else:
            batches = self._with_shared_buffers(batches)
        return self._watchdog.watched(batches, self.step if is_training else None)

    def _with_shared_buffers(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self.share_buffers()
        yield from batches

    # -- telling -----------------------------------------------------------------------------------------------------

    def start_tracking(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        num_samples: int | None = None,
        summary: tuple[str, ...] = (),
        costs: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Starts the tracker; `log` does it where nobody has.

        num_samples: the position at which training ends.  costs: of samples, for the time left; see `Recipe.costs`.
        """
        if self._is_tracking:
            return
        self._checkpointed.require_all_found()
        self._kept.require_all_found()
        self._is_tracking = True
        self._num_samples = num_samples or self._num_samples
        self.throughput = Throughput(start=self.position, num_samples=self._num_samples, costs=costs)
        lines = self.summary() + summary
        if self.is_main and self.run_dir is not None:
            self._summarise(lines, "w")
        run = Run(
            directory=self.run_dir or Path(),
            name=self.run_dir.name if self.run_dir else "run",
            config=config or {},
            num_samples=self._num_samples,
            resumed_step=self._resumed_step,
            summary=lines,
        )
        self.tracker.start(run)
        # What a tracker registered meanwhile comes after this: at exit the last one is called first.
        atexit.unregister(self.close)
        atexit.register(self.close)

    def remark(self, text: str) -> None:
        """A line about the run itself, to the tracker and to the run's summary."""
        self.tracker.message(text)
        if self.is_main and self.run_dir is not None and self._is_tracking:
            self._summarise([text], "a")

    def _summarise(self, lines: Sequence[str], mode: Literal["w", "a"]) -> None:
        assert self.run_dir is not None
        try:
            with (self.run_dir / SUMMARY_FILE).open(mode) as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            self.tracker.message(f"{SUMMARY_FILE} could not be written: {error.strerror or error}; training goes on")

    def log(self, step: int, **metrics: Tensor | float) -> dict[str, float] | None:
        """Every `log_every` steps, tells the tracker the means of `metrics` since it was last told, and returns them.

        The last step that `batches` gives is told too; a loop that ends before it calls `log_rest` after its last one.
        To be called in every step, which never waits for the device for it. Means are over the global batches of those
        steps: what a rank gives counts by the samples of its share. So `skipped` is the share of samples whose step was
        skipped; what was not finite in such a step does not count. Of a `trainkit.Last(value)` the last one is told.
        Raises ConfigError naming a metric that is no number. Collective: every rank calls, with the same names.
        """
        self.step = step
        share = float(len(self._clock.batch)) if self._clock.batch is not None else 1.0
        self._means.add(metrics, share)
        if step % self.log_every and not self._is_last_step:
            return None
        return self.log_rest()

    @property
    def _is_last_step(self) -> bool:
        batch = self._clock.batch
        return batch is not None and self._num_samples is not None and batch.position + batch.size >= self._num_samples

    def log_rest(self) -> dict[str, float] | None:
        """Tells the means of the steps that `log` was given and has not told; None where there are none.

        Collective: every rank calls.
        """
        if self._means.is_empty:
            return None
        self.guard.read()
        if not self._is_tracking:
            self.start_tracking()
        means = self._means_over_ranks()
        rates = self.throughput.rates(self.position)
        self.tracker.log(self.step, {**means, "position": self.position, **rates})
        return means

    def log_image(self, step: int, **images: Any) -> None:
        """Tells the tracker pictures by name, as `runtime.log_image(step, samples=figure)`; each call is told.

        A picture is a matplotlib figure, a PIL image, or an array or tensor: uint8 or floats of 0 .. 1,
        [height, width], [height, width, channels] or [channels, height, width]. Raises ConfigError naming one that is
        none. No other rank is waited for, and what ranks other than 0 give is left alone.
        """
        if self.is_main:
            pictures = {name: picture(name, image) for name, image in images.items()}
            if not self._is_tracking:
                self.start_tracking()
            for name, pixels in pictures.items():
                self.tracker.image(step, name, pixels)

    def _means_over_ranks(self) -> dict[str, float]:
        taken = self._means.take()
        totals = {f"sum {name}": total for name, (total, _) in taken.items()}
        shares = {f"share {name}": share for name, (_, share) in taken.items()}
        sums = self.sum({**totals, **shares}) if taken else {}
        # A name that no sample counted for has no mean.
        return {name: sums[f"sum {name}"] / (sums[f"share {name}"] or math.nan) for name in taken}

    # -- keeping -----------------------------------------------------------------------------------------------------

    def save(
        self, path: str | Path, *, wait: bool = True, then: Callable[[], None] = lambda: None, **items: Any
    ) -> None:
        """Writes engines and JSON-able values as one checkpoint directory at `path`, whole or not at all.

        `runtime.save("checkpoints/last", G=G, D=D, step=step)`. Every rank writes its own part.
        wait: false: returns when everything is copied, and the rest is done meanwhile; the next `save`,
            `finish_saving` or `close` waits for it.  then: called on rank 0 once the directory is in place.
        Raises CheckpointError, also for a save before that nobody has waited for. Collective: every rank calls.
        """
        self.guard.read()
        if self._saver is None:
            self._saver = checkpoint.Saver(group=self.new_group(BESIDE), rank=self.rank, report=self.tracker.message)
        engines = {name: item for name, item in items.items() if isinstance(item, Engine)}
        values = {name: item for name, item in items.items() if name not in engines}
        with self._watchdog.during("saving"):
            checkpoint.save(Path(path), engines, position=self.position, values=values, saver=self._saver, then=then)
        if wait:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Waits for a save that was not waited for. Raises CheckpointError if it failed. Collective."""
        if self._saver is not None:
            with self._watchdog.during("saving"):
                self._saver.finish()

    def find(self, path: str | Path) -> Path:
        """The checkpoint that `path` means: itself, or the newest whole one of a run's, every byte of it verified.

        Says which ones were passed over. Raises CheckpointError on all ranks. Collective: every rank calls.
        """
        if self._verified is None or self._verified != Path(path):
            self._verified = checkpoint.find_whole(Path(path), self, report=self.tracker.message)
        return self._verified

    def load(self, path: str | Path, **engines: Engine) -> Position:
        """Fills `engines` from the checkpoint at `path`; the position to go on from: `batches(..., start=position)`.

        Its `values` hold what was saved beside the engines. Raises CheckpointError. Collective: every rank calls.
        """
        directory = self.find(path)
        manifest = checkpoint.read_manifest(directory)
        for line in checkpoint.load(directory, engines, manifest=manifest, group=self._patient):
            self.tracker.message(line)
        self._clock.position = manifest["position"]
        values = manifest["values"]
        if isinstance(values.get("step"), int):
            self.step = self._resumed_step = values["step"]
        return Position(manifest["position"], values)

    def end_tracking(self, status: Status) -> None:
        """Has the tracker write what is outstanding. It may start again."""
        self._means.forget()
        if self._is_tracking:
            self._is_tracking = False
            self.tracker.finish(status)

    def close(self, status: Status = "finished") -> None:
        """Ends a save and tracking, and leaves the process group, if it was joined here. Also done at exit."""
        atexit.unregister(self.close)
        self._watchdog.end()
        if self._saver is not None:
            try:
                self._saver.finish(timeout_s=None if status == "finished" else LAST_SAVE_S)
            except CheckpointError as error:
                self.tracker.message(str(error))
            self._saver = None
        has_tracked = self._is_tracking
        self.end_tracking(status)
        if self._run_lock is not None:
            assert self.run_dir is not None
            self._run_lock.release()
            if not has_tracked:
                with suppress(OSError):  # one that came to nothing leaves no empty directory; a full one stays
                    self.run_dir.rmdir()
        self._reducer.close()
        self._leave()


def _default_tracker(has_directory: bool) -> Tracker:
    return trackers(jsonl=has_directory, curve=has_directory, media=has_directory)


def _check_setup(
    *, clip: float | None, schedule: ScheduleFunction | None, ema: float | None, accumulation: int
) -> None:
    if accumulation < 1:
        raise ConfigError(f"accumulation={accumulation}: allowed is 1 or more")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip={clip}: allowed is a norm above 0, or null for no clipping")
    if ema is not None:
        check_decay(ema)
    if schedule is not None and not callable(schedule):
        raise ConfigError(
            f"schedule={type(schedule).__name__}: must be a function (position, batch size) -> factor, such as "
            f"trainkit.Schedule; make a scheduler of torch of engine.optimizer instead, after setup, and step it "
            f"yourself: checkpoints keep the rates that it sets"
        )
    if isinstance(schedule, Schedule) and not schedule.has_end:
        raise ConfigError(
            f"schedule.total=null is the length of the run, which is not known here: give schedule.total in "
            f"{schedule.unit}, or schedule.until(num_steps, batch_size)"
        )
