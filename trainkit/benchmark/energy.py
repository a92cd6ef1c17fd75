"""Energy: the joules of a GPU, from the counter that NVML reads."""

import importlib
from typing import Any

import torch

Nvml = Any  # the module, or one that behaves like it
NO_GPU = "there is no GPU whose counter NVML could read"


class EnergyMeter:
    """Reads the energy that the GPU of this process has used since its driver was loaded.

    Attributes: `reason`, why there is no counter; None: there is one.

    Args:
        device: of this process.
        nvml: in place of the module `pynvml`.
        uuid: of the GPU, as NVML takes it; None: that of torch.
    """

    def __init__(self, device: torch.device, *, nvml: Nvml = None, uuid: str | None = None) -> None:
        self.reason: str | None = None
        self._nvml, self._handle = nvml, None
        if device.type != "cuda":
            self.reason = NO_GPU
            return
        try:
            self._nvml = nvml or importlib.import_module("pynvml")
        except ImportError:
            self.reason = "nvidia-ml-py is not installed: pip install nvidia-ml-py"
            return
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID((uuid or _uuid(device)).encode())
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            self.reason = f"NVML has no energy counter for this GPU: {error}"

    def joules(self) -> float | None:
        """The energy so far, to be subtracted from a later one; None: there is no counter."""
        if self.reason is not None:
            return None
        millijoules: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return millijoules / 1e3


def _uuid(device: torch.device) -> str:
    found = str(torch.cuda.get_device_properties(device).uuid)
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"
