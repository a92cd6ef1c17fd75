"""Dropout + residual + LayerNorm against plain PyTorch in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from trainkit.errors import ConfigError
from trainkit.ops import mode
from trainkit.ops.layer_norm import dropout_residual_layer_norm, dropout_residual_layer_norm_reference
from trainkit.random import rand

POSITIONS = torch.tensor([3, 2**33 + 5, 7])
KEY = 2**62 + 12345
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-12}
SHAPES = [(3, 5, 7), (3, 2, 4, 64), (3, 1), (3, 1025), (3, 1, 2050)]


@pytest.fixture(autouse=True, scope="module")
def _fused():
    mode.use("fused", require=True)
    yield
    mode.use("fused")


def _operands(shape, dtype, param_dtype=None, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, shape, shape[-1:], shape[-1:])
    dtypes = (dtype, dtype, param_dtype or dtype, param_dtype or dtype)
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [x.to(device, dtype).requires_grad_() for x, dtype in zip(drawn, dtypes, strict=True)]


def _oracle(x, residual, weight, bias, p, eps):
    """Written out in float64."""
    keep = rand(KEY, POSITIONS, x.shape[1:], call=4) >= p
    summed = residual + x * keep / (1 - p)
    centred = summed - summed.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias, summed


def _both(function, operands, p, eps=1e-5, **others):
    normed, summed = function(*operands, p=p, eps=eps, **others)
    weights = torch.linspace(-1, 1, normed.numel(), dtype=torch.float64).view(normed.shape).to(normed)
    grads = torch.autograd.grad((normed * weights).sum() + (summed * weights.flip(0)).sum(), operands)
    return normed, summed, *grads


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_values_and_gradients(shape, dtype, p):
    operands = _operands(shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in operands]
    eps = 1e-5 if shape[-1] > 1 else 0.1  # a row of one has no variance
    expected = _both(_oracle, exact, p, eps)
    for function in (dropout_residual_layer_norm, dropout_residual_layer_norm_reference):
        found = _both(function, operands, p, eps, key=KEY, positions=POSITIONS, call=4)
        for value, truth in zip(found, expected, strict=True):
            scale = max(1.0, float(truth.detach().abs().max()))
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), truth, rtol=0, atol=TOLERANCE[dtype] * scale)


def test_without_dropout_it_is_torchs_layer_norm():
    x, residual, weight, bias = _operands((4, 6, 32), torch.float32)
    normed, summed = dropout_residual_layer_norm(x, residual, weight, bias, eps=1e-12)
    assert torch.equal(summed, x + residual)
    torch.testing.assert_close(normed, F.layer_norm(x + residual, (32,), weight, bias, 1e-12), rtol=0, atol=2e-6)


@pytest.mark.parametrize("function", [dropout_residual_layer_norm, dropout_residual_layer_norm_reference])
def test_no_bias_is_a_bias_of_zero(function):
    x, residual, weight, _ = _operands((3, 6, 32), torch.float32)
    settings = {"eps": 1e-5, "p": 0.3, "key": KEY, "positions": POSITIONS}
    outputs = [function(x, residual, weight, bias, **settings) for bias in (None, torch.zeros(32))]
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    grads = [torch.autograd.grad(normed.square().sum(), (x, residual, weight)) for normed, _ in outputs]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_derivatives(p):
    operands = _operands((3, 2, 5), torch.float64)

    def both(*operands):
        return dropout_residual_layer_norm(*operands, eps=1e-5, p=p, key=KEY, positions=POSITIONS)

    def normed_only(*operands):
        return both(*operands)[0]

    for function in (both, normed_only):
        assert gradcheck(function, operands)
        assert gradgradcheck(function, operands)


def test_second_order_equals_the_references():
    found = []
    for function in (dropout_residual_layer_norm, dropout_residual_layer_norm_reference):
        operands = _operands((3, 4, 16), torch.float64)
        normed, _ = function(*operands, eps=1e-5, p=0.3, key=KEY, positions=POSITIONS)
        (gradient,) = torch.autograd.grad((normed**3).sum(), operands[0], create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), operands))
    for fused, reference in zip(*found, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-10 * float(reference.abs().max()))


@pytest.mark.parametrize("positions", [None, POSITIONS])
def test_opcheck(positions):
    x, residual, weight, bias = _operands((3, 2, 5), torch.float64)
    opcheck(torch.ops.trainkit.dropout_residual_layer_norm, (x, residual, weight, bias, 1e-5, 0.3, KEY, positions, 0))
    others = torch.randn(3, 2, 5, dtype=torch.float64), torch.zeros(6).double(), torch.ones(6).double()
    arguments = (x.detach(), residual.detach(), *others, weight.detach(), 0.3, KEY, positions, 0)
    opcheck(torch.ops.trainkit.dropout_residual_layer_norm_backward, arguments)


def test_the_same_bits_on_any_number_of_threads():
    operands = _operands((3, 700, 96), torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            found.append(_both(dropout_residual_layer_norm, operands, 0.1, key=KEY, positions=POSITIONS))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_low_precision_rows_with_float32_parameters_in_autocast():
    operands = _operands((3, 5, 64), torch.bfloat16, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in operands]
    with torch.autocast("cpu", torch.bfloat16):
        found = _both(dropout_residual_layer_norm, operands, 0.3, key=KEY, positions=POSITIONS, call=4)
        mixed = dropout_residual_layer_norm(operands[0], operands[1].float(), *operands[2:], eps=1e-5)
    assert [x.dtype for x in found] == [torch.bfloat16] * 4 + [torch.float32] * 2
    assert mixed[0].dtype == mixed[1].dtype == torch.float32  # a residual stream keeps its precision
    for value, truth in zip(found, _both(_oracle, exact, 0.3), strict=True):
        torch.testing.assert_close(
            value.double(), truth, rtol=0, atol=3e-2 * max(1.0, float(truth.detach().abs().max()))
        )


def test_any_strides_and_no_elements():
    x, residual, weight, bias = _operands((8, 6, 3), torch.float64)
    x, residual = (part.transpose(0, 2)[:, ::2] for part in (x, residual))
    weight, bias = weight.new_ones(16)[::2], bias.new_zeros(16)[::2]
    drawn: dict[str, Any] = {"eps": 1e-5, "p": 0.5, "key": KEY, "positions": POSITIONS}
    found = dropout_residual_layer_norm(x, residual, weight, bias, **drawn)
    flat = [x.contiguous() for x in (x, residual, weight, bias)]
    expected = dropout_residual_layer_norm(*flat, **drawn)
    assert not x.is_contiguous() and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    empty = _operands((0, 4, 5), torch.float32)
    normed, summed = dropout_residual_layer_norm(*empty, eps=1e-5, p=0.5, key=KEY, positions=POSITIONS[:0])
    grads = torch.autograd.grad(normed.sum() + summed.sum(), empty)
    assert normed.shape == grads[0].shape == (0, 4, 5) and not grads[2].any() and not grads[3].any()


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_shapes_that_do_not_fit_are_errors(wrong):
    operands = _operands((3, 2, 5), torch.float32)
    operands[wrong] = operands[wrong].detach()[..., :4]
    with pytest.raises(ConfigError, match=r"they must be \[N, ..., D\], the same, \[D\] and \[D\]"):
        dropout_residual_layer_norm(*operands, eps=1e-5)
    with pytest.raises(ConfigError, match="positions are"):
        dropout_residual_layer_norm(*_operands((2, 5), torch.float32), eps=1e-5, p=0.1, positions=POSITIONS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", list(TOLERANCE)[:3])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 40, 768), (3, 4, 3072), (3, 2, 16384)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_cuda_computes_what_a_cpu_computes(shape, dtype, p):
    kinds = {"p": p, "eps": 0.1, "key": KEY, "positions": POSITIONS}
    cpu = _both(dropout_residual_layer_norm, _operands(shape, dtype), **kinds)
    cuda = _both(dropout_residual_layer_norm, _operands(shape, dtype, device="cuda"), **kinds)
    for one, other in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(
            one, other.cpu(), rtol=0, atol=TOLERANCE[dtype] * max(1.0, float(one.detach().abs().max()))
        )
