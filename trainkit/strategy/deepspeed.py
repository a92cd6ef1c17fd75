"""DeepSpeed's engine as a Backend, and the map from parameter names to ranges of ZeRO's flat partitions."""

import fcntl
import importlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainkit.distributed.shard import Shard
from trainkit.engine.backend import Backend
from trainkit.engine.sharded_tensors import ShardedTensors, num_bytes
from trainkit.errors import ConfigError, UsageError
from trainkit.optim.pieces import Piece
from trainkit.optim.source import arguments_of
from trainkit.strategy.zero_use import Used


def attach(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    stage: int,
    config: dict[str, Any],
    device: torch.device,
    local_rank: int,
) -> "ZeroBackend":
    """Makes a DeepSpeed engine around `module` and `optimizer`. Collective: every rank must call.

    Args:
        module: on its device.
        optimizer: without state.
        stage: of ZeRO, 1 to 3.
        config: of DeepSpeed.
        device: of this process.
        local_rank: of this process.
    """
    deepspeed = _import_deepspeed(device)
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed asks for it, and one process alone has none
    used = Used(module)  # before DeepSpeed's own hooks
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    kind = _Slices3 if stage == 3 else _Slices12
    if engine.optimizer.optimizer is not optimizer:
        _put_back(optimizer, engine.optimizer, stage)
    return ZeroBackend(kind(engine.optimizer, optimizer, module, frozen), engine, used)


def _put_back(optimizer: torch.optim.Optimizer, zero: Any, stage: int) -> None:
    """Makes DeepSpeed's `zero` use the optimizer that it was given, with first states of its flat partitions.

    It replaces an Adagrad by one of its own, with one group of all parameters, which no scheduler reaches.
    """
    flats = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
    held: list[list[Tensor]] = [[] for _ in optimizer.param_groups]
    for number, flat in enumerate(flats):
        held[zero.sub_group_to_group_id[number] if stage == 3 else number].append(flat)
    groups = [{**group, "params": flats} for group, flats in zip(optimizer.param_groups, held, strict=True)]
    optimizer.state = type(optimizer)(groups, **arguments_of(optimizer)).state
    zero.optimizer = optimizer
    if stage != 3:
        zero._link_all_hp_params()  # it has seen the one group only


