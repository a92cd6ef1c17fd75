"""Runtime: processes, device, seed, strategy, precision and tracker, in one object that is passed explicitly."""

import atexit
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainkit import version
from trainkit.checkpoint import run_directory
from trainkit.checkpoint.copies import open_copies
from trainkit.checkpoint.io import CheckpointIO, Loaded
from trainkit.data.batch import Batch
from trainkit.data.loader import Collate
from trainkit.data.shuffle import Shuffle, ShuffleBy
from trainkit.data.stream import DataStream
from trainkit.distributed.cluster import current_cluster
from trainkit.distributed.device import choose_device, compute_deterministically
from trainkit.distributed.ranks import Ranks
from trainkit.distributed.shard import broadcast_from_first, buffer_shards
from trainkit.encryption import Encryption
from trainkit.engine.engine import Engine
from trainkit.engine.learning_rates import ScheduleFunction
from trainkit.errors import CheckpointError, ConfigError, require_at_least
from trainkit.health.guard import Guard, Policy, check_policy
from trainkit.health.hang import Watchdog, check_limit
from trainkit.manifest import Manifest
from trainkit.memory.memory import Memory, state_tensors
from trainkit.modules.blocks import check_compiler
from trainkit.ops.switch import Kernels, Ops
from trainkit.optim.ema import ExponentialMovingAverage
from trainkit.optim.source import OptimizerFactory
from trainkit.planning.choice import Choice
from trainkit.precision import Name, Precision
from trainkit.reduction.comm import Comm, Plan
from trainkit.reduction.links_file import LinksFile
from trainkit.reduction.reducer import Reducer
from trainkit.strategy import Strategy, StrategyName, by_name
from trainkit.strategy.preparation import Preparation, check_step
from trainkit.topology.topology import Topology
from trainkit.tracking import Last, RunLog, Status, Tracker, Trackers, trackers

LAST_SAVE_S = 60.0
"""Seconds that a failed run waits for the save that it had begun: other ranks may be gone."""


