"""MaskedLinear against nn.Linear with weights that are 0."""

import pytest
import torch
from torch import nn

from trainkit.errors import ConfigError
from trainkit.ops import MaskedLinear


def _layers(dtype=torch.float64):
    torch.manual_seed(0)
    masked = MaskedLinear(6, 5, dtype=dtype)
    masked.mask = torch.rand(5, 6) < 0.6
    plain = nn.Linear(6, 5, dtype=dtype)
    plain.load_state_dict({"weight": masked.weight.detach() * masked.mask, "bias": masked.bias.detach()})
    return masked, plain


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 0, 6)])
def test_values_and_gradients_are_those_of_a_layer_with_zeros(shape):
    masked, plain = _layers()
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(masked(x), plain(x), rtol=1e-14, atol=1e-14)
    masked(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert masked.weight.grad[~masked.mask].eq(0).all()
    torch.testing.assert_close(masked.weight.grad, plain.weight.grad * masked.mask)
    assert 0 < masked.sparsity < 1 and masked.sparsity == pytest.approx(float((plain.weight == 0).float().mean()))


def test_a_masked_weight_that_is_no_number_counts_as_0():
    masked, plain = _layers()
    x = torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        masked.weight[~masked.mask] = float("nan")
    torch.testing.assert_close(masked(x), plain(x))


def test_gradcheck():
    masked, _ = _layers()
    weight = masked.weight.detach().requires_grad_()

    def f(x, weight):
        return torch.func.functional_call(masked, {"weight": weight}, (x,))

    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x, weight)) and torch.autograd.gradgradcheck(f, (x, weight))


def test_compiled_and_under_autocast():
    masked, plain = _layers(torch.float32)
    x = torch.randn(3, 6)
    torch.testing.assert_close(torch.compile(masked, fullgraph=True)(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked(x).dtype == torch.bfloat16
        torch.testing.assert_close(masked(x), plain(x))


def test_state_dicts():
    masked, plain = _layers()
    fresh = MaskedLinear(6, 5, dtype=torch.float64)
    fresh.load_state_dict(masked.state_dict())
    assert torch.equal(fresh.mask, masked.mask)
    mask, state = masked.mask, plain.state_dict()
    assert masked.load_state_dict(state) == nn.modules.module._IncompatibleKeys([], [])
    assert torch.equal(masked.mask, mask) and torch.equal(masked.weight, plain.weight)
    assert list(state) == ["weight", "bias"]
    with pytest.raises(RuntimeError, match="bias"):
        masked.load_state_dict({"weight": plain.weight})
    nested = nn.Sequential(MaskedLinear(6, 5, dtype=torch.float64))
    nested.load_state_dict(nn.Sequential(plain).state_dict())


def test_from_linear_takes_the_parameters_over():
    layer = nn.Linear(6, 5, bias=False).eval()
    mask = torch.rand(5, 6) < 0.5
    masked = MaskedLinear.from_linear(layer, mask)
    assert masked.weight is layer.weight and masked.bias is None and not masked.training
    x = torch.randn(2, 6)
    torch.testing.assert_close(masked(x), x @ (layer.weight * mask).T)


@pytest.mark.parametrize("mask", [torch.ones(5, 6), torch.ones(6, 5, dtype=torch.bool)])
def test_a_mask_that_does_not_fit(mask):
    with pytest.raises(ConfigError, match=r"must be torch\.bool \[5, 6\]"):
        MaskedLinear(6, 5).mask = mask


def _two_of_four(dtype):
    layer = MaskedLinear(64, 32, dtype=dtype)
    layer.mask = torch.tensor([True, False, False, True]).repeat(32, 16)
    return layer


def test_what_is_not_for_sparse_kernels_is_said():
    for text, layer in (
        (r"weight is \[5, 6\]", MaskedLinear(6, 5)),
        ("more than two of four", MaskedLinear(64, 32, dtype=torch.float16)),
        ("float32, and must be float16", _two_of_four(torch.float32)),
        ("on the cpu", _two_of_four(torch.float16)),
    ):
        with pytest.raises(ConfigError, match=text):
            layer.to_sparse_2_4()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sparse_kernels():
    layer = _two_of_four(torch.float16).cuda()
    x = torch.randn(16, 64, dtype=torch.float16, device="cuda")
    torch.testing.assert_close(layer.to_sparse_2_4()(x), layer(x), rtol=1e-2, atol=1e-2)