class ZeroBackend(Backend):
    """Clipping, the norm and the update are DeepSpeed's; the weights of the mean and the loss scale come from ours."""

    reads_every_step = needs_samples = True

    def __init__(self, slices: "_Slices", engine: Any, used: Used) -> None:
        super().__init__(slices, gradient_divisor=dist.get_world_size())
        self.engine, self.slices = engine, slices
        self.gathers_parameters = isinstance(slices, _Slices3)
        self._used = used

    def begin(self, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.optimizer.override_loss_scale(1.0)
        # The start of a forward pass: gradients of this micro-batch are added to those before it.
        self.engine.optimizer.clear_backward_seen_flag()

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # The second differentiation needs the parameters that the first would free.
        self.slices.hold()
        return super().input_gradient(x, *args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._used.begin()
        self.engine.backward(loss, scale_wrt_gas=False)
        self._used.require_all()
        self.slices.let_go()

    def update(
        self, factor: Tensor | float, max_grad_norm: float | None, *, sums: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, bool]:
        factor = float(factor)  # waits for the device, as DeepSpeed's own check does in any case
        zero = self.engine.optimizer
        # Where all weights are 0 the gradients are zero, and any scale will do.
        zero.override_loss_scale(1.0 / factor if factor > 0 else 1.0)
        zero.clip_grad = max_grad_norm if max_grad_norm is not None else 0.0
        if not self.gradient_bytes:
            self.gradient_bytes = self.slices.gradient_bytes()
        # DeepSpeed skips the step where a gradient is not finite; this is called between the check and the step.
        if gate is not None and not math.isfinite(gate.item()):
            zero._update_scale = lambda has_overflow=False: setattr(zero, "overflow", True)
        try:
            self.engine.step()
        finally:
            zero.__dict__.pop("_update_scale", None)
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, device=self.slices.device), bool(zero.overflow)

    def _follow(self, changed: list[str]) -> None:
        raise UsageError(
            f"requires_grad of {changed[0]!r} was switched after setup, and DeepSpeed has sharded what was trained "
            f"then: set it before setup, on a new module (inherit= takes the weights over by name), or use "
            f"strategy=fsdp"
        )

    def retire(self) -> None:
        self.engine.destroy()


@dataclass(frozen=True)
class _Slice:
    """A range of a flat partition: its [offset, offset + num) are elements [start, start + num) of a parameter."""

    flat: Tensor
    offset: int
    start: int
    num: int
    shape: torch.Size

    def of(self, flat: Tensor, group: dist.ProcessGroup | None) -> Shard:
        return Shard(flat.detach()[self.offset : self.offset + self.num], self.start, self.shape, group)


class _Slices(ShardedTensors):
    """Parameters and state as ranges of ZeRO's flat fp32 partitions. Subclasses read DeepSpeed's private fields."""

    def __init__(
        self, zero: Any, optimizer: torch.optim.Optimizer, module: nn.Module, frozen: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__(module, optimizer)
        self.zero = zero
        self.names = {p: name for name, p in module.named_parameters()}
        self.frozen = frozen
        self.group = dist.group.WORLD if dist.get_world_size() > 1 else None
        self.device = next(module.parameters()).device
        self.slices = dict(self._read())

    def _read(self) -> Iterator[tuple[str, _Slice]]:
        raise NotImplementedError

    def refresh(self) -> None:
        raise NotImplementedError

    def gradient_bytes(self) -> int:
        """The bytes of the gradients that are held between the last backward pass and the step."""
        raise NotImplementedError

    def parameter_bytes(self) -> int:
        """The bytes of the parameters that compute, and of the copy that the optimizer writes to."""
        flats = {id(part.flat): part.flat for part in self.slices.values()}
        return sum(num_bytes(flat) for flat in flats.values()) + sum(self._computing_bytes(p) for p in self.names)

    def _computing_bytes(self, p: nn.Parameter) -> int:
        return num_bytes(p)

    def weights(self) -> dict[str, Shard]:
        shards = {name: part.of(part.flat, self.group) for name, part in self.slices.items()}
        shards |= {name: self._frozen_shard(p) for name, p in self.frozen.items()}
        return {name: shards[name] for name in self.parameters}

    def pieces(self) -> dict[Tensor, list[Piece]]:
        found: dict[Tensor, list[Piece]] = {}
        for name, part in self.slices.items():
            piece = Piece(name, part.start, part.num, part.shape.numel(), part.offset)
            found.setdefault(part.flat, []).append(piece)
        return found

    def hold(self) -> None:
        """Keeps parameters gathered until `let_go`."""

    def let_go(self) -> None:
        """Ends `hold`."""

    def _frozen_shard(self, p: nn.Parameter) -> Shard:
        return Shard.whole(p)

    def optimizer_state(self) -> dict[str, dict[str, Shard]]:
        state: dict[str, dict[str, Shard]] = {}
        for name, part in self.slices.items():
            entry = self.optimizer.state.get(part.flat)
            if entry:
                state[name] = {key: self._shard_of(value, part) for key, value in entry.items()}
        return state

    def _shard_of(self, value: Any, part: _Slice) -> Shard:
        if isinstance(value, Tensor) and value.shape == part.flat.shape:
            return part.of(value, self.group)
        return Shard.whole(torch.as_tensor(value).clone())  # one for all of them, which a checkpoint cannot hold

    @torch.no_grad()
    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Shard]]) -> None:
        flats = {id(part.flat): part.flat for part in self.slices.values()}
        for flat in flats.values():
            members = {name: part for name, part in self.slices.items() if part.flat is flat}
            self.optimizer.state.pop(flat, None)
            if any(name in state for name in members):
                self.optimizer.state[flat] = self._flat_state(flat, members, state)

    def _flat_state(
        self, flat: Tensor, members: Mapping[str, _Slice], state: Mapping[str, Mapping[str, Shard]]
    ) -> dict[str, Any]:
        first = next(name for name in members if name in state)
        entry: dict[str, Any] = {}
        for key, example in state[first].items():
            values = {name: state[name][key] if name in state else None for name in members}
            if example.shape != members[first].shape:
                if any(value is None or not torch.equal(value.local, example.local) for value in values.values()):
                    raise ConfigError(
                        f"optimizer state {key!r} differs between parameters that ZeRO keeps in one flat tensor, such "
                        f"as {first!r} and parameters that were added later; use strategy=fsdp or ddp, or "
                        f"setup(..., inherit_optimizer=False)"
                    )
                entry[key] = example.local.clone()
                continue
            entry[key] = torch.zeros_like(flat)
            for name, value in values.items():
                if value is not None:
                    members[name].of(entry[key], self.group).local.copy_(value.local)
        return entry


