"""Images at twice and half their size, against plain PyTorch in float64, differentiated twice."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from tests.ops.compared import LOWER, assert_same, assert_threads_do_not_matter, drawn, every_op_fused
from trainkit.errors import ConfigError
from trainkit.ops.resample import (
    downsample,
    downsample_reference,
    fade_in,
    fade_in_reference,
    upsample,
    upsample_blur,
    upsample_blur_reference,
    upsample_reference,
)

PAIRS = [
    (upsample, upsample_reference, 1),
    (downsample, downsample_reference, 2),
    (upsample_blur, upsample_blur_reference, 1),
]
SIZES = [(3, 5), (1, 1), (1, 7), (4, 1), (8, 16), (17, 33)]


@pytest.fixture(autouse=True, scope="module")
def _fused():
    with every_op_fused():
        yield


@pytest.mark.parametrize("dtype", [torch.float64, *LOWER])
@pytest.mark.parametrize("size", SIZES)
def test_two_orders_equal_the_reference(size, dtype):
    for fused, reference, factor in PAIRS:
        assert_same(fused, reference, [drawn(2, 3, factor * size[0], factor * size[1])], dtype)
    for fade in (0.0, 0.3, 0.5, 0.8, 1.0):
        inputs = [drawn(2, 3, *size), drawn(2, 3, 2 * size[0], 2 * size[1], seed=1)]
        assert_same(lambda a, b: fade_in(a, b, fade), lambda a, b: fade_in_reference(a, b, fade), inputs, dtype)  # noqa: B023


def test_channels_last_layout_is_kept_with_the_same_numbers():
    for function, reference, factor in PAIRS[:2]:
        assert_same(
            lambda x: function(x.contiguous(memory_format=torch.channels_last)),  # noqa: B023
            reference,
            [drawn(2, 3, 2 * factor, 3 * factor)],
        )
        x = drawn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = function(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_derivatives_by_differences():
    x, image = drawn(1, 2, 2, 3).requires_grad_(), drawn(1, 2, 4, 6, seed=1).requires_grad_()
    for fused, _, factor in PAIRS:
        inputs = (x if factor == 1 else image,)
        assert gradcheck(fused, inputs) and gradgradcheck(fused, inputs)
    assert gradcheck(lambda a, b: fade_in(a, b, 0.3), (x, image))
    assert gradgradcheck(lambda a, b: fade_in(a, b, 0.3), (x, image))


def test_the_blur_is_nearest_neighbour_then_1_2_1_over_4():
    x = drawn(2, 3, 5, 4)
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    padded = torch.nn.functional.pad(upsample_reference(x), (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
    blurred = torch.nn.functional.conv2d(padded, torch.outer(kernel, kernel).view(1, 1, 3, 3))
    torch.testing.assert_close(upsample_blur(x), blurred.view(2, 3, 10, 8), rtol=1e-12, atol=1e-12)


def test_a_fade_starts_and_ends_exactly():
    for dtype in LOWER:
        x, image = drawn(2, 3, 4, 4).to(dtype), drawn(2, 3, 8, 8, seed=1).to(dtype)
        assert torch.equal(fade_in(x, image, 0.0), upsample(x)) and torch.equal(fade_in(x, image, 1.0), image)
    assert fade_in(x, image.float(), 0.5).dtype == torch.float32


def test_strides_empty_inputs_and_threads():
    x = drawn(2, 4, 6, 8)
    for view in (x.transpose(2, 3), x.to(memory_format=torch.channels_last), x[:, ::2], x[:, :, 2:]):
        for fused, reference, _ in PAIRS:
            torch.testing.assert_close(fused(view), reference(view), rtol=1e-12, atol=1e-12)
    for fused, _, factor in PAIRS:
        empty = torch.empty(0, 3, 2, 2, requires_grad=True)
        y = fused(empty)
        assert y.shape == (0, 3, *((4, 4) if factor == 1 else (1, 1)))
        assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape
        assert_threads_do_not_matter(fused, [drawn(3, 16, 40, 42)])


def test_what_cannot_be():
    for fused, _, _ in PAIRS:
        with pytest.raises(ConfigError, match=r"it must be floats \[B, C, H, W\]"):
            fused(drawn(2, 3, 4))
    with pytest.raises(ConfigError, match="height and width must be even"):
        downsample(drawn(1, 2, 4, 5))
    with pytest.raises(ConfigError, match="the second must be twice as high and wide"):
        fade_in(drawn(1, 2, 4, 4), drawn(1, 2, 8, 4), 0.5)


def test_the_ops_are_what_torch_expects():
    ops = torch.ops.trainkit
    x, image = drawn(1, 2, 2, 3).requires_grad_(), drawn(1, 2, 4, 6, seed=1).requires_grad_()
    opcheck(ops.upsample2.default, (x, 0.5))
    opcheck(ops.downsample2.default, (image, 0.5))
    opcheck(ops.upsample_blur.default, (x,))
    opcheck(ops.upsample_blur_adjoint.default, (image,))
    opcheck(ops.fade_in.default, (x, image, 0.3))
    opcheck(ops.fade_in_adjoint.default, (image, 0.3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("size", [*SIZES, (64, 64)])
def test_a_gpu_computes_the_same(size, dtype):
    for fused, reference, factor in PAIRS:
        inputs = [drawn(2, 3, factor * size[0], factor * size[1])]
        assert_same(lambda x: fused(x.cuda()).cpu(), reference, inputs, dtype)  # noqa: B023
    inputs = [drawn(2, 3, *size), drawn(2, 3, 2 * size[0], 2 * size[1], seed=1)]
    on_gpu = lambda a, b: fade_in(a.cuda(), b.cuda(), 0.3).cpu()  # noqa: E731
    assert_same(on_gpu, lambda a, b: fade_in_reference(a, b, 0.3), inputs, dtype)
