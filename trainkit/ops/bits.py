"""Masks as bits: one bit per element, in the order in which a GPU's threads read them."""

import torch
from torch import Tensor

from trainkit.errors import UsageError


def pack_bits(mask: Tensor) -> Tensor:
    """Packs a mask to bits.

    Element i is bit i % 8, counted from the least significant, of byte i // 8; bits after the last element are 0.

    Args:
        mask: bool, of n elements.

    Returns:
        uint8 [ceil(n / 8)], in row-major order, on the mask's device.

    Raises:
        UsageError: for another dtype.

    Example:
        >>> pack_bits(torch.tensor([True, False, False, True, True, False, False, False, False, True])).tolist()
        [25, 2]
    """
    if mask.dtype != torch.bool:
        raise UsageError(f"pack_bits: mask of {mask.dtype} must be torch.bool")
    flat = mask.flatten()
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, numel: int) -> Tensor:
    """Unpacks bits to a mask, the inverse of `pack_bits`.

    Args:
        bits: uint8 [ceil(numel / 8)].
        numel: elements of the mask.

    Returns:
        bool [numel].

    Raises:
        UsageError: for another dtype or size.

    Example:
        >>> unpack_bits(torch.tensor([25, 2], dtype=torch.uint8), 10).int().tolist()
        [1, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    """
    if bits.dtype != torch.uint8 or bits.shape != (-(-numel // 8),):
        raise UsageError(
            f"unpack_bits: bits of {bits.dtype} {[*bits.shape]} must be torch.uint8 [{-(-numel // 8)}] for {numel} "
            f"elements"
        )
    spread = bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (spread & 1).flatten()[:numel].bool()
