"""Packing: rows without padding, and their restoration. Each direction is the adjoint of the other."""

from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError
from trainkit.ops import library, mode


def unpad(x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """Selects the rows that are attended to.

    Differentiable any number of times in x. On CUDA it waits for the device, since the number of rows depends on data.

    Args:
        x: [B, T, ...], of any dtype.
        attended: bool [B, T].

    Returns:
        The rows, [num, ...], and their ascending indices into B * T, int64 [num].

    Raises:
        ConfigError: for shapes that do not match.

    Example:
        >>> unpad(torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([[True, True, False], [True, False, False]]))
        (tensor([1, 2, 3]), tensor([0, 1, 3]))
    """
    if attended.dtype != torch.bool or attended.dim() != 2 or x.shape[:2] != attended.shape:
        raise ConfigError(
            f"unpad of x {list(x.shape)} by {attended.dtype} {list(attended.shape)}: they must be [B, T, ...] and "
            f"torch.bool [B, T]"
        )
    indices = attended.flatten().nonzero().squeeze(1)
    return gather_rows(x.flatten(0, 1), indices), indices


def pad(packed: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    """Restores the padded shape of rows, with zeros elsewhere.

    Differentiable any number of times in `packed`.

    Args:
        packed: [num, ...].
        indices: int64 [num], distinct, as returned by `unpad`.
        batch: B.
        length: T.

    Returns:
        [B, T, ...].

    Raises:
        ConfigError: for shapes that do not match.
        RuntimeError: on the CPU, for indices that repeat or are out of range; on CUDA, where an error would wait for
            the device, rows out of range are left out.

    Example:
        >>> pad(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]), batch=2, length=3)
        tensor([[1, 2, 0],
                [3, 0, 0]])
    """
    return scatter_rows(packed, indices, batch * length).unflatten(0, (batch, length))


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Selects rows: x[indices], the adjoint of `scatter_rows`.

    Args:
        x: [M, ...].
        indices: int64 [num], distinct.

    Returns:
        [num, ...].

    Raises:
        ConfigError: for shapes, dtypes or devices that do not match.
    """
    _check(x, indices, "gather_rows")
    if mode.is_fused("packing", x):
        gathered: Tensor = torch.ops.trainkit.gather_rows(x.contiguous(), indices.contiguous())
        return gathered
    return gather_rows_reference(x, indices)


def scatter_rows(x: Tensor, indices: Tensor, num_rows: int) -> Tensor:
    """Places row i of x at indices[i], with zeros elsewhere; the adjoint of `gather_rows`.

    Args:
        x: [num, ...].
        indices: int64 [num], distinct.
        num_rows: rows of the result.

    Returns:
        [num_rows, ...].

    Raises:
        ConfigError: for shapes, dtypes or devices that do not match.
    """
    _check(x, indices, "scatter_rows")
    if len(x) != len(indices):
        raise ConfigError(f"scatter_rows of {len(x)} rows by {len(indices)} indices: there must be one index per row")
    if mode.is_fused("packing", x):
        scattered: Tensor = torch.ops.trainkit.scatter_rows(x.contiguous(), indices.contiguous(), num_rows)
        return scattered
    return scatter_rows_reference(x, indices, num_rows)


def gather_rows_reference(x: Tensor, indices: Tensor) -> Tensor:
    """`gather_rows` in plain PyTorch."""
    return x.index_select(0, indices)


def scatter_rows_reference(x: Tensor, indices: Tensor, num_rows: int) -> Tensor:
    """`scatter_rows` in plain PyTorch."""
    return x.new_zeros((num_rows, *x.shape[1:])).index_copy(0, indices, x)


def _check(x: Tensor, indices: Tensor, name: str) -> None:
    if x.dim() < 1 or indices.dim() != 1 or indices.dtype != torch.int64 or indices.device != x.device:
        raise ConfigError(
            f"{name} of {list(x.shape)} on {x.device} by {indices.dtype} {list(indices.shape)} on {indices.device}: "
            f"they must be [M, ...] and torch.int64 [num], on one device"
        )


@library.on_load
def _register() -> None:
    def gathered(x: Tensor, indices: Tensor) -> Tensor:
        return x.new_empty((indices.shape[0], *x.shape[1:]))

    def scattered(x: Tensor, indices: Tensor, num_rows: int) -> Tensor:
        return x.new_empty((num_rows, *x.shape[1:]))

    torch.library.register_fake("trainkit::gather_rows", gathered)
    torch.library.register_fake("trainkit::scatter_rows", scattered)
    torch.library.register_autograd("trainkit::gather_rows", _gather_backward, setup_context=_save_gather)
    torch.library.register_autograd("trainkit::scatter_rows", _scatter_backward, setup_context=_save_scatter)


def _save_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices = inputs
    ctx.num_rows = x.shape[0]
    ctx.save_for_backward(indices)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.trainkit.scatter_rows(grad.contiguous(), ctx.saved_tensors[0], ctx.num_rows), None


def _save_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.trainkit.gather_rows(grad.contiguous(), ctx.saved_tensors[0]), None, None
