"""Masks as bits: an eighth of a byte for an element, in the order in which a GPU's threads read them."""

import torch
from torch import Tensor

from trainkit.errors import UsageError


def pack_bits(mask: Tensor) -> Tensor:
    """uint8 [ceil(n / 8)] of a bool tensor of n elements, in row-major order, on its device.

    Element i is bit i % 8, counted from the least significant, of byte i // 8; bits after the last element are 0.

    >>> pack_bits(torch.tensor([True, False, False, True, True, False, False, False, False, True])).tolist()
    [25, 2]
    """
    if mask.dtype != torch.bool:
        raise UsageError(f"pack_bits takes a bool tensor, and was given one of {mask.dtype}")
    flat = mask.flatten()
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, numel: int) -> Tensor:
    """bool [numel]: the inverse of `pack_bits`.

    >>> unpack_bits(torch.tensor([25, 2], dtype=torch.uint8), 10).int().tolist()
    [1, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    """
    if bits.dtype != torch.uint8 or bits.shape != (-(-numel // 8),):
        raise UsageError(
            f"unpack_bits takes uint8 [{-(-numel // 8)}] for {numel} elements, and was given {bits.dtype} "
            f"{[*bits.shape]}"
        )
    spread = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (spread & 1).flatten()[:numel].bool()
