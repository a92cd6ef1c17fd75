"""Measured: what a configuration computes and holds, counted on the CPU with a few samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trainkit.benchmark.batches import stage_of
from trainkit.benchmark.configuration import COUNTED, MEASURED, batch_size_of, with_batch_size
from trainkit.benchmark.flops import count_flops
from trainkit.config import build, check, compose_onto, compose_unresolved, resolve
from trainkit.distributed.cluster import Cluster
from trainkit.engine.engine import Engine
from trainkit.errors import ConfigError
from trainkit.job import new_recipe
from trainkit.memory.memory import state_tensors
from trainkit.memory.meter import Meter
from trainkit.strategy import Strategy
from trainkit.strategy.base import float32_memory
from trainkit.training.accumulation import checkable, configured

_FEWEST = 4  # samples; with 2, the update of the weights still hides a part of what a sample takes
_ALONE = (*MEASURED, "strategy=single", "device=cpu", "compile=false", "memory.budget=null")
_ON_CPU = {"tf32": "fp32", "fp16": "bf16"}
"""What takes as much memory on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The parameters of an engine.

    Args:
        trained: elements of each trained one.
        frozen: elements of the others.
        state_tensors: tensors of optimizer state for each; None: not known.
    """

    trained: Sequence[int]
    frozen: Sequence[int]
    state_tensors: int | None

    def held(self) -> int:
        """Bytes of parameters, gradients and optimizer state in one process, as far as they are known."""
        trained = sum(self.trained)
        memory = float32_memory(trained + sum(self.frozen), trained, trained, self.state_tensors)
        return memory.parameters + memory.gradients + (memory.optimizer or 0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a job needs, whatever it runs on.

    Args:
        engines: by name.
        strategy: of the configuration.
        precision: its name.
        flops_per_sample: of a training step.
        bytes_per_sample: that a sample of a micro-batch adds to the peak of a step, such as activations.
        bytes_beside: of the peak, beside those and what the engines hold.
        samples: of a step with which it was counted, the fewer and the more.
        batch_size: the global one.
        num_micro_batches: of a rank's share; None: as many as fit, which is found on the machine.
        num_samples: of the whole run; None: its parts take different times, or it has no end.
        stage: that was counted, the dearest; None: the recipe has none.
    """

    engines: Mapping[str, Sizes]
    strategy: Strategy
    precision: str
    flops_per_sample: float
    bytes_per_sample: float
    bytes_beside: int
    samples: tuple[int, int]
    batch_size: int
    num_micro_batches: int | None
    num_samples: int | None
    stage: str | None

    @property
    def num_parameters(self) -> int:
        """Of all engines."""
        return sum(sum(sizes.trained) + sum(sizes.frozen) for sizes in self.engines.values())

    @property
    def num_trained(self) -> int:
        """Those that have gradients."""
        return sum(sum(sizes.trained) for sizes in self.engines.values())


def measure(
    overrides: Sequence[str],
    config_dir: str | Path | None = None,
    *,
    cluster: Cluster | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Counts on the CPU of this machine, by training steps of a few samples.

    Args:
        overrides: the configuration, as it is typed.
        config_dir: a directory laid out like `conf/`.
        cluster: that the strategy is to run on; None: it is not checked.
        report: called with what is counted next.

    Raises:
        ConfigError: naming the key and the nearest valid one.
        DataError: the data cannot be read.
    """
    asked = compose_unresolved(overrides, config_dir)
    checked = check(checkable(resolve(asked)))
    strategy, precision = build(checked["strategy"]), build(checked["precision"])
    if cluster is not None:
        strategy.check(cluster, precision, torch.device("cuda"))
    config = compose_onto(asked, [*_ALONE, f"precision={_ON_CPU.get(precision.name, precision.name)}"], config_dir)
    batch_size = batch_size_of(config)
    if batch_size is None:
        raise ConfigError(
            "recipe.batch_size: this recipe has no such key, so that no step of a few samples can be made"
        )
    if cluster is not None and batch_size < cluster.local_world_size:
        raise ConfigError(
            f"recipe.batch_size={batch_size}: a host has {cluster.local_world_size} ranks, and each needs a sample; "
            f"give a larger batch, or --ranks-per-host"
        )
    recipe = new_recipe(config)
    try:
        engines = {name: _sizes(engine) for name, engine in recipe.engines().items()}
        num_samples, stage = None if recipe.stages() else recipe.num_samples, stage_of(recipe)
    finally:
        recipe.runtime.close()
    few, many = min(_FEWEST, batch_size), min(2 * _FEWEST, batch_size)
    report(f"counting the memory of steps of {few} and {many} samples on this CPU ...")
    least, most = _peak(config, few), _peak(config, many)
    while most == least and many < batch_size:  # the update of the weights takes more than so few samples
        few, many = many, min(2 * many, batch_size)
        report(f"counting that of {many} samples ...")
        least, most = most, _peak(config, many)
    per_sample = (most - least) / (many - few) if many > few else 0.0
    report(f"counting the operations of a step of {few} samples ...")
    counted = compose_onto(config, COUNTED, config_dir)
    return Measured(
        engines=engines,
        strategy=strategy,
        precision=precision.name,
        flops_per_sample=count_flops(with_batch_size(counted, few))["flops_per_sample"],
        bytes_per_sample=per_sample,
        bytes_beside=max(0, round(most - per_sample * many) - sum(sizes.held() for sizes in engines.values())),
        samples=(few, many),
        batch_size=batch_size,
        num_micro_batches=_num_micro_batches(checked),
        num_samples=num_samples,
        stage=stage,
    )


def _sizes(engine: Engine) -> Sizes:
    trained, frozen = engine.state.parameter_sizes()
    return Sizes(trained=tuple(trained), frozen=tuple(frozen), state_tensors=state_tensors(engine.optimizer))


def _peak(config: Mapping[str, Any], num_samples: int) -> int:
    """The most bytes of tensors that are alive in two steps, after the first of which the optimizer has its state."""
    meter = Meter(torch.device("cpu"))
    with meter:
        recipe = new_recipe(with_batch_size(config, num_samples))
        try:
            stages = recipe.stages()
            batches = recipe.dearest_batches_of([*stages][-1]) if stages else recipe.dearest_batches()
            for batch in islice(batches, 2):
                recipe.runtime.stream.visit(batch)
                recipe.train_step(batch)
        finally:
            recipe.runtime.close()
    return meter.peak


def _num_micro_batches(config: Mapping[str, Any]) -> int | None:
    given = configured(config)
    if isinstance(given, Mapping):
        given = given[max(given)] if given else None
    return 1 if given is None else None if given == "auto" else int(given)
