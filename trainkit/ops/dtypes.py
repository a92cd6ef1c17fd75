"""Floating dtypes of 16 bits, and what is computed in float32 in their place."""

from typing import Any

import torch
from torch import Tensor

LOW = (torch.float16, torch.bfloat16)


def widened(value: Any) -> Any:
    """A bf16 or fp16 tensor as fp32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW else value
