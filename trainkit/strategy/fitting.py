"""Checks that a module and its optimizer fit a strategy, and converts their dtypes."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from trainkit.distributed.shard import STORABLE
from trainkit.errors import ConfigError
from trainkit.optim.multi import MultiOptimizer
from trainkit.optim.pieces import PiecewiseOptimizer
from trainkit.optim.source import OptimizerSource, arguments_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_NUM_STEPS = 2  # of a trial: the second one has the state that the first has left
_CLOSE = 1e-5
_TRIAL_LR = 1e-2


def convert(module: nn.Module, device: torch.device, dtype: torch.dtype, *, name: str) -> str | None:
    """Moves `module` to `device` and converts floating-point tensors of 16, 32 and 64 bits to `dtype`, in place.

    Complex tensors become the complex dtype of the same precision; 8-bit floats and integers stay. Expanded tensors are
    copied, since nothing can be read into elements that share memory.

    Args:
        module: of an engine.
        device: of this process.
        dtype: float32 or float64.
        name: of the engine, for messages.

    Returns:
        A line that names the tensors whose dtype changed; None where none did.

    Raises:
        ConfigError: before anything is changed, for a parameter or persistent buffer that no checkpoint can hold, and
            for sparse gradients.
    """
    _require_dense_gradients(module, name)
    before = dict(_named_tensors(module))
    for key, tensor in before.items():
        becomes = _dtype_of(tensor, dtype)
        if becomes not in STORABLE or tensor.layout != torch.strided:
            kind = becomes if tensor.layout == torch.strided else tensor.layout
            raise ConfigError(
                f"{key!r} of engine {name!r} is {kind}, which a checkpoint cannot hold: store it as another dtype, or "
                f"register the buffer with persistent=False"
            )
    was = {key: tensor.dtype for key, tensor in before.items()}
    module.to(device)
    module._apply(lambda tensor: _unexpanded(tensor.to(_dtype_of(tensor, dtype))))
    changed = [f"{key} ({was[key]})" for key, tensor in _named_tensors(module) if tensor.dtype != was[key]]
    if not changed:
        return None
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"{name}: stored as {dtype} from here on: {', '.join(changed[:3])}{more}"


def require_shapes(module: nn.Module, *, name: str) -> None:
    """Requires that every parameter and buffer of `module` has a shape.

    Raises:
        ConfigError: for those of a lazy layer that has not been called.
    """
    for key, tensor in _named_tensors(module):
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(
                f"{key!r} of engine {name!r} has no shape yet: call the module once on an example before setup()"
            )


def _require_dense_gradients(module: nn.Module, name: str) -> None:
    for path, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse and part.weight.requires_grad:
            key = f"{path}.weight".lstrip(".")
            raise ConfigError(
                f"{key!r} of engine {name!r} has sparse gradients, and an engine's are dense: make the embedding with "
                f"sparse=False, and use torch.optim.Adam in the place of SparseAdam"
            )


def _unexpanded(tensor: Tensor) -> Tensor:
    shares = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.clone(memory_format=torch.contiguous_format) if shares else tensor


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True)
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)


def _dtype_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return _COMPLEX[dtype]
    return dtype if tensor.is_floating_point() and tensor.element_size() > 1 else tensor.dtype


def require_shardable(module: nn.Module, strategy: str, units: Sequence[nn.Module] = ()) -> None:
    """Makes the parameters of `module` contiguous, as sharding requires.

    Args:
        module: of an engine.
        strategy: its name, for messages.
        units: the parts that are sharded each by itself.

    Raises:
        ConfigError: naming a parameter that cannot be sharded.
    """
    for name, p in module.named_parameters():
        if p.is_complex():
            raise ConfigError(
                f"strategy={strategy} cannot shard {name!r}, which is {p.dtype}: keep its real and imaginary parts as "
                f"two parameters, or use strategy=ddp"
            )
        if p.ndim == 0:
            raise ConfigError(
                f"strategy={strategy} cannot shard {name!r}, which has no dimension: give it the shape [1], or use "
                f"strategy=ddp"
            )
        # Ranges are of row-major order; channels_last lives on in the activations.
        p.data = p.data.contiguous()
    _require_one_unit_each(module, strategy, units)


def _require_one_unit_each(module: nn.Module, strategy: str, units: Sequence[nn.Module]) -> None:
    unit_of: dict[nn.Module, nn.Module | None] = {}
    for unit in units:  # outer ones first
        for part in unit.modules():
            unit_of[part] = unit
    seen: dict[nn.Parameter, tuple[nn.Module | None, str]] = {}
    for path, part in module.named_modules():
        for key, p in part.named_parameters(path, recurse=False):
            here = unit_of.get(part)
            there, first = seen.setdefault(p, (here, key))
            if there is not here:
                raise ConfigError(
                    f"strategy={strategy} shards blocks one at a time, and {first!r} and {key!r} are one parameter in "
                    f"two of them: set strategy.per_block=false, leave that class out of blocks=, or use strategy=ddp"
                )


def require_dense_step(optimizer: torch.optim.Optimizer) -> None:
    """Requires an optimizer that makes a step from one dense gradient.

    Raises:
        ConfigError: for one that evaluates the loss itself, such as LBFGS, or takes sparse gradients.
    """
    for part in _parts_of(optimizer):
        if isinstance(part, torch.optim.SparseAdam):
            raise ConfigError(
                "optimizer SparseAdam takes sparse gradients alone, and an engine's are dense: use torch.optim.Adam"
            )
        closure = inspect.signature(part.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"optimizer {type(part).__name__} evaluates the loss several times in a step, and an engine's step "
                f"has one gradient: use another optimizer, such as torch.optim.AdamW"
            )


def _parts_of(optimizer: torch.optim.Optimizer) -> Sequence[torch.optim.Optimizer]:
    return optimizer.optimizers if isinstance(optimizer, MultiOptimizer) else (optimizer,)


def require_elementwise(
    source: OptimizerSource, strategy: str, device: torch.device, mesh: "DeviceMesh | None" = None
) -> None:
    """Requires an optimizer whose steps on shards of parameters equal those on whole parameters.

    It is run on a matrix of random numbers and on shards of it: rows of a DTensor over `mesh`, or else flat ranges. A
    class attribute `acts_elementwise` of True or False is believed instead, and trainkit's own optimizers are given
    what their shards belong to. Collective with a `mesh`.

    Args:
        source: makes the optimizer.
        strategy: its name, for messages.
        device: where it is run.
        mesh: with a dimension named `shard`.

    Raises:
        ConfigError: where the steps differ.
    """
    optimizer = source.example()
    require_dense_step(optimizer)
    for part in _parts_of(optimizer):
        _require_elementwise(part, strategy, device, mesh)


def _require_elementwise(
    optimizer: torch.optim.Optimizer, strategy: str, device: torch.device, mesh: "DeviceMesh | None"
) -> None:
    kind = type(optimizer)
    known = getattr(optimizer, "acts_elementwise", None)
    if known or isinstance(optimizer, PiecewiseOptimizer) or hasattr(optimizer, "needs_whole_parameters"):
        return
    if kind.__module__.startswith("deepspeed."):
        return
    reason = "its class says so"
    if known is None:
        try:
            reason = _difference(lambda parameters: _another(optimizer, parameters), device, mesh)
        except Exception as error:  # whatever an optimizer raises for shards, it cannot be used with them
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    if reason:
        raise ConfigError(
            f"strategy={strategy} gives an optimizer shards of parameters, and {kind.__name__} does not update "
            f"each element independently ({reason}): use strategy=ddp, or an optimizer such as torch.optim.AdamW; set "
            f"acts_elementwise = True in a class of your own that does"
        )


def _another(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind, arguments = type(optimizer), arguments_of(optimizer)
    if "lr" in arguments and float(arguments["lr"]) == 0.0:  # it warms up from there, and nothing would move
        arguments["lr"] = _TRIAL_LR
    return kind(parameters, **arguments)


def _difference(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], device: torch.device, mesh: "DeviceMesh | None"
) -> str:
    generator = torch.Generator().manual_seed(0)
    num_rows = 4 * (mesh["shard"].size() if mesh is not None else 1)
    start, *gradients = (torch.randn(num_rows, 5, generator=generator).to(device) for _ in range(1 + _NUM_STEPS))
    whole = nn.Parameter(start.clone())
    _step(make([whole]), [whole], [[gradient] for gradient in gradients])
    if mesh is not None:
        sharded = nn.Parameter(_spread(start, mesh))
        _step(make([sharded]), [sharded], [[_spread(gradient, mesh)] for gradient in gradients])
        found = cast("DTensor", sharded).full_tensor()
    else:
        cut = 7  # in the middle of a row
        parts = [nn.Parameter(part.clone()) for part in start.flatten().split([cut, start.numel() - cut])]
        ranges = [list(gradient.flatten().split([cut, start.numel() - cut])) for gradient in gradients]
        _step(make(parts), parts, ranges)
        found = torch.cat([part.detach() for part in parts]).view_as(start)
    far = float((found - whole).detach().abs().max() / (whole - start).detach().abs().max())
    return "" if far < _CLOSE else f"tried on a matrix, its steps differ by {far:.0%}"


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for of_step in gradients:
        for p, gradient in zip(parameters, of_step, strict=True):
            p.grad = gradient.clone()
        optimizer.step()


def _spread(tensor: Tensor, mesh: "DeviceMesh") -> "DTensor":
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor, mesh["shard"], [Shard(0)])
