"""Dropout from a counter: the masks of trainkit.random, their statistics, and what draws them again."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from tests.present import present
from trainkit.errors import ConfigError
from trainkit.ops import mode
from trainkit.ops.dropout import dropout, dropout_reference
from trainkit.random import key_of, rand

POSITIONS = torch.tensor([3, 2**33 + 5, 7])
KEY = 2**62 + 12345
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(autouse=True, scope="module")
def _fused():
    mode.use("fused", require=True)
    yield
    mode.use("fused")


def _mask(key, num_elements, call=0, position=0, p=0.1):
    """True where dropped."""
    return dropout(torch.ones(1, num_elements), p, key, torch.tensor([position]), call)[0] == 0


def _sigmas(count, num, probability):
    return abs(count - num * probability) / math.sqrt(num * probability * (1 - probability))


def _correlation_sigmas(a, b, p):
    """How many standard deviations the correlation of two masks is from 0."""
    num_both, num_a, num_b = (int(mask.sum()) for mask in (a & b, a, b))
    return abs(num_both - p * (num_a + num_b) + len(a) * p * p) / (math.sqrt(len(a)) * p * (1 - p))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 4, 64), (3, 1), (3,), (3, 2055), (3, 1024)])
def test_the_mask_is_that_of_rand(dtype, shape):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    for p, call in [(0.1, 0), (0.7, 5), (0.5, 2**31)]:
        keep = rand(KEY, POSITIONS, shape[1:], call=call).double() >= torch.tensor(p).double()
        fused = dropout(x, p, KEY, POSITIONS, call)
        assert torch.equal(fused != 0, keep)
        expected = x.double() * keep / (1 - p)
        torch.testing.assert_close(fused.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
        assert fused.dtype == dropout_reference(x, p, KEY, POSITIONS, call).dtype == dtype


def test_the_edge_of_p_is_torchs():
    """A drawn number is kept at p equal to it, or to what becomes it in float32; and dropped at the next above."""
    drawn = rand(KEY, POSITIONS[:1], (64,))[0]
    x = torch.ones(1, 64)
    for i in range(64):
        u = float(drawn[i])
        for p in (u, u + 1e-10, math.nextafter(u, 1.0), u + 2.0**-24):
            expected = dropout_reference(x, p, KEY, POSITIONS[:1]) != 0
            assert torch.equal(dropout(x, p, KEY, POSITIONS[:1]) != 0, expected)
        assert dropout(x, u, KEY, POSITIONS[:1])[0, i] != 0
        assert dropout(x, u + 2.0**-24, KEY, POSITIONS[:1])[0, i] == 0


def test_drop_rate_over_1e8_elements():
    dropped = 0
    ones = torch.ones(1, 10**7)
    for position in range(10):
        dropped += int((dropout(ones, 0.1, KEY, torch.tensor([position])) == 0).sum())
    threshold = math.ceil(float(torch.tensor(0.1)) * 2**24) * 2.0**-24
    assert _sigmas(dropped, 10**8, threshold) < 4


def test_masks_of_other_keys_are_uncorrelated():
    num, p = 2**21, 0.25
    masks = [
        _mask(key_of(seed, "dropout", layer), num, call, position, p)
        for seed, layer, call, position in itertools.product((0, 1), ("a", "b"), (0, 1), (0, 2**32))
    ]
    # 120 pairs and 112 lags: one above 4.5 would be met by chance once in 600 choices of the keys.
    assert max(_correlation_sigmas(a, b, p) for a, b in itertools.combinations(masks, 2)) < 4.5
    lags = (1, 2, 3, 4, 5, 128, 1024)
    assert max(_correlation_sigmas(mask[lag:], mask[:-lag], p) for mask in masks for lag in lags) < 4.5


def test_blocks_of_eight_have_every_pattern_equally_often():
    bits = _mask(KEY, 2**21, p=0.5).view(-1, 8).long()
    counts = torch.bincount((bits * 2 ** torch.arange(8)).sum(1), minlength=256).double()
    expected = 2**18 / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


def test_derivatives():
    x = torch.randn(3, 5, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: dropout(x, 0.3, KEY, POSITIONS), (x,))
    assert gradgradcheck(lambda x: dropout(x, 0.3, KEY, POSITIONS) ** 2, (x,))
    opcheck(torch.ops.trainkit.dropout, (x, 0.3, KEY, POSITIONS, 1))


def test_recomputation_draws_the_same_mask():
    x = torch.randn(3, 40, requires_grad=True)

    def layer(x):
        return dropout(torch.tanh(x), 0.5, KEY, POSITIONS, 2)

    (kept,) = torch.autograd.grad(layer(x).sum(), x)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    assert torch.equal(kept, again) and int((kept == 0).sum()) > 10


def test_nothing_is_kept_for_the_backward_pass_but_positions():
    kept = []

    def pack(saved):
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        dropout(torch.randn(3, 1000, requires_grad=True), 0.5, KEY, POSITIONS)
    assert kept == [3]


def test_any_strides_and_no_elements():
    x = torch.randn(6, 8, 3).transpose(0, 2)[:, ::2]
    assert not x.is_contiguous()
    assert torch.equal(dropout(x, 0.5, KEY, POSITIONS), dropout(x.contiguous(), 0.5, KEY, POSITIONS))
    for shape in ((0, 4), (3, 0), (0,)):
        empty = torch.empty(shape, requires_grad=True)
        out = dropout(empty, 0.5, KEY, POSITIONS[: shape[0]])
        out.sum().backward()
        assert out.shape == present(empty.grad).shape == shape


@pytest.mark.parametrize(
    ("x", "p", "positions", "told"),
    [
        (torch.ones(2, 3), 0.5, POSITIONS, r"positions are torch.int64 \[3\] beside an input of \[2, 3\]"),
        (torch.ones(3), 0.5, POSITIONS.float(), "positions are torch.float32"),
        (torch.ones(()), 0.5, POSITIONS, "beside an input of"),
        (torch.ones(3, 2), 1.0, POSITIONS, "p=1.0: must be 0 <= p < 1"),
    ],
)
def test_what_cannot_be_is_an_error(x, p, positions, told):
    with pytest.raises(ConfigError, match=told):
        dropout(x, p, KEY, positions)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_cuda_draws_what_a_cpu_draws(dtype):
    for shape in ((3, 5, 7), (3, 4, 64), (3, 2055), (3, 0)):
        x = torch.randn(shape).to(dtype)
        assert torch.equal(dropout(x.cuda(), 0.3, KEY, POSITIONS, 1).cpu(), dropout(x, 0.3, KEY, POSITIONS, 1))
