"""Masks as bits: an order that kernels and Python agree on."""

import numpy as np
import pytest
import torch

from trainkit.errors import UsageError
from trainkit.ops.bits import pack_bits, unpack_bits


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 64, 1001])
def test_the_order_is_numpys_little_one(numel):
    mask = torch.rand(numel, generator=torch.Generator().manual_seed(numel)) < 0.4
    bits = pack_bits(mask)
    assert bits.tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    assert torch.equal(unpack_bits(bits, numel), mask)


def test_a_matrix_is_packed_row_by_row():
    mask = torch.eye(5, dtype=torch.bool)
    assert torch.equal(unpack_bits(pack_bits(mask.T), 25).view(5, 5), mask)
    assert torch.equal(unpack_bits(pack_bits(mask[:, 1:]), 20).view(5, 4), mask[:, 1:])


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"mask of torch\.float32 must be torch\.bool"):
        pack_bits(torch.ones(3))
    with pytest.raises(UsageError, match=r"bits of torch\.uint8 \[1\] must be torch\.uint8 \[2\] for 9 elements"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), 9)