class Runtime:
    """The processes, device, seed, strategy, precision and tracker of a training loop.

    Making one joins the process group that torchrun describes. Collective: every rank must make one.

    Args:
        strategy: `single`, `ddp`, `fsdp`, `hsdp`, `zero1`, `zero2`, `zero3`, or a Strategy with arguments of its own.
        comm: how gradients are summed: `auto`, `flat` and so on, see Comm; or a Comm with arguments of its own.
        precision: `fp64`, `fp32`, `tf32`, `bf16`, `fp16`, or a Precision.
        ops: whether the layers of `trainkit.ops` run compiled, `fused`, or as plain PyTorch, `reference`; or an Ops.
            It holds for the process.
        seed: with the position in the data, the only source of randomness.
        deterministic: the same bits from the same ranks, strategy and hardware, also after a resume.
        device: `auto` takes a GPU where there is one.
        compile: compiles the blocks of modules at their first call; names in checkpoints stay.
        activation_checkpointing: classes whose instances keep only their inputs, and are computed again in the
            backward pass: less memory, a third more work.
        nonfinite: what a loss or gradient over the global batch that is not finite leads to (in fp16: a gradient that
            is not finite even with the smallest loss scale). `stop` raises NonFiniteError, which names the rank, the
            parameters and the samples. `skip` skips the step and logs it. `rewind` makes a Trainer return to the
            newest checkpoint and leave that batch out. On a GPU, `skip` waits for the device in every step; the others
            find out when values are logged or saved.
        num_workers: threads or processes that fetch data ahead, see `batches`; 0: none.
        log_every: steps between two logged ones; the last step is logged too.
        run_dir: where trackers write, made by rank 0, whose clock fills in %Y, %m, %d, %H, %M and %S; None: they only
            print.
        copy_to: a folder of a store, such as s3://bucket/runs/bert, or another directory: what is saved is copied there
            in the background, and a Trainer resumes from there where `run_dir` has nothing as new. None: no copies.
        tracker: None: the console, and with a run directory metrics.jsonl and curve.png.
        checkpoint: for whom checkpoints are encrypted, and what reads them; None: they are not encrypted.
        hang_timeout_s: seconds without progress after which the job ends with a report of which rank did not arrive.
            `auto`: derived from the run's own steps; None: never, and slow ranks are not looked for. See `Watchdog`.

    Raises:
        ConfigError: for arguments that cannot be used, or differ between ranks; before anything is started.
        ClusterError: where the environment describes no process group that can be joined.
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
        copy_to: str | Path | None = None,
        tracker: Tracker | None = None,
        checkpoint: Encryption | None = None,
        hang_timeout_s: float | Literal["auto"] | None = "auto",
    ) -> None:
        check_limit(hang_timeout_s)
        require_at_least(1, log_every=log_every)
        require_at_least(0, num_workers=num_workers)
        check_policy(nonfinite)
        cluster = current_cluster()
        chosen = choose_device(device, cluster)
        self.strategy = by_name(strategy) if isinstance(strategy, str) else strategy
        self.precision = Precision(name=precision) if isinstance(precision, str) else precision
        self.comm = Comm(plan=comm) if isinstance(comm, str) else comm
        self.comm.check(self.strategy.name, own_plan=self.strategy.own_plan, deterministic=deterministic)
        self.ops = Ops(kernels=ops) if isinstance(ops, str) else ops
        self.ops.apply()
        self.strategy.check(cluster, self.precision, chosen)
        if compile:
            check_compiler(chosen)
        self.compile, self.precision_obtained = compile, self.precision.apply(chosen)
        self.dtype = self.precision.dtype
        """What parameters are stored in: float32, or float64 with precision fp64."""
        self.device, self.seed, self.deterministic, self.log_every = chosen, seed, deterministic, log_every
        checkpoint = checkpoint or Encryption()
        checkpoint.check(rewinds=nonfinite == "rewind")
        recipients, self._encrypted = checkpoint.public_keys(), checkpoint.describe()
        self.ranks = Ranks(cluster, chosen, needs_group=self.strategy.needs_group)
        self._require_same_arguments(
            nonfinite=nonfinite,
            run_dir=run_dir,
            copy_to=copy_to,
            hang_timeout_s=hang_timeout_s,
            recipients=recipients,
            activation_checkpointing=[*activation_checkpointing],
        )
        if deterministic:
            compute_deterministically()
        copies = open_copies(copy_to, run_dir, self.ranks) if copy_to is not None else None
        self.tracker = _isolated(tracker, run_dir is not None) if self.ranks.is_main else Tracker()
        self.run_dir, self._run_lock = run_directory.claim(run_dir, self.ranks, report=self.tracker.message)
        self.stream = DataStream(
            self.ranks, chosen, seed=seed, dtype=self.dtype, num_workers=num_workers, wrap=self._iterated
        )
        self.stream.seed_at_start()  # modules are made next, and every rank must make the same
        self.step = 0
        """Steps done; the Trainer and `log` keep it."""
        self.guard = Guard(nonfinite, self.ranks, self.stream.clock, report=lambda text: self.tracker.message(text))
        self.manifest = self._make_manifest()
        self.run_log = self._make_run_log()
        self._preparation = self._make_preparation(activation_checkpointing)
        self.checkpoints = CheckpointIO(
            self.ranks, report=self.tracker.message, recipients=recipients, run_dir=self.run_dir, copies=copies
        )
        self._copied = f", copied to {copies.folder.shown}" if copies is not None else ""
        self._resumed: str | None = None
        self.block_classes: set[type[nn.Module]] = set()
        """Classes of the repeated parts of the modules that were set up."""
        self._engine_names: set[str] = set()
        self._buffers: list[Tensor] = []  # of engines; not the engines, which may be let go of at any time
        self._watchdog = self._make_watchdog(hang_timeout_s)
        self.stream.clock.meet = self._watchdog.times.meet
        self.reducer = self._make_reducer()
        atexit.register(self.close)

    def _make_manifest(self) -> Manifest:
        directory = self.run_dir if self.ranks.is_main else None
        return Manifest(directory, training=self._facts, report=self.tracker.message)

    def _make_run_log(self) -> RunLog:
        return RunLog(
            self.tracker,
            ranks=self.ranks,
            run_dir=self.run_dir,
            progress=lambda: (self.position, self.stream.num_samples),
            describe=self._describe,
            started=self._started,
            measure=self._measure,
            num_workers=lambda: self.stream.num_workers,
        )

    def _make_preparation(self, activation_checkpointing: Sequence[str]) -> Preparation:
        return Preparation(
            self.strategy,
            self.ranks,
            self.device,
            precision=self.precision,
            compile=self.compile,
            activation_checkpointing=activation_checkpointing,
            deterministic=self.deterministic,
            report=self.run_log.message,
        )

    def _require_same_arguments(self, **others: Any) -> None:
        """Leaves the process group where arguments differ between ranks. Collective."""
        try:
            self.ranks.require_same(
                {
                    "trainkit": version.__version__,
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
            self.ranks.leave()
            raise

    def _make_watchdog(self, hang_timeout_s: float | Literal["auto"] | None) -> Watchdog:
        return Watchdog(
            self.ranks.cluster,
            self.device,
            hang_timeout_s=hang_timeout_s,
            directory=self.run_dir,
            topic=self.ranks.broadcast_object(f"{time.time_ns()}"),
            report=self.tracker.message,
            own_store=self.ranks.own_store,
            rescue=self._rescue,
        )

    def _rescue(self) -> None:
        """Finishes a save that was begun and flushes trackers, while the run hangs elsewhere."""
        try:
            self.checkpoints.finish(timeout_s=LAST_SAVE_S)
        finally:
            self.run_log.end("failed")

    def _make_reducer(self) -> Reducer:
        reducer = Reducer(
            self.comm,
            cluster=self.ranks.cluster,
            device=self.device,
            deterministic=self.deterministic,
            group=self.ranks.group,
            report=self.run_log.message,
            during=self.during,
            chosen=self._links_chosen(),
            # A wait in a GPU's queue is none of this process.
            waited=self._waited_for_gradients if self.device.type == "cpu" else None,
        )
        if self.strategy.own_plan is None:
            reducer.check()
        return reducer

    def _links_chosen(self) -> Callable[[int, Choice, Topology | None], None]:
        if self.run_dir is None or not self.ranks.is_main:
            return lambda num_bytes, choice, topology: None
        return LinksFile(self.run_dir, self.ranks.cluster, self.device, self.tracker.message).chosen

    def _waited_for_gradients(self, seconds: float) -> None:
        self.run_log.throughput.waited("comm_wait", seconds)

    # -- description -----------------------------------------------------------------------------------------------

    @property
    def device_name(self) -> str:
        """The name that the device reports."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def summary(self) -> tuple[str, ...]:
        """Lines that describe this runtime, logged at the start of a run."""
        ranks = f"{self.ranks.world_size} rank{'s' if self.ranks.world_size > 1 else ''}"
        exact = ", deterministic" if self.deterministic else ""
        return (
            f"strategy {self.strategy.name} on {ranks} ({self.strategy.layout(self.ranks.cluster)}), "
            f"{self.device_name}, {torch.get_num_threads()} threads a rank",
            f"precision asked {self.precision.name}, obtained {self.precision_obtained}; ops {self.ops.kernels}",
            f"seed {self.seed}{exact}" + (f", run directory {self.run_dir}" if self.run_dir else "") + self._copied,
            *((self._encrypted,) if self._encrypted else ()),
        )

    # -- data --------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Samples in the steps done so far."""
        return self.stream.clock.position

    def batches(
        self,
        source: Any,
        *,
        batch_size: int,
        start: int = 0,
        num_steps: int | None = None,
        num_workers: int | None = None,
        collate: Collate | None = None,
        weights: Any = None,
        order: Any = None,
        shuffle: ShuffleBy | Shuffle = "global",
    ) -> Iterator[Batch]:
        """This rank's shares of the global batches from position `start` on; endless unless `num_steps` is given.

        The samples, their order and their seeds are functions of (seed, position) alone. Collective: every rank must
        call.

        Args:
            source: a tensor or an array, a tuple or dict of them (a dict may also hold lists), or a map-style data
                set, such as a list of samples. With `collate`, every source gives it a list of samples. Of a
                DataLoader its data set, collate_fn, order and number of workers are taken. An iterable data set is
                read by every rank, which keeps its share; a later `start` reads again what lies before it. See
                `data.iterable.Reading`.
            batch_size: samples in a global batch, of all ranks together.
            start: samples before the first one.
            num_steps: batches; None: without end.
            num_workers: of this rank, which fetch data ahead: threads for columns and for data sets with
                `__getitems__` and `is_thread_safe = True`, such as trainkit's own; else processes, which hand over in
                shared memory. None: as the Runtime was given.
            collate: makes a batch of a list of samples.
            weights: [number of samples], an array or a tensor: samples are drawn with replacement, each with a
                probability in proportion to its weight, as by torch's WeightedRandomSampler; without, every epoch
                holds each once.
            order: the order of each epoch in place of a shuffled one: a function (seed, epoch) -> indices, a torch
                Sampler or a BatchSampler of global batches. It must give the same again when it is asked again.
            shuffle: `global`: every epoch is in an order of its own, of all orders equally likely; `blocks`: for data
                that are read from far away, few blocks of consecutive samples are read at a time, and mixed; or a
                `trainkit.data.Shuffle` that says how many.

        Returns:
            An iterator of batches, each with `.data`, `.position`, `.size` and `.indices`.

        Raises:
            ConfigError: at once, also where ranks were given other data or numbers.
        """
        return self.stream.batches(
            source,
            batch_size=batch_size,
            start=start,
            num_steps=num_steps,
            num_workers=num_workers,
            collate=collate,
            weights=weights,
            order=order,
            shuffle=shuffle,
        )

    def evaluation_batches(
        self, source: Any, *, batch_size: int, num_workers: int | None = None, collate: Collate | None = None
    ) -> Iterator[Batch]:
        """Every sample once, in order; the last global batch may be smaller.

        Every rank gets as many batches, so that a strategy may communicate in each; a share may have no sample.
        Collective: every rank must call.

        Args:
            source: as for `batches`.
            batch_size: samples in a global batch, of all ranks together.
            num_workers: as for `batches`.
            collate: makes a batch of a list of samples.

        Returns:
            An iterator of batches.

        Raises:
            ConfigError: for a source that cannot be read once in order.
        """
        return self.stream.evaluation_batches(source, batch_size=batch_size, num_workers=num_workers, collate=collate)

    def rand(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Uniform in [0, 1), [len(batch), *shape]: a function of (seed, name, positions of the samples)."""
        return self.stream.rand(batch, *shape, name=name)

    def randn(self, batch: Batch, *shape: int, name: str) -> Tensor:
        """Standard normal, [len(batch), *shape]: a function of (seed, name, positions of the samples)."""
        return self.stream.randn(batch, *shape, name=name)

    # -- engines -----------------------------------------------------------------------------------------------------

    def setup(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | OptimizerFactory,
        *,
        name: str | None = None,
        blocks: Sequence[type[nn.Module]] = (),
        max_grad_norm: float | None = None,
        schedule: ScheduleFunction | None = None,
        ema_decay: float | None = None,
        grad_accumulation_steps: int = 1,
        inherit: Engine | None = None,
        inherit_optimizer: bool = True,
    ) -> Engine:
        """Makes an Engine of `module`, moved to the run's device and dtype. Can be called at any time.

        Collective: every rank must call.

        Args:
            module: whose parameters are trained.
            optimizer: an instance without state, or a function of parameter groups that makes one.
            name: keys the engine's dropout masks; None: `engine0`, `engine1` ... in the order of the calls.
            blocks: classes of the repeated parts that the module is made of, such as a transformer's layer: FSDP
                gathers one at a time, and `compile` compiles each by itself.
            max_grad_norm: largest norm of all gradients; None: no clipping.
            schedule: (position, batch size) -> factor on the learning rates, such as a `trainkit.Schedule`.
            ema_decay: decay of averaged weights, at least 0 and below 1; None: none are kept.
            grad_accumulation_steps: micro-batches in a step.
            inherit: an engine that this one replaces: weights, averaged weights and optimizer state of parameters of
                the same name and shape are copied, and the old engine is retired.
            inherit_optimizer: False leaves out the optimizer's state.

        Raises:
            ConfigError: for arguments that cannot be used, or differ between ranks.
        """
        given: dict[str, Any] = {"max_grad_norm": max_grad_norm, "grad_accumulation_steps": grad_accumulation_steps}
        check_step(schedule=schedule, ema_decay=ema_decay, **given)
        if name is None:
            free = (number for number in count() if f"engine{number}" not in self._engine_names)
            name = inherit.name if inherit is not None else f"engine{next(free)}"
        self._engine_names.add(name)
        self.ranks.require_same({"name": name, "ema_decay": ema_decay, **given})
        self.block_classes |= {*blocks}
        backend = self._preparation.backend(module, optimizer, blocks, name=name)
        backend.reduction.reducer = self.reducer
        average = None
        if ema_decay is not None:  # after the strategy, which gives every rank the weights of rank 0
            average = ExponentialMovingAverage(backend.tensors.weights(), buffer_shards(module), ema_decay)
        engine = Engine(
            backend,
            name=name,
            clock=self.stream.clock,
            cluster=self.ranks.cluster,
            device=self.device,
            precision=self.precision,
            guard=self.guard,
            schedule=schedule,
            average=average,
            is_compiled=self.compile,
            **given,
        )
        if inherit is not None:
            engine.inherit(inherit, optimizer=inherit_optimizer)
        self._buffers += engine.state.buffers()
        return engine

    def adapt(
        self,
        *,
        strategy: Strategy | None = None,
        precision: Precision | None = None,
        activation_checkpointing: Sequence[str] = (),
    ) -> None:
        """Changes how modules that are set up from here on are trained. Collective: every rank must call.

        Args:
            strategy: None: stays as it is.
            precision: None: stays as it is.
            activation_checkpointing: as of the Runtime.

        Raises:
            ConfigError: for what cannot be used; nothing is changed then.
        """
        new_strategy, new_precision = strategy or self.strategy, precision or self.precision
        self.comm.check(new_strategy.name, own_plan=new_strategy.own_plan, deterministic=self.deterministic)
        new_strategy.check(self.ranks.cluster, new_precision, self.device)
        if new_strategy.needs_group:
            self.ranks.require_group()
        self.precision_obtained = new_precision.apply(self.device)
        is_other, self.strategy, self.precision = new_strategy != self.strategy, new_strategy, new_precision
        self._preparation = self._make_preparation(activation_checkpointing)
        if is_other:
            self.reducer.close()
            self.reducer = self._make_reducer()

    def reset(self) -> None:
        """Restores seeds and engine names to their first values: what is set up next equals what was set up first."""
        self.stream.seed_at_start()
        self._engine_names.clear()
        self._buffers.clear()
        self.guard.forget()

    def share_buffers(self) -> None:
        """Broadcasts the buffers of rank 0, such as BatchNorm's statistics, which checkpoints hold.

        `evaluation_batches`, `Engine.averaged` and a Trainer's evaluation do so, so that what is measured can be loaded
        again. Collective: every rank must call.
        """
        broadcast_from_first(self._buffers)

    def predict(self, engine: Engine) -> Memory:
        """The memory that each rank will hold of `engine`, by formula."""
        trained, frozen = engine.state.parameter_sizes()
        predicted = self.strategy.predict(trained, frozen, state_tensors(engine.optimizer), self.ranks.cluster)
        return predicted if self.dtype == torch.float32 else predicted.twice()

    # -- watching ----------------------------------------------------------------------------------------------------

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """For work between training steps that takes a while, such as `with runtime.during("sampling"):`.

        It does not count in samples/s, and the hang watchdog measures its duration separately.

        Args:
            activity: its name, in reports.
        """
        with self.run_log.throughput.paused(), self._watchdog.during(activity):
            yield

    def _iterated(self, batches: Iterator[Batch], is_training: bool) -> Iterator[Batch]:
        if not is_training:
            batches = self._with_shared_buffers(batches)
            return self._watchdog.watched(batches)
        self._preparation.require_fp32_modules_found()
        return self._watchdog.watched(self.run_log.timed(batches), self.step)

    def _with_shared_buffers(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self.share_buffers()
        yield from batches

    # -- logging -----------------------------------------------------------------------------------------------------

    def _describe(self) -> tuple[str, ...]:
        """The first lines of the summary. Raises ConfigError for a name of a module that no module has."""
        self._preparation.require_all_found()
        return self.summary()

    def _measure(self) -> dict[str, float]:
        """What rank 0 logs about its device, without waiting for it."""
        if self.device.type != "cuda":
            return {}
        return {"peak_memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9}

    def _started(self) -> None:
        # What a tracker registered meanwhile comes after this: at exit the last one is called first.
        atexit.unregister(self.close)
        atexit.register(self.close)
        by = {"num_ranks": self.ranks.world_size, "strategy": self.strategy.name, "device": self.device_name}
        self.manifest.start(step=self.step, resumed=self._resumed, by=by)

    def _facts(self) -> dict[str, Any]:
        """What the manifest of a run says about it."""
        cluster = self.ranks.cluster
        return {
            "strategy": self.strategy.name,
            "layout": self.strategy.layout(cluster),
            "num_ranks": cluster.world_size,
            "num_ranks_per_host": cluster.local_world_size,
            "device": self.device_name,
            "num_threads": torch.get_num_threads(),
            "precision": self.precision.name,
            "precision_obtained": self.precision_obtained,
            "ops": self.ops.kernels,
            "compile": self.compile,
            "seed": self.seed,
            "deterministic": self.deterministic,
            "num_samples": self.stream.num_samples,
            **self.reducer.describe(),
        }

    def log(self, step: int, **metrics: Tensor | float | Last) -> dict[str, float] | None:
        """Logs the means of `metrics` since the last logged step, every `log_every` steps and after the last one.

        Call it in every step: between logged steps it never waits for the device. Means are over the global batches
        of those steps: what a rank gives counts by the samples of its share, so `skipped` is the share of samples
        whose step was skipped; values of such a step that are not finite do not count. Of a `trainkit.Last(value)`
        the last one is logged. A loop that ends before the last step that `batches` gives calls `log_rest`.
        Collective: every rank must call, with the same names.

        Args:
            step: steps done.
            metrics: scalars by name.

        Returns:
            The means, in a step that is logged.

        Raises:
            ConfigError: naming a metric that is no number.
            NonFiniteError: of an earlier step, which on a GPU is checked when it is logged or saved.
        """
        self.step = step
        batch = self.stream.clock.batch
        self.run_log.add(metrics, float(len(batch)) if batch is not None else 1.0)
        if step % self.log_every and not self._is_last(batch):
            return None
        return self.log_rest()

    def _is_last(self, batch: Batch | None) -> bool:
        end = self.stream.num_samples
        return batch is not None and end is not None and batch.position + batch.size >= end

    def log_rest(self) -> dict[str, float] | None:
        """Logs the means of the steps since the last logged one. Collective: every rank must call.

        Returns:
            The means by name; None where there are none.

        Raises:
            NonFiniteError: as `log`.
        """
        if self.run_log.is_empty:
            return None
        self.guard.read()
        return self.run_log.flush(self.step)

    def log_image(self, step: int, **images: Any) -> None:
        """Logs pictures by name, such as `runtime.log_image(step, samples=figure)`.

        Rank 0 logs them, and waits for no other rank; what other ranks give is ignored.

        Args:
            step: steps done.
            images: each a matplotlib figure, a PIL image, or an array or tensor: uint8 or floats of 0 .. 1, [height,
                width], [height, width, channels] or [channels, height, width].

        Raises:
            ConfigError: naming one that is none of these.
        """
        self.run_log.images(step, images)

    # -- keeping -----------------------------------------------------------------------------------------------------

    def save(
        self, path: str | Path, *, wait: bool = True, then: Callable[[], None] = lambda: None, **items: Any
    ) -> None:
        """Writes engines and values as one checkpoint directory, such as `runtime.save("last", G=G, D=D, step=step)`.

        The directory appears whole or not at all; every rank writes its own part. Collective: every rank must call.

        Args:
            path: the directory.
            wait: False returns when everything is copied; the rest is written while training continues. The next
                `save`, `finish_saving` or `close` waits for it.
            then: called on rank 0 once the directory is in place.
            items: engines and JSON-able values by name.

        Raises:
            CheckpointError: also for an earlier save that has not been waited for.
            NonFiniteError: as `log`; nothing is saved then.
            UsageError: for a value that is not JSON-able.
        """
        self.guard.read()
        with self._watchdog.during("saving"):
            self.checkpoints.save(path, items, position=self.position, then=then)
        if wait:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Waits for a save that was not waited for. Collective: every rank must call.

        Raises:
            CheckpointError: if it failed.
        """
        if self.checkpoints.has_saved:  # otherwise the duration of nothing would become the limit of the first save
            with self._watchdog.during("saving"):
                self.checkpoints.finish()

    def finish_copies(self) -> None:
        """Waits until what was saved is copied to `copy_to`, if to anywhere. Collective: every rank must call.

        Raises:
            CheckpointError: where the newest checkpoint could not be copied.
        """
        self.checkpoints.finish_copies(lambda: self._watchdog.during("copying"))

    def load(self, path: str | Path, **engines: Engine) -> Loaded:
        """Fills `engines` from a checkpoint, every byte of which is verified. Collective: every rank must call.

        Args:
            path: a checkpoint, or a run, of which the newest whole one is meant; of a URL, it is copied into `run_dir`.
            engines: by the names under which they were saved.

        Returns:
            Its `position`, for `batches(..., start=position)`, and the `values` that were saved beside the engines.

        Raises:
            CheckpointError: naming what does not fit; nothing is changed then.
        """
        loaded = self.checkpoints.load(path, engines)
        self.stream.clock.position, self._resumed = loaded.position, str(self.checkpoints.found)
        if isinstance(step := loaded.values.get("step"), int):
            self.step = self.run_log.resumed_step = step
        return loaded

    def close(self, status: Status = "finished") -> None:
        """Ends a save and tracking, and leaves the process group if it was joined here. Also done at exit."""
        atexit.unregister(self.close)
        self._watchdog.end()
        limit_s = None if status == "finished" else LAST_SAVE_S
        for end in (self.checkpoints.finish, self.checkpoints.close):
            try:
                end(timeout_s=limit_s)
            except CheckpointError as error:
                self.tracker.message(str(error))
        has_tracked = self.run_log.is_started
        self.manifest.end(status, self.step)
        self.run_log.end(status)
        if self._run_lock is not None:
            assert self.run_dir is not None
            self._run_lock.release()
            if not has_tracked:
                with suppress(OSError):  # one that came to nothing leaves no empty directory; a full one stays
                    self.run_dir.rmdir()
        self.reducer.close()
        self.ranks.leave()


def _isolated(tracker: Tracker | None, has_directory: bool) -> Trackers:
    """The tracker, or the standard ones, such that one that fails does not end training."""
    if tracker is None:
        return trackers(jsonl=has_directory, curve=has_directory, media=has_directory, report=has_directory)
    return tracker if isinstance(tracker, Trackers) else Trackers(**{type(tracker).__name__: tracker})
