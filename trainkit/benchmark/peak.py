"""Peak: what one device reaches in a large matrix product of a precision."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainkit.precision import Precision

SECONDS = 1.0
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
_FEWEST = 3
# On the CPU the two use different libraries, of which either may be the faster one.
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": torch.mm,
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
}


def measure_peak(precision: Precision, device: torch.device, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Measures square matrix products by torch.mm and torch.bmm, and takes the fastest.

    Args:
        precision: of the products, with its switches of torch.
        device: of this process.
        sizes: rows of the matrices; empty: those that suit the device.

    Returns:
        `flops_per_s` of the best product, its `size` and `dtype`, and what it was made `by`.

    Raises:
        ConfigError: where the device does not support the precision.
    """
    obtained = precision.apply(device)
    dtype = precision.autocast_dtype or precision.dtype
    best: dict[str, Any] = {"flops_per_s": 0.0}
    for size in sizes or SIZES[device.type]:
        # Normal numbers: a GPU is faster with zeros.
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for name, product in PRODUCTS.items():
            rate = 2.0 * size**3 / _fastest(product, a, b)
            if rate > best["flops_per_s"]:
                best = {"flops_per_s": rate, "size": size, "dtype": str(dtype).removeprefix("torch."), "by": name}
    return {**best, "precision_obtained": obtained}


def _fastest(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """Seconds of the fastest product of two matrices, of those that fit into a second."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < _FEWEST or time.perf_counter() < end:
        _wait(a.device)
        began = time.perf_counter()
        product(a, b)
        _wait(a.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])  # the first makes what the library needs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
