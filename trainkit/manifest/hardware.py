"""Hardware: the machine as far as it can change numbers."""

import os
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Returns the machine of this process, as a manifest holds it.

    Returns:
        `host`, `cpu` (model, vector units that torch uses, cores), `memory_bytes` and `gpus`.
    """
    return {
        "host": socket.gethostname(),
        "cpu": {
            "model": cpu_model(),
            "architecture": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        },
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [
            {
                "name": found.name,
                "memory_bytes": found.total_memory,
                "compute_capability": f"{found.major}.{found.minor}",
            }
            for found in (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
        ],
    }


@cache
def cpu_model() -> str:
    """Returns the name that the processor gives itself."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware"):
                return value.strip()
    return platform.processor() or platform.machine()
