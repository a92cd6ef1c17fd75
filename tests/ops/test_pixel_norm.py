"""Bias, leaky ReLU, clamp and pixel norm in one op, against plain PyTorch in float64, differentiated twice."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from tests.ops.compared import LOWER, assert_same, assert_threads_do_not_matter, drawn, every_op_fused
from tests.present import present
from trainkit.errors import ConfigError, UsageError
from trainkit.ops.pixel_norm import bias_leaky_relu_pixel_norm, bias_leaky_relu_pixel_norm_reference, pixel_norm

SHAPES = [(2, 7, 4, 6), (3, 1, 5), (1, 16, 40, 41), (2, 130, 3, 3), (5, 6), (2, 3, 2, 2, 3)]
OPTIONS = [
    {},
    {"clamp": 0.71},
    {"norm": False},
    {"norm": False, "clamp": 0.71},
    {"slope": 1.0},
    {"slope": 0.0, "eps": 0.1},
]


@pytest.fixture(autouse=True, scope="module")
def _fused():
    with every_op_fused():
        yield


def _pair(options):
    return partial(bias_leaky_relu_pixel_norm, **options), partial(bias_leaky_relu_pixel_norm_reference, **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_two_orders_equal_the_reference_in_float64(shape, options):
    fused, reference = _pair(options)
    for inputs in ([drawn(*shape)], [drawn(*shape), drawn(shape[1], seed=1)]):
        assert_same(fused, reference, inputs)


@pytest.mark.parametrize("options", OPTIONS)
def test_channels_last_layout_is_kept_with_the_same_numbers(options):
    fused, reference = _pair(options)
    assert_same(
        lambda x, *bias: fused(x.contiguous(memory_format=torch.channels_last), *bias),
        reference,
        [drawn(2, 19, 4, 6), drawn(19, seed=1)],
    )
    y = bias_leaky_relu_pixel_norm(drawn(2, 19, 4, 6).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("options", OPTIONS)
def test_lower_precisions_round_the_same_numbers(dtype, options):
    fused, reference = _pair(options)
    for shape in (shape for shape in SHAPES if shape[1] > 1):  # the norm of one channel is a sign
        for inputs in ([drawn(*shape)], [drawn(*shape), drawn(shape[1], seed=1)]):
            assert_same(fused, reference, inputs, dtype)


def test_threads_do_not_matter():
    for options in OPTIONS:
        assert_threads_do_not_matter(_pair(options)[0], [drawn(3, 16, 40, 41), drawn(16, seed=1)])


def test_large_half_precision_activations_are_normed_in_fp32():
    x = torch.full((1, 4, 2, 2), 30000.0, dtype=torch.float16)
    assert torch.equal(pixel_norm(x), torch.ones_like(x))
    assert torch.equal(bias_leaky_relu_pixel_norm(x * 4, clamp=256.0, norm=False), torch.full_like(x, 256.0))


def test_derivatives_by_differences():
    x, bias = drawn(2, 3, 2, 3).requires_grad_(), drawn(3, seed=1).requires_grad_()
    for options in OPTIONS:
        fused, _ = _pair(options)
        assert gradcheck(fused, (x, bias)) and gradgradcheck(fused, (x, bias))


def test_the_norm_of_latents_and_of_maps_is_one():
    for shape in ((4, 8), (4, 8, 3, 3)):
        y = pixel_norm(7 * drawn(*shape))
        torch.testing.assert_close(y.square().mean(dim=1), torch.ones_like(y[:, 0]))


def test_strides_and_empty_inputs():
    x = drawn(2, 4, 6, 3)
    for view in (x.transpose(1, 3), x.to(memory_format=torch.channels_last), x[:, ::2], x[:, :, 1:]):
        torch.testing.assert_close(
            pixel_norm(view), bias_leaky_relu_pixel_norm_reference(view, slope=1.0), rtol=1e-12, atol=1e-12
        )
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        empty, bias = torch.empty(shape, requires_grad=True), torch.zeros(3, requires_grad=True)
        for norm in (True, False):
            y = bias_leaky_relu_pixel_norm(empty, bias, norm=norm)
            grads = torch.autograd.grad(y.sum(), (empty, bias))
            assert y.shape == grads[0].shape == shape and torch.equal(grads[1], torch.zeros(3))


def test_a_nan_stays_in_its_pixel():
    x = drawn(2, 3, 4, 4)
    x[1, 2, 3, 0] = torch.nan
    y = bias_leaky_relu_pixel_norm(x, clamp=0.5)
    assert torch.equal(y.isnan().nonzero(), torch.tensor([[1, c, 3, 0] for c in range(3)]))
    assert int(bias_leaky_relu_pixel_norm(x, clamp=0.5, norm=False).isnan().sum()) == 1


def test_a_bias_of_another_dtype():
    """As under autocast: parameters stay fp32."""
    x, bias = drawn(2, 3, 4, 4).to(torch.bfloat16), drawn(3, seed=1).float().requires_grad_()
    y = bias_leaky_relu_pixel_norm(x, bias, norm=False)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and present(bias.grad).dtype == torch.float32
    expected = torch.nn.functional.leaky_relu(x.float() + bias.detach().view(3, 1, 1), 0.2).to(torch.bfloat16)
    assert torch.equal(y, expected)


def test_what_cannot_be():
    for x, bias in ((drawn(3), None), (drawn(2, 3, 4), drawn(4)), (torch.ones(2, 3, dtype=torch.int64), None)):
        with pytest.raises(ConfigError, match=r"they must be floats \[B, C, \.\.\.\] and \[C\]"):
            bias_leaky_relu_pixel_norm(x, bias)
    outside: list[dict[str, Any]] = [{"slope": 1.5}, {"slope": -0.1}, {"clamp": 0.0}, {"clamp": float("nan")}]
    for options in outside:
        with pytest.raises(ConfigError, match="they must be 0 <= slope <= 1 and clamp > 0"):
            bias_leaky_relu_pixel_norm(drawn(2, 3, 4), **options)


def test_a_third_derivative_is_refused():
    x = drawn(2, 3, 4).requires_grad_()
    (first,) = torch.autograd.grad(pixel_norm(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(UsageError, match="differentiated twice; for more, use ops=reference"):
        torch.autograd.grad(second.pow(2).sum(), x)


def test_the_ops_are_what_torch_expects():
    ops = torch.ops.trainkit
    x, bias = drawn(2, 3, 4).requires_grad_(), drawn(3, seed=1).requires_grad_()
    g, v = drawn(2, 3, 4, seed=2).requires_grad_(), drawn(2, 3, 4, seed=3)
    opcheck(ops.pixel_norm.default, (x, bias, 0.2, 0.7, 1e-8))
    opcheck(ops.pixel_norm_backward.default, (g, x, bias, 0.2, None, 1e-8))
    opcheck(ops.pixel_norm_backward_backward.default, (v, g.detach(), x.detach(), None, 0.2, 0.7, 1e-8))
    opcheck(ops.bias_leaky_relu.default, (x, bias, 0.2, 0.7))
    opcheck(ops.bias_leaky_relu_backward.default, (g, x, bias, 0.2, 0.7))


def test_a_compiler_takes_it():
    def layer(x, bias):
        return bias_leaky_relu_pixel_norm(x * 2.0, bias).sum()

    x, bias = drawn(2, 3, 4).requires_grad_(), drawn(3, seed=1).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x, bias), (x, bias))
    expected = torch.autograd.grad(layer(x, bias), (x, bias))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("options", OPTIONS)
def test_a_gpu_computes_the_same(dtype, options):
    fused, reference = _pair(options)
    for shape in ((2, 7, 4, 6), (1, 16, 40, 41), (5, 6), (2, 512, 8, 8), (2, 16, 64, 64)):
        inputs = [drawn(*shape), drawn(shape[1], seed=1)]
        assert_same(lambda *xs: fused(*(x.cuda() for x in xs)).cpu(), reference, inputs, dtype)
