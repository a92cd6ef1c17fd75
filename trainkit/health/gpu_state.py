"""The state of a GPU under load: clocks below its own, PCIe below its own, what slows it down. Read by NVML."""

import importlib
from collections.abc import Callable
from typing import Any

CLOCK_SHARE = 0.8
"""Below this share of the highest clock of the multiprocessors a GPU under load is reported."""

# Reasons that are none of the user's: nothing to do, or a clock that an application has set.
_SLOWDOWNS = {
    "nvmlClocksEventReasonSwPowerCap": "its power limit",
    "nvmlClocksEventReasonSwThermalSlowdown": "its temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "its temperature (by the hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "the power supply (an external brake)",
}


def gpu_problems(bus_id: str, nvml: Any = None) -> list[str]:
    """What is wrong with a GPU that computes at this moment.

    Args:
        bus_id: of PCI.
        nvml: in place of the module pynvml.

    Returns:
        Sentences; empty where nothing is wrong, or NVML is not there.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []  # a GPU of another maker, or a driver without NVML
    try:
        return _problems(nvml, nvml.nvmlDeviceGetHandleByPciBusId(bus_id))
    except nvml.NVMLError as error:
        return [f"NVML cannot read it: {error}"]
    finally:
        nvml.nvmlShutdown()


def _problems(nvml: Any, handle: Any) -> list[str]:
    def ask(name: str, *arguments: Any) -> Any:
        call: Callable[..., Any] | None = getattr(nvml, name, None)
        try:
            return None if call is None else call(handle, *arguments)
        except nvml.NVMLError:
            return None  # this GPU has no such value

    found = []
    generation, most = ask("nvmlDeviceGetCurrPcieLinkGeneration"), ask("nvmlDeviceGetMaxPcieLinkGeneration")
    if generation and most and generation < most:
        found.append(f"PCIe runs at generation {generation} of {most}")
    lanes, most = ask("nvmlDeviceGetCurrPcieLinkWidth"), ask("nvmlDeviceGetMaxPcieLinkWidth")
    if lanes and most and lanes < most:
        found.append(f"PCIe has {lanes} of {most} lanes")
    sm = getattr(nvml, "NVML_CLOCK_SM", 1)
    clock, most = ask("nvmlDeviceGetClockInfo", sm), ask("nvmlDeviceGetMaxClockInfo", sm)
    if clock and most and clock < CLOCK_SHARE * most:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        why = [text for name, text in _SLOWDOWNS.items() if reasons & getattr(nvml, name, 0)]
        found.append(f"its clock is {clock} of {most} MHz" + (f", slowed down by {' and '.join(why)}" if why else ""))
    return found
