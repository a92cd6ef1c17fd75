"""Convolutions by Winograd's algorithm and by matrix products, against torch's in float64, differentiated twice."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from tests.ops.compared import assert_same, drawn, every_op_fused
from trainkit.errors import ConfigError
from trainkit.ops import convolution as convolve
from trainkit.ops import convolves_fast, mode

CASES = [  # (B, C, H, W), D, K, doubled
    ((2, 16, 8, 12), 19, 3, False),
    ((1, 33, 16, 8), 16, 3, False),
    ((2, 17, 8, 4), 16, 3, True),
    ((2, 3, 8, 8), 5, 1, False),
]


@pytest.fixture(autouse=True, scope="module")
def _fused():
    with every_op_fused():
        yield


def _reference(x, weight, bias=None, *, slope=1.0, doubled=False):
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if doubled else x
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    return torch.where(y > 0, y, slope * y)


def _operands(shape, num_out, size):
    return [drawn(*shape), drawn(num_out, shape[1], size, size, seed=1), drawn(num_out, seed=2)]


@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize(("shape", "num_out", "size", "doubled"), CASES)
def test_two_orders_equal_torch_in_float64(shape, num_out, size, doubled, slope):
    operands = _operands(shape, num_out, size)
    assert convolves_fast(*operands[:2], doubled=doubled)
    functions = [partial(f, slope=slope, doubled=doubled) for f in (convolve, _reference)]
    assert_same(functions[0], functions[1], operands)
    assert_same(functions[0], functions[1], operands[:2])


@pytest.mark.parametrize("doubled", [False, True])
def test_derivatives_are_those_of_differences(doubled):
    x, weight, bias = (t.requires_grad_() for t in _operands((1, 16, 4 if doubled else 8, 8), 16, 3))
    function = partial(convolve, doubled=doubled)
    assert gradcheck(function, (x, weight, bias), fast_mode=True)
    assert gradgradcheck(function, (x, weight, bias), fast_mode=True)


@pytest.mark.parametrize("bytes_of_a_part", [1, 40_000])
def test_an_image_in_parts_is_the_same(monkeypatch, bytes_of_a_part):
    """Of 80 tiles, parts of 40 and less: the last one may be smaller."""
    monkeypatch.setattr("trainkit.ops.winograd.MATRIX_BYTES", bytes_of_a_part)
    operands = _operands((5, 16, 16, 16), 16, 3)
    assert_same(convolve, _reference, operands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_same_in_any_batch(monkeypatch, dtype):
    """Bit for bit: each element is a sum in one order, whatever the parts."""
    x, weight, bias = (t.to(dtype) for t in _operands((5, 19, 16, 8), 37, 3))
    whole = convolve(x, weight, bias, slope=0.2)
    assert torch.equal(whole[1:4], convolve(x[1:4], weight, bias, slope=0.2))
    monkeypatch.setattr("trainkit.ops.winograd.MATRIX_BYTES", 1)
    assert torch.equal(whole, convolve(x, weight, bias, slope=0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_threads_compute_what_one_does(dtype):
    x, g = drawn(5, 16, 8, 19).to(dtype), drawn(5, 16, 8, 37, seed=1).to(dtype)
    matrices = drawn(36, 19, 37, seed=2).to(dtype)
    found, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            y, total = torch.zeros_like(g), torch.zeros_like(matrices)
            torch.ops.trainkit.winograd_convolve_(x, matrices, None, 1.0, False, 7, y)
            torch.ops.trainkit.winograd_correlate_(x, g, False, 7, total)
            found.append((y, total))
    finally:
        torch.set_num_threads(before)
    for of_one, of_two in zip(*found, strict=True):
        assert torch.equal(of_one, of_two) and bool(of_one.any())


def test_in_float32_errors_are_small():
    """Of normalized numbers, as equalized layers have them."""
    x, weight, bias = _operands((4, 64, 16, 16), 32, 3)
    weight = weight / (9 * 64) ** 0.5
    found = convolve(x.float(), weight.float(), bias.float())
    assert float((found - _reference(x, weight, bias)).abs().max()) < 1e-4


def test_the_result_is_channels_last_and_any_layout_is_taken():
    x, weight, _ = _operands((2, 16, 8, 8), 16, 3)
    y = convolve(x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolve(x.to(memory_format=torch.channels_last), weight), y)
    assert torch.equal(convolve(x.transpose(2, 3).contiguous().transpose(2, 3), weight), y)
    assert convolve(x[:0], weight).shape == (0, 16, 8, 8)


def test_the_input_gradient_alone_computes_no_weight_gradient(monkeypatch):
    calls = []
    monkeypatch.setattr("trainkit.ops.winograd._correlate", lambda *given: calls.append(given))
    x, weight, _ = (t.requires_grad_() for t in _operands((2, 16, 8, 8), 16, 3))
    torch.autograd.grad(convolve(x, weight, slope=0.2).sum(), x, create_graph=True)
    assert not calls


@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (2, 16, 10, 8), (2, 15, 8, 8)])
def test_others_are_left_to_torch(shape):
    x, weight, _ = _operands(shape, 16, 3)
    assert not convolves_fast(x, weight)
    assert torch.equal(convolve(x, weight), F.conv2d(x, weight, padding=1))


def test_low_precision_and_references_are_left_to_torch():
    x, weight, _ = (t.float() for t in _operands((2, 16, 8, 8), 16, 3))
    assert convolves_fast(x, weight)
    assert not convolves_fast(x.bfloat16(), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, weight).dtype == torch.bfloat16
    mode.use("reference")
    try:
        assert not convolves_fast(x, weight)
    finally:
        mode.use("fused", require=True)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ConfigError, match=r"x \[2, 16, 8, 8\], weight \[4, 3, 3, 3\]"):
        convolve(torch.zeros(2, 16, 8, 8), torch.zeros(4, 3, 3, 3))
