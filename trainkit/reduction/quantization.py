"""The formats in which gradients cross slow links: 16-bit casts, and int8 with one scale for each block of elements."""

import torch
from torch import Tensor

from trainkit.planning.reduce_plan import INT8_BLOCK, WireDtype

_CASTS = {"fp16": torch.float16, "bf16": torch.bfloat16}
_SCALE_BYTES = 4


def quantize(x_RN: Tensor, wire_dtype: WireDtype) -> Tensor:
    """Converts each row to bytes of `wire_dtype`.

    int8 stores the largest magnitude of each block divided by 127 as a float32 scale, and each element as a multiple
    of that scale. A block that holds a non-finite element dequantizes to non-finite elements only.

    Args:
        x_RN: [R, N] floating-point values; N must be a multiple of INT8_BLOCK for int8.
        wire_dtype: `fp16`, `bf16` or `int8`.

    Returns:
        [R, B] uint8: 2 N bytes a row for the 16-bit formats, N + 4 N / INT8_BLOCK for int8.

    Example:
        >>> quantize(torch.ones(2, 256), "int8").shape
        torch.Size([2, 260])
    """
    if wire_dtype != "int8":
        return x_RN.to(_CASTS[wire_dtype]).view(torch.uint8)
    num_rows, num_blocks = len(x_RN), x_RN.shape[1] // INT8_BLOCK
    blocks = x_RN.view(num_rows, num_blocks, INT8_BLOCK)
    wire = torch.empty(num_rows, num_blocks * (_SCALE_BYTES + INT8_BLOCK), dtype=torch.uint8, device=x_RN.device)
    scales, values = _scales_and_values(wire, num_blocks)
    # 16 times as fast on a CPU as the infinity norm, which is the same.
    torch.div(torch.maximum(blocks.amax(2), -blocks.amin(2)).float(), 127, out=scales)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    # In float32 at least: in half types a quotient of 127 may round to 128, which is -128 as an int8.
    values.copy_((blocks * inverse.unsqueeze(2)).round_().clamp_(-127, 127))
    return wire


def dequantize(wire_RB: Tensor, num: int, dtype: torch.dtype, wire_dtype: WireDtype) -> Tensor:
    """Converts the bytes that `quantize` returned back to values.

    Args:
        wire_RB: [R, B] uint8, as `quantize` returned them.
        num: N, the elements of a row.
        dtype: of the result.
        wire_dtype: what `quantize` was called with.

    Returns:
        [R, N] of `dtype`.

    Example:
        >>> x = torch.tensor([[1.0, -0.5]]).repeat(1, 128)
        >>> dequantize(quantize(x, "int8"), 256, torch.float32, "int8")[0, :2]
        tensor([ 1.0000, -0.5039])
    """
    if wire_dtype != "int8":
        return wire_RB.view(_CASTS[wire_dtype]).to(dtype)
    num_blocks = num // INT8_BLOCK
    scales, values = _scales_and_values(wire_RB, num_blocks)
    wide = torch.promote_types(dtype, torch.float32)
    return values.to(wide).mul_(scales.to(wide).unsqueeze(2)).view(len(wire_RB), num).to(dtype)


def _scales_and_values(wire: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Views of the scales [R, blocks] and the values [R, blocks, INT8_BLOCK]; in each row the scales come first."""
    start = _SCALE_BYTES * num_blocks
    scales, values = wire[:, :start].view(torch.float32), wire[:, start:].view(torch.int8)
    return scales, values.unflatten(1, (num_blocks, INT8_BLOCK))
