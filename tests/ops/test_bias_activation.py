"""Bias + activation + dropout against plain PyTorch in float64, up to the second derivative."""

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import mode
from trainkit.ops.bias_activation import ACTIVATIONS, bias_activation_dropout, bias_activation_dropout_reference
from trainkit.random import rand

POSITIONS = torch.tensor([3, 2**33 + 5, 7])
KEY = 2**62 + 12345
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-14}
SHAPES = [(3, 5, 7), (3, 2, 4, 64), (3, 1), (3, 1030)]


@pytest.fixture(autouse=True, scope="module")
def _fused():
    mode.use("fused", require=True)
    yield
    mode.use("fused")


def _operands(shape, dtype, bias_dtype=None, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_(), bias.to(device, bias_dtype or dtype).requires_grad_()]


def _oracle(x, bias, activation, p):
    keep = rand(KEY, POSITIONS, x.shape[1:], call=4) >= p
    return ACTIVATIONS[activation](x + bias) * keep / (1 - p)


def _all_orders(function, operands, *others, **kinds):
    """The value, its gradients, and the gradients of what a gradient penalty makes of them."""
    y = function(*operands, *others, **kinds)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y).requires_grad_()
    grads = torch.autograd.grad(y, operands, weights, create_graph=True)
    penalty = sum((g.double() * torch.linspace(-1, 1, g.numel(), device=g.device).view(g.shape)).sum() for g in grads)
    return y, *grads, *torch.autograd.grad(penalty, (*operands, weights), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_derivatives(activation, dtype):
    for shape in SHAPES:
        for p in (0.0, 0.3):
            operands = _operands(shape, dtype)
            exact = [x.detach().double().requires_grad_() for x in operands]
            expected = _all_orders(_oracle, exact, activation, p)
            drawn = {"p": p, "key": KEY, "positions": POSITIONS, "call": 4}
            found = _all_orders(bias_activation_dropout, operands, activation, **drawn)
            for value, truth in zip(found, expected, strict=True):
                assert value.dtype == dtype
                scale = max(1.0, float(truth.detach().abs().max()))
                torch.testing.assert_close(value.double(), truth, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_float_forms_over_all_magnitudes(activation):
    """exp, erf and tanh are polynomials: near 0, at the seams, and where they overflow."""
    sizes = torch.cat([torch.logspace(-30, 1.2, 60000), torch.linspace(0, 16, 60000), torch.tensor([0.0, 50, 89, 200])])
    x = torch.cat([sizes, -sizes]).view(2, -1)
    exact = x.double().requires_grad_()
    truth = ACTIVATIONS[activation](exact)
    (slope,) = torch.autograd.grad(truth.sum(), exact)
    x.requires_grad_()
    value = bias_activation_dropout(x, x.new_zeros(x.shape[-1]), activation)
    (found,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(value.double(), truth.detach(), rtol=1e-6, atol=5e-7)
    torch.testing.assert_close(found.double(), slope, rtol=1e-6, atol=5e-7)
    assert bias_activation_dropout(torch.tensor([[float("nan")]]), torch.zeros(1), activation).isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(activation):
    x, bias = _operands((3, 2, 5), torch.float64)

    def dropped(x, bias):
        return bias_activation_dropout(x, bias, activation, p=0.3, key=KEY, positions=POSITIONS)

    def plain(x):
        return bias_activation_dropout(x, None, activation)

    for function, operands in ((dropped, (x, bias)), (plain, (x,))):
        assert gradcheck(function, operands)
        assert gradgradcheck(function, operands)


def test_a_third_derivative_is_refused():
    x, bias = _operands((3, 5), torch.float64)
    (first,) = torch.autograd.grad(bias_activation_dropout(x, bias, "silu").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="differentiable twice; for a third time use ops=reference"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("positions", [None, POSITIONS])
def test_opcheck(positions):
    x, bias = _operands((3, 2, 5), torch.float64)
    grad, other = torch.randn(3, 2, 5).double().requires_grad_(), torch.randn(3, 2, 5).double()
    ops, drawn = torch.ops.trainkit, (0, 0.3, KEY, positions, 1)
    opcheck(ops.bias_activation, (x, bias, *drawn))
    opcheck(ops.bias_activation, (x, None, *drawn))
    opcheck(ops.bias_activation_backward, (grad, x, bias, *drawn))
    for of_sum in (None, bias.detach()):
        opcheck(ops.bias_activation_second, (other, of_sum, grad.detach(), x.detach(), bias.detach(), *drawn))


def test_the_same_bits_on_any_number_of_threads():
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            drawn = {"p": 0.1, "key": KEY, "positions": POSITIONS}
            found.append(_all_orders(bias_activation_dropout, _operands((3, 700, 96), torch.float32), "gelu", **drawn))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_low_precision_beside_a_float32_bias():
    operands = _operands((3, 5, 64), torch.bfloat16, torch.float32)
    for function in (bias_activation_dropout, bias_activation_dropout_reference):
        y, dx, dbias, *_ = _all_orders(function, operands, "gelu", p=0.3, key=KEY, positions=POSITIONS)
        assert (y.dtype, dx.dtype, dbias.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_any_strides_and_no_elements():
    x, _ = _operands((8, 6, 3), torch.float32)
    turned, bias = x.transpose(0, 2)[:, ::2], torch.randn(16)[::2]
    drawn: dict[str, Any] = {"p": 0.5, "key": KEY, "positions": POSITIONS}
    expected = bias_activation_dropout(turned.contiguous(), bias.contiguous(), "silu", **drawn)
    assert not turned.is_contiguous() and torch.equal(bias_activation_dropout(turned, bias, "silu", **drawn), expected)
    for shape in ((0, 5), (3, 0), (0,)):
        operands = _operands(shape, torch.float32)
        y, dx, dbias, *_ = _all_orders(bias_activation_dropout, operands, "relu")
        assert y.shape == dx.shape == shape and dbias.shape == shape[-1:] and not dbias.any()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.ones(3, 5), torch.ones(4)), r"x \[3, 5\], bias \[4\]; they must be \[..., D\] and \[D\]"),
        ((torch.ones(()), None), r"x \[\], bias None"),
        ((torch.ones(3, 5), None, "gleu"), "activation=gleu: must be one of gelu, .*Did you mean 'gelu'"),
    ],
)
def test_what_cannot_be_is_an_error(arguments, told):
    with pytest.raises(ConfigError, match=told):
        bias_activation_dropout(*arguments)
    with pytest.raises(ConfigError, match="positions are"):
        bias_activation_dropout(torch.ones(2, 5), None, p=0.1, positions=POSITIONS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", list(TOLERANCE)[:3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cuda_computes_what_a_cpu_computes(activation, dtype):
    for shape in (*SHAPES, (3, 400, 768)):
        drawn = {"p": 0.3, "key": KEY, "positions": POSITIONS}
        cpu = _all_orders(bias_activation_dropout, _operands(shape, dtype), activation, **drawn)
        cuda = _all_orders(bias_activation_dropout, _operands(shape, dtype, device="cuda"), activation, **drawn)
        for one, other in zip(cpu, cuda, strict=True):
            scale = max(1.0, float(one.detach().abs().max()))
            torch.testing.assert_close(one, other.cpu(), rtol=0, atol=TOLERANCE[dtype] * scale)
