"""Peak memory: the most that a process has held, on its GPU or in the host's memory."""

from pathlib import Path

import torch

ON_GPU = "allocated on the GPU"
ON_HOST = "resident memory of the whole process"


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """The most bytes that this process has held so far.

    Args:
        device: of this process.

    Returns:
        The bytes, None where the system does not say, and what they are of. Those of the CPU hold the libraries, too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), ON_GPU
    status = Path("/proc/self/status")  # not getrusage, which begins with what the parent process had
    if not status.exists():
        return None, ON_HOST
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024, ON_HOST
