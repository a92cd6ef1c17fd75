"""Busy: processes that use a GPU or a MIG slice already, as NVML tells."""

import importlib
from collections.abc import Sequence
from typing import Any

from trainkit.errors import ConfigError
from trainkit.sweep.slots import Slot


def require_free(slots: Sequence[Slot], nvml: Any = None) -> None:
    """Checks that no process computes on the GPUs or slices of slots.

    Args:
        slots: of this machine.
        nvml: in place of the module pynvml.

    Raises:
        ConfigError: naming the slot and the process.
    """
    devices = {device: slot for slot in slots for device in slot.devices}
    if not devices:
        return
    pynvml = nvml if nvml is not None else importlib.import_module("pynvml")
    pynvml.nvmlInit()
    try:
        for uuid, slot in devices.items():
            try:
                found = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(uuid))
            except pynvml.NVMLError as error:
                raise ConfigError(f"--slots: {slot.name} ({uuid}) cannot be used: {error}") from error
            if found:
                raise ConfigError(
                    f"--slots: {slot.name} ({uuid}) is used by process {found[0].pid} already: wait for its end, leave "
                    f"it out with CUDA_VISIBLE_DEVICES or mig:UUID, or share it knowingly with --busy"
                )
    finally:
        pynvml.nvmlShutdown()
