"""Fused ops beside their references in plain PyTorch, up to the second derivative."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from trainkit.ops import mode

LOWER = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def every_op_fused() -> Iterator[None]:
    """Also those that are off by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "OFF_BY_DEFAULT", {})
        mode.use("fused", require=True)
        yield
    mode.use("fused")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(
    fused: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype = torch.float64,
    roundings: float = 16.0,
) -> None:
    """`fused` in `dtype` against `reference` in float64 of the same numbers: to 1e-10, or to so many roundings."""
    inputs = [x.to(dtype) for x in inputs]
    found = derivatives(fused, inputs, dtype)
    expected = derivatives(reference, [x.double() for x in inputs], dtype)
    relative = 1e-10 if dtype == torch.float64 else roundings * torch.finfo(dtype).eps
    for x, wide in zip(found, expected, strict=True):
        assert x.dtype == dtype
        scale = max(1.0, float(wide.abs().max()) if wide.numel() else 0.0)
        torch.testing.assert_close(x.double(), wide, rtol=0.0, atol=relative * scale)


def derivatives(f: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """f, its gradients for a drawn g, and the gradients of <first gradients, drawn v> in g and the inputs.

    g and v are numbers that `dtype` has, and depend on the shapes alone.
    """

    def from_above(like: Tensor, seed: int) -> Tensor:
        return drawn(*like.shape, seed=seed).to(dtype).to(like.dtype)

    inputs = [x.detach().requires_grad_() for x in inputs]
    y = f(*inputs)
    g = from_above(y, 11).requires_grad_()
    first = torch.autograd.grad(y, inputs, g, create_graph=True)
    v = [from_above(x, 12 + i) for i, x in enumerate(first)]
    second = torch.autograd.grad(first, [g, *inputs], v, allow_unused=True)
    # Where the first derivative does not depend on an input, some say so with None and some with zeros.
    filled = [torch.zeros_like(x) if d is None else d for x, d in zip([g, *inputs], second, strict=True)]
    return [y.detach(), *(d.detach() for d in first), *filled]


def assert_threads_do_not_matter(f: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    num = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(f, inputs))
    finally:
        torch.set_num_threads(num)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
