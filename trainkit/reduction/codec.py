"""Formats in which gradients cross slow links: casts, and int8 with a scale for every block of elements."""

import torch
from torch import Tensor

from trainkit.planning.reduce_plan import INT8_BLOCK, Format

_CASTS = {"fp16": torch.float16, "bf16": torch.bfloat16}
_SCALE_BYTES = 4


def encode(x_RN: Tensor, format: Format) -> Tensor:
    """Bytes [R, B], row by row, of `x_RN`; N is a multiple of INT8_BLOCK.

    int8 keeps, of each block, the largest magnitude as a float32, and every element to 1/127 of that. A block with
    an element that is not finite decodes to one that has none that is.
    """
    if format != "int8":
        return x_RN.to(_CASTS[format]).view(torch.uint8)
    num_rows, num_blocks = len(x_RN), x_RN.shape[1] // INT8_BLOCK
    blocks = x_RN.view(num_rows, num_blocks, INT8_BLOCK)
    wire = torch.empty(num_rows, num_blocks * (_SCALE_BYTES + INT8_BLOCK), dtype=torch.uint8, device=x_RN.device)
    scales, values = _parts(wire, num_blocks)
    # On a CPU, 16 times as fast as the norm that it is.
    torch.div(torch.maximum(blocks.amax(2), -blocks.amin(2)).float(), 127, out=scales)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    # In float32 at least: in half types a quotient of 127 may round to 128, which is -128 as an int8.
    values.copy_((blocks * inverse.unsqueeze(2)).round_().clamp_(-127, 127))
    return wire


def decode(wire_RB: Tensor, num: int, dtype: torch.dtype, format: Format) -> Tensor:
    """The [R, num] elements of `dtype` that `encode` made bytes of."""
    if format != "int8":
        return wire_RB.view(_CASTS[format]).to(dtype)
    num_blocks = num // INT8_BLOCK
    scales, values = _parts(wire_RB, num_blocks)
    wide = torch.promote_types(dtype, torch.float32)
    return values.to(wide).mul_(scales.to(wide).unsqueeze(2)).view(len(wire_RB), num).to(dtype)


def _parts(wire: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Scales [R, blocks] and values [R, blocks, INT8_BLOCK], which lie one after the other in each row."""
    start = _SCALE_BYTES * num_blocks
    scales, values = wire[:, :start].view(torch.float32), wire[:, start:].view(torch.int8)
    return scales, values.unflatten(1, (num_blocks, INT8_BLOCK))
