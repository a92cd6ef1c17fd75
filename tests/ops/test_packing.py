"""Rows gathered and scattered, against indexing in plain PyTorch."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.present import present
from trainkit.errors import ConfigError
from trainkit.ops import mode, pad, unpad
from trainkit.ops.packing import gather_rows, gather_rows_reference, scatter_rows, scatter_rows_reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int16, torch.bool]


def _batch(batch, length, features, dtype=torch.float64, device="cpu"):
    torch.manual_seed(batch * 1000 + length)
    attended = torch.arange(length) < torch.randint(length + 1, (batch, 1))
    return (3 * torch.randn(batch, length, *features)).to(dtype).to(device), attended.to(device)


@pytest.fixture(params=["fused", "reference"])
def kernels(request):
    mode.use(request.param)
    yield
    mode.use("fused")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [(), (1,), (7,), (768,), (3, 5)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (3, 130)], ids=str)
def test_there_and_back(shape, features, dtype, kernels):
    batch, length = shape
    x, attended = _batch(batch, length, features, dtype)
    packed, indices = unpad(x, attended)
    assert torch.equal(packed, x[attended])
    assert torch.equal(indices, attended.flatten().nonzero()[:, 0])
    expected = x.clone()
    expected[~attended] = 0
    assert torch.equal(pad(packed, indices, *shape), expected)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty(shape, kernels):
    x = torch.randn(shape, requires_grad=True)
    packed, indices = unpad(x, torch.ones(shape[:2], dtype=torch.bool))
    back = pad(packed, indices, *shape[:2])
    assert back.shape == shape
    back.sum().backward()
    assert present(x.grad).shape == shape


def test_nothing_attended(kernels):
    x, attended = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    packed, indices = unpad(x, attended)
    assert packed.shape == (0, 4)
    back = pad(packed, indices, 2, 3)
    back.sum().backward()
    assert not back.any()
    assert not present(x.grad).any()


def test_not_contiguous(kernels):
    x, attended = _batch(5, 8, (6,))
    x = x.transpose(0, 1)[:, 1:].transpose(1, 2)  # [8, 6, 4]
    packed, indices = unpad(x, attended[:1].expand(8, 8)[:, :6].clone())
    assert torch.equal(packed, x.contiguous()[attended[:1].expand(8, 8)[:, :6]])
    indices_twice = torch.stack((indices, indices), 1)[:, 0]
    assert torch.equal(pad(packed, indices_twice, 8, 6), pad(packed.contiguous(), indices, 8, 6))


def test_any_order_of_indices():
    x, indices = torch.randn(3, 4), torch.tensor([5, 0, 3])
    scattered = scatter_rows(x, indices, 7)
    assert torch.equal(scattered, scatter_rows_reference(x, indices, 7))
    assert torch.equal(gather_rows(scattered, indices), x)
    assert torch.equal(gather_rows_reference(scattered, indices), x)


def test_each_is_the_others_adjoint_at_every_order(kernels):
    x, attended = _batch(3, 4, (2,))
    x.requires_grad_()

    def there(x):
        return unpad(x, attended)[0] ** 3

    def back(packed):
        return pad(packed, attended.flatten().nonzero()[:, 0], 3, 4) ** 3

    packed = unpad(x.detach(), attended)[0].requires_grad_()
    for function, at in ((there, x), (back, packed)):
        assert gradcheck(function, at)
        assert gradgradcheck(function, at)
        (first,) = torch.autograd.grad(function(at).sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), at, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), at)
        places = attended[..., None].expand_as(at) if at is x else torch.ones_like(at, dtype=torch.bool)
        assert torch.equal(third, 6.0 * places)


def test_opcheck():
    x, indices = torch.randn(6, 3, requires_grad=True), torch.tensor([4, 1, 5])
    gather_rows(x, indices)  # the library is there
    torch.library.opcheck(torch.ops.trainkit.gather_rows, (x, indices))
    torch.library.opcheck(torch.ops.trainkit.scatter_rows, (x[:3].detach().requires_grad_(), indices, 6))


def test_compiled():
    x, attended = _batch(3, 4, (5,), torch.float32)
    indices = attended.flatten().nonzero()[:, 0]

    def twice_padded(x):
        return pad(gather_rows(x.flatten(0, 1), indices) * 2, indices, 3, 4)

    assert torch.equal(torch.compile(twice_padded, fullgraph=True)(x), x * 2 * attended[..., None])


def test_what_does_not_fit_is_refused(kernels):
    x, attended = _batch(3, 4, (5,))
    packed, indices = unpad(x, attended)
    with pytest.raises(ConfigError, match=r"they must be \[B, T, ...\]"):
        unpad(x, attended[:, 1:])
    with pytest.raises(ConfigError, match=r"torch.bool \[B, T\]"):
        unpad(x, attended.long())
    with pytest.raises(ConfigError, match="one index per row"):
        pad(packed, indices[1:], 3, 4)
    with pytest.raises(ConfigError, match=r"torch.int64 \[num\]"):
        gather_rows(x, indices.int())


def test_wrong_indices_are_named():
    x = torch.randn(3, 2)
    with pytest.raises(RuntimeError, match=r"indices\[1\] is 4; it must be 0 to 3"):
        scatter_rows(x, torch.tensor([0, 4, 1]), 4)
    with pytest.raises(RuntimeError, match="indices has 1 twice"):
        scatter_rows(x, torch.tensor([0, 1, 1]), 4)
    with pytest.raises(RuntimeError, match=r"indices\[0\] is -1; it must be 0 to 2"):
        gather_rows(x, torch.tensor([-1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [(), (1,), (7,), (768,)], ids=str)
def test_cuda_equals_indexing(features, dtype):
    x, attended = _batch(33, 130, features, dtype, "cuda")
    packed, indices = unpad(x, attended)
    assert torch.equal(packed, x[attended])
    expected = x.clone()
    expected[~attended] = 0
    assert torch.equal(pad(packed, indices, 33, 130), expected)
