"""Layout: the order in memory of images, where a CPU's kernels support both."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is on the CPU and in channels-last layout alone, which ops then keep."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )
