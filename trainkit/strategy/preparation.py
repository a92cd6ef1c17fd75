"""Preparation: makes the backend of an engine, from a module and an optimizer as a user gives them."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainkit.distributed.ranks import Ranks
from trainkit.engine.backend import Backend
from trainkit.engine.learning_rates import ScheduleFunction
from trainkit.errors import ConfigError
from trainkit.modules.blocks import Checkpointed, compile_blocks
from trainkit.optim.ema import check_decay
from trainkit.optim.schedule import Schedule
from trainkit.optim.source import OptimizerFactory, OptimizerSource
from trainkit.precision import Fp32Modules, Precision
from trainkit.strategy.base import Strategy
from trainkit.strategy.fitting import convert, require_dense_step, require_shapes


class Preparation:
    """Converts modules to the run's device and precision, and has the strategy distribute them.

    Args:
        strategy: of the run.
        ranks: the processes of the run.
        device: of this process.
        precision: of the run.
        compile: whether blocks are compiled.
        activation_checkpointing: names of the classes that are checkpointed.
        deterministic: whether repeated runs must give the same bits.
        report: called with a line on dtypes that were converted.
    """

    def __init__(
        self,
        strategy: Strategy,
        ranks: Ranks,
        device: torch.device,
        *,
        precision: Precision,
        compile: bool,
        activation_checkpointing: Sequence[str],
        deterministic: bool,
        report: Callable[[str], None],
    ) -> None:
        self._strategy, self._ranks, self._device, self._dtype = strategy, ranks, device, precision.dtype
        self._fp32_modules, self._checkpointed = Fp32Modules(precision), Checkpointed(activation_checkpointing)
        self._compile, self._deterministic, self._report = compile, deterministic, report

    def backend(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | OptimizerFactory,
        blocks: Sequence[type[nn.Module]],
        *,
        name: str,
    ) -> Backend:
        """Prepares a module, in place, and distributes it. Collective: every rank must call.

        Args:
            module: whose parameters are trained.
            optimizer: an instance without state, or a function of parameter groups that makes one.
            blocks: classes of the module's repeated parts.
            name: of the engine.

        Raises:
            ConfigError: for a module or an optimizer that cannot be run, or that differs between ranks.
        """
        require_shapes(module, name=name)
        self._ranks.require_same(
            {f"{name}.{key}": [*p.shape, p.dtype, p.requires_grad] for key, p in module.named_parameters()}
        )
        if (converted := convert(module, self._device, self._dtype, name=name)) is not None:
            self._report(converted)
        self._fp32_modules.apply(module)
        if self._compile:
            compile_blocks(module, blocks)
        self._checkpointed.apply(module)
        backend = self._strategy.attach(
            module,
            OptimizerSource(module, optimizer, engine_name=name),
            cluster=self._ranks.cluster,
            device=self._device,
            deterministic=self._deterministic,
            blocks=blocks,
        )
        require_dense_step(backend.optimizer)
        self._ranks.require_same(
            {
                f"optimizer.{key} of group {number} of {name}": value
                for number, group in enumerate(backend.optimizer.param_groups)
                for key, value in group.items()
                if key != "params" and not callable(value)  # a function prints its address
            }
        )
        return backend

    def require_fp32_modules_found(self) -> None:
        """Raises ConfigError for a name in `precision.fp32_modules` that no module has."""
        self._fp32_modules.require_all_found()

    def require_all_found(self) -> None:
        """Raises ConfigError for a configured name of a part that no module has."""
        self._checkpointed.require_all_found()
        self.require_fp32_modules_found()


def check_step(
    *,
    max_grad_norm: float | None,
    schedule: ScheduleFunction | None,
    ema_decay: float | None,
    grad_accumulation_steps: int,
) -> None:
    """Checks what `Runtime.setup` is given about the steps of an engine.

    Raises:
        ConfigError: naming the argument, its value and what it must be.
    """
    if grad_accumulation_steps < 1:
        raise ConfigError(f"grad_accumulation_steps={grad_accumulation_steps}: must be 1 or more")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm={max_grad_norm}: must be a norm above 0, or null for no clipping")
    if ema_decay is not None:
        check_decay(ema_decay)
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
