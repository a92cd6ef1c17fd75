"""Peak: what one device reaches in a large matrix product of a precision."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from trainkit.precision import Precision

SECONDS = 1.0
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
_FEWEST = 3


def measure_peak(precision: Precision, device: torch.device, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Measures square matrix products, and takes the fastest.

    Args:
        precision: of the products, with its switches of torch.
        device: of this process.
        sizes: rows of the matrices; empty: those that suit the device.

    Returns:
        `flops_per_s` of the best product, its `size` and `dtype`.

    Raises:
        ConfigError: where the device does not support the precision.
    """
    obtained = precision.apply(device)
    dtype = precision.autocast_dtype or precision.dtype
    best: dict[str, Any] = {"flops_per_s": 0.0}
    for size in sizes or SIZES[device.type]:
        rate = 2.0 * size**3 / _fastest(size, dtype, device)
        if rate > best["flops_per_s"]:
            best = {"flops_per_s": rate, "size": size, "dtype": str(dtype).removeprefix("torch.")}
    return {**best, "precision_obtained": obtained}


def _fastest(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of the fastest product of two matrices, of those that fit into a second."""
    # Normal numbers: a GPU is faster with zeros.
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < _FEWEST or time.perf_counter() < end:
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])  # the first makes what the library needs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
