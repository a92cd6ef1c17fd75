"""Meter: the most memory of a device that was held within it, which can have a limit."""

import gc
from pathlib import Path
from types import TracebackType

import torch

from trainkit.memory.account import MemoryAccount


class Meter:
    """Measures the memory that this process holds on a device: on a GPU what PyTorch allocated, else tensors alive.

    It can be entered again; `peak`, in bytes, is then of all times together.

    Args:
        device: of this process.
        limit: bytes; None: any number. On a GPU it holds for all that PyTorch keeps.

    Raises:
        MemoryError: within it, where more is held. On a GPU torch.OutOfMemoryError.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.peak, self._device, self._limit = 0, device, limit
        self._before = 1.0
        self._account = MemoryAccount(limit) if device.type != "cuda" else None

    def __enter__(self) -> "Meter":
        gc.collect()  # what waits for it would count
        if self._account is not None:
            self._account.__enter__()
        else:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.get_per_process_memory_fraction(self._device)
            if self._limit is not None:
                limit_gpu(self._device, self._limit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._account is not None:
            self._account.__exit__(kind, error, trace)
            self.peak = self._account.peak
        else:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self._device))
            torch.cuda.set_per_process_memory_fraction(self._before, self._device)


def limit_gpu(device: torch.device, limit: int) -> None:
    """Makes PyTorch refuse to keep more of a GPU's memory for this process than `limit` bytes."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


def available(device: torch.device) -> int:
    """Bytes that this process could take now: of a GPU, or of the host where the system says it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    file = Path("/proc/meminfo")
    if not file.exists():
        return 2**62
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
