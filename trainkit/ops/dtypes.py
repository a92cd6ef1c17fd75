"""Floating dtypes of 16 bits, which some operations compute in float32."""

from typing import Any

import torch
from torch import Tensor

LOW = (torch.float16, torch.bfloat16)


def widened(value: Any) -> Any:
    """Converts a bf16 or fp16 tensor to fp32; any other value is returned as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW else value