class _Slices12(_Slices):
    """ZeRO-1 and 2: a group's parameters are concatenated in a tensor that is cut into equal partitions."""

    def _read(self) -> Iterator[tuple[str, _Slice]]:
        for flat, parameters in zip(self.zero.single_partition_of_fp32_groups, self.zero.bit16_groups, strict=True):
            for p in parameters:
                mapping = p._hp_mapping
                if mapping is None:  # none of it is in this rank's partition
                    yield self.names[p], _Slice(flat, 0, 0, 0, p.shape)
                    continue
                held, own = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
                yield self.names[p], _Slice(flat, held.start, own.start, held.numel, p.shape)

    def refresh(self) -> None:
        self.zero.update_lp_params()

    def gradient_bytes(self) -> int:
        averaged = [g for group in self.zero.averaged_gradients.values() for g in group or () if g is not None]
        return storage_bytes([*averaged, *(p.grad for p in self.names if p.grad is not None)])


class _Slices3(_Slices):
    """ZeRO-3: every parameter is cut into equal partitions, the last of them padded."""

    _HELD = -1  # no submodule has this number
    _is_held = False

    def _read(self) -> Iterator[tuple[str, _Slice]]:
        rank = dist.get_rank()
        for flat, parameters in zip(self.zero.fp32_partitioned_groups_flat, self.zero.fp16_groups, strict=True):
            for p in parameters:
                _, offset, size = self.zero.grad_position[self.zero.get_param_id(p)]
                start = min(rank * size, p.ds_numel)
                yield self.names[p], _Slice(flat, offset, start, min(size, p.ds_numel - start), p.ds_shape)

    def hold(self) -> None:
        if self._is_held:
            return
        self._is_held = True
        parameters = list(self.names)
        parameters[0].all_gather(param_list=parameters)  # type: ignore[attr-defined]
        for p in parameters:
            p.ds_active_sub_modules.add(self._HELD)  # type: ignore[attr-defined]

    def let_go(self) -> None:
        if not self._is_held:
            return
        self._is_held = False
        for p in self.names:
            p.ds_active_sub_modules.discard(self._HELD)  # type: ignore[attr-defined]
        self.zero._partition_all_parameters()

    def _frozen_shard(self, p: nn.Parameter) -> Shard:
        size = p.ds_tensor.numel()  # type: ignore[attr-defined]
        numel, shape = p.ds_numel, p.ds_shape  # type: ignore[attr-defined]
        start = min(dist.get_rank() * size, numel)
        local = p.ds_tensor.detach()[: min(size, numel - start)]  # type: ignore[attr-defined]
        return Shard(local, start, shape, self.group)

    def gradient_bytes(self) -> int:
        return storage_bytes([g for group in self.zero.averaged_gradients.values() for g in group if g is not None])

    def _computing_bytes(self, p: nn.Parameter) -> int:
        # At rest a parameter is its partition, and the small ones are whole beside it.
        return num_bytes(p.ds_tensor) + num_bytes(p)  # type: ignore[attr-defined]

    def refresh(self) -> None:
        zero = self.zero
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def storage_bytes(tensors: list[Tensor]) -> int:
    """The bytes of the storages of `tensors`, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


# -- the library itself ------------------------------------------------------------------------------------------------


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    use_own_build_directory()
    import deepspeed

    _forget_groups_that_ended(deepspeed)
    if not deepspeed.comm.is_initialized():
        # It warns about optimizers that work here, and about skipped steps, which the engine reports.
        logging.getLogger("DeepSpeed").addFilter(
            lambda record: not any(text in record.getMessage() for text in ("untested optimizer", "OVERFLOW!"))
        )
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # Kernels for inference over shared memory: minutes to build, and training never calls them.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
        deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


_last_world: list[Any] = []


def _forget_groups_that_ended(deepspeed: Any) -> None:
    """DeepSpeed keeps its groups in globals, from which a second runtime of this process would take ended ones."""
    if _last_world and _last_world[0] is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None
        for name, value in vars(deepspeed.utils.groups).items():
            if isinstance(value, dist.ProcessGroup):
                setattr(deepspeed.utils.groups, name, None)
    _last_world[:] = [dist.group.WORLD]


_held: list[Any] = []


def use_own_build_directory() -> None:
    """Sets a build directory of trainkit's own for DeepSpeed's extensions, without locks of killed builds.

    torch marks a build with a file `lock`, which a killed process leaves behind and every later one waits for. A
    process that uses the directory holds a file lock on it, which ends with the process: where nobody else holds one,
    marks are stale.
    """
    if _held or "TORCH_EXTENSIONS_DIR" in os.environ:
        return
    root = Path(os.environ.get("TRAINKIT_CACHE") or Path.home() / ".cache" / "trainkit") / "deepspeed"
    for number in range(1000):
        directory = root / f"{torch.__version__}-{number}"
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "in_use").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_SH)
            if any(directory.glob("*/lock")):
                file.close()  # in use by a build, or by processes that continue after one was killed
                continue
        else:
            for mark in directory.glob("*/lock"):
                mark.unlink()
            fcntl.flock(file, fcntl.LOCK_SH)
        _held.append(file)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(directory)
        return
