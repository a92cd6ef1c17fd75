"""Concatenation with bias and activation, and the minibatch standard deviation, against plain PyTorch in float64."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from tests.ops.compared import LOWER, assert_same, assert_threads_do_not_matter, drawn, every_op_fused
from trainkit.errors import ConfigError, UsageError
from trainkit.ops.concat import (
    SLOPES,
    append_minibatch_stddev,
    append_minibatch_stddev_reference,
    concat,
    concat_reference,
)


@pytest.fixture(autouse=True, scope="module")
def _fused():
    with every_op_fused():
        yield


def _joined(f, dim, activation, *inputs, num_parts=None):
    """The first `num_parts` inputs are concatenated; one more is the bias."""
    num = len(inputs) if num_parts is None else num_parts
    return f(inputs[:num], dim, bias=None if num == len(inputs) else inputs[num], activation=activation)


def _parts(shape, dim, sizes):
    return [drawn(*shape[:dim], size, *shape[dim + 1 :], seed=i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [torch.float64, *LOWER])
@pytest.mark.parametrize("activation", list(SLOPES))
@pytest.mark.parametrize(
    ("shape", "dim", "sizes"),
    [
        ((3, 0, 4, 4), 1, (2, 5)),
        ((3, 0, 5), 1, (1, 2, 3, 4, 5, 6, 7, 8)),
        ((0,), 0, (3, 9)),
        ((2, 3, 0), 2, (4, 1)),
        ((0, 3, 2), 0, (2, 0, 1)),
    ],
)
def test_two_orders_equal_the_reference(shape, dim, sizes, activation, dtype):
    parts, bias = _parts(shape, dim, sizes), drawn(sum(sizes), seed=20)
    fused, reference = (partial(_joined, f, dim, activation) for f in (concat, concat_reference))
    assert_same(fused, reference, parts, dtype)
    num = len(parts)
    assert_same(partial(fused, num_parts=num), partial(reference, num_parts=num), [*parts, bias], dtype)


def test_derivatives_by_differences():
    parts = [x.requires_grad_() for x in (drawn(2, 2, 3), drawn(2, 1, 3, seed=1), drawn(3, seed=2))]
    for activation in SLOPES:
        fused = partial(_joined, concat, 1, activation, num_parts=2)
        assert gradcheck(fused, parts) and gradgradcheck(fused, parts)
    x = drawn(4, 2, 2, 1).requires_grad_()
    for group in (1, 2, 4):
        fused = partial(append_minibatch_stddev, group=group)
        # At group=1 the derivatives of the deviation are zero.
        assert gradcheck(fused, x) and gradgradcheck(fused, x)


def test_strides_dtypes_and_edges_of_concat():
    x, y = drawn(2, 3, 4, 5).transpose(1, 3), drawn(2, 7, 4, 3, seed=1)
    bias = drawn(12, seed=2)
    for dim in (1, -3):
        expected = concat_reference([x, y], 1, bias=bias, activation="relu")
        torch.testing.assert_close(concat([x, y], dim, bias=bias, activation="relu"), expected)
    assert concat([x.half(), y.float()], bias=bias, activation="relu").dtype == torch.float32
    assert torch.equal(concat([x, y]), torch.cat([x, y], 1))
    odd = torch.tensor([[torch.nan, torch.inf, -torch.inf, -0.0, 2.0]])
    for activation in SLOPES:
        expected = concat_reference([odd, odd], bias=torch.zeros(10), activation=activation)
        torch.testing.assert_close(
            concat([odd, odd], bias=torch.zeros(10), activation=activation), expected, equal_nan=True
        )
    leaky = partial(_joined, concat, 1, "leaky_relu", num_parts=2)
    assert_threads_do_not_matter(leaky, [drawn(3, 16, 40, 41), drawn(3, 8, 40, 41, seed=1), drawn(24, seed=2)])


@pytest.mark.parametrize("dtype", [torch.float64, *LOWER])
@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (4, 1, 1, 1), (12, 16, 5, 7), (8, 130, 4, 4)])
def test_minibatch_stddev_equals_the_reference_in_two_orders(shape, dtype):
    # Two samples are as far from their mean as their deviation: what is left of the second derivative is rounding.
    for group in (1, 2, 4) if dtype == torch.float64 else (1, 4):
        fused, reference = (
            partial(f, group=group) for f in (append_minibatch_stddev, append_minibatch_stddev_reference)
        )
        assert_same(fused, reference, [drawn(*shape)], dtype)


def test_minibatch_stddev_of_equal_and_of_far_samples():
    x = torch.full((4, 2, 2, 2), 3.0).requires_grad_()
    y = append_minibatch_stddev(x, 4)
    torch.testing.assert_close(y[:, 2], torch.full((4, 2, 2), 1e-4))
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()
    far = 1000.0 + drawn(4, 8, 4, 4)  # the mean is taken off before anything is squared
    torch.testing.assert_close(
        append_minibatch_stddev(far.float(), 4)[:, 8], append_minibatch_stddev(far, 4)[:, 8].float(), rtol=1e-3, atol=0
    )
    empty = torch.empty(0, 2, 4, 4, requires_grad=True)
    assert append_minibatch_stddev(empty, 4).shape == (0, 3, 4, 4)
    assert_threads_do_not_matter(partial(append_minibatch_stddev, group=4), [drawn(16, 8, 4, 4)])


def test_what_cannot_be():
    x = drawn(2, 3, 4)
    for tensors in ([], [x] * 9):
        with pytest.raises(ConfigError, match="it must be 1 to 8"):
            concat(tensors)
    with pytest.raises(ConfigError, match="they must be floats, of equal size in all other dimensions"):
        concat([x, drawn(2, 3, 5)])
    with pytest.raises(ConfigError, match="along dim=3, which does not exist"):
        concat([x, x], 3)
    with pytest.raises(ConfigError, match="the result has 6 elements in dim=1"):
        concat([x, x], bias=drawn(3))
    with pytest.raises(ConfigError, match="it must be one of linear, relu, leaky_relu"):
        concat([x, x], activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="6 samples do not make groups of 4"):
        append_minibatch_stddev(drawn(6, 3, 4, 4), 4)
    with pytest.raises(ConfigError, match="group=0: x must be floats"):
        append_minibatch_stddev(drawn(6, 3, 4, 4), 0)
    wanted = drawn(4, 1, 1, 2).requires_grad_()
    (first,) = torch.autograd.grad(append_minibatch_stddev(wanted, 4).pow(2).sum(), wanted, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), wanted, create_graph=True)
    with pytest.raises(UsageError, match="differentiated twice; for more, use ops=reference"):
        torch.autograd.grad(second.sum(), wanted)


def test_the_ops_are_what_torch_expects():
    ops = torch.ops.trainkit
    x, g = drawn(4, 2, 1, 2).requires_grad_(), drawn(4, 3, 1, 2, seed=1).requires_grad_()
    opcheck(ops.concat.default, ([x, g], 1, drawn(5, seed=2).requires_grad_(), 0.2))
    opcheck(ops.minibatch_stddev.default, (x, 2))
    opcheck(ops.minibatch_stddev_backward.default, (g, x, 2))
    opcheck(ops.minibatch_stddev_backward_backward.default, (x.detach(), g.detach(), x.detach(), 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", LOWER)
def test_a_gpu_computes_the_same(dtype):
    for shape, sizes in (((3, 0, 4, 4), (2, 5)), ((3, 0, 5), (1, 2, 3)), ((2, 0, 64, 64), (16, 32))):
        inputs = [*_parts(shape, 1, sizes), drawn(sum(sizes), seed=20)]
        for activation in SLOPES:
            reference = partial(_joined, concat_reference, 1, activation, num_parts=len(sizes))
            fused = partial(_joined, concat, 1, activation, num_parts=len(sizes))
            assert_same(lambda *xs: fused(*(x.cuda() for x in xs)).cpu(), reference, inputs, dtype)  # noqa: B023
    for shape in ((8, 3, 4, 4), (16, 512, 4, 4), (12, 16, 5, 7)):
        reference = partial(append_minibatch_stddev_reference, group=4)
        assert_same(lambda x: append_minibatch_stddev(x.cuda(), 4).cpu(), reference, [drawn(*shape)], dtype)
