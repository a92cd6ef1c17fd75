"""Reads NVML, the library of nvidia-smi, through nvidia-ml-py (`import pynvml`), which is optional."""

import ctypes
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

from trainkit.topology.discover import build, nominal
from trainkit.topology.discover.parts import NVSWITCH, Nearness, Pair, Parts, bus_id, pair
from trainkit.topology.topology import Device, Host

Nvml = Any  # the module, or one that behaves like it

# nvmlGpuTopologyLevel_t; boards with two GPUs (0) have a switch of their own.
_LEVELS: Mapping[int, Nearness] = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
# nvmlGpuP2PStatus_t
_P2P = ("ok", "chipset not supported", "GPU not supported", "topology not supported", "disabled", "not supported")
_READ_P2P = 0
_REMOTE_GPU, _REMOTE_CPU = 0, 1
_FABRIC_COMPLETED = 3  # nvmlGpuFabricState_t


def read_nvml(nvml: Nvml = None) -> Host | None:
    """Reads the GPUs of this host and their links; None where NVML cannot be read. `nvml` replaces the module."""
    parts, _ = read(nvml)
    return None if parts is None else build.host_of(parts, name="nvml")


def read(nvml: Nvml = None) -> tuple[Parts | None, str]:
    """Reads the GPUs that NVML shows to this process in the order of bus ids; None and the reason if there are none."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return None, "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"NVML: {error}"
    try:
        parts = _read(nvml)
        return (parts, "") if parts.devices else (None, "NVML shows no GPU")
    except nvml.NVMLError as error:
        return None, f"NVML: {error}"
    finally:
        _ask(nvml, "nvmlShutdown")


def visible(environment: Mapping[str, str] | None = None, nvml: Nvml = None) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves.

    A MIG slice stands for its GPU. As in CUDA, the first unknown entry ends the list. Indices are those of NVML; on a
    host with GPUs of several kinds CUDA uses the same with CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Args:
        environment: in place of that of this process.
        nvml: in place of the module.

    Returns:
        Bus ids in the order of CUDA; None: all GPUs.
    """
    environment = os.environ if environment is None else environment
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return None
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        by_uuid = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        found: list[str] = []
        for entry in (text.strip() for text in given.split(",")):
            handle = _named(nvml, entry, handles, by_uuid)
            if handle is None:
                break
            bus = _bus_id(nvml, handle)
            if bus not in found:
                found.append(bus)
        return found
    except nvml.NVMLError:
        return None
    finally:
        _ask(nvml, "nvmlShutdown")


def _named(nvml: Nvml, entry: str, handles: list[Any], by_uuid: Mapping[str, Any]) -> Any | None:
    """The GPU of an entry of CUDA_VISIBLE_DEVICES: an index, a prefix of a UUID, or a MIG slice."""
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-GPU-"):  # MIG-<UUID of the GPU>/<instance>/<instance>, before driver 470
        entry = entry.removeprefix("MIG-").split("/")[0]
    elif entry.startswith("MIG-"):
        mig = _ask(nvml, "nvmlDeviceGetHandleByUUID", entry)
        return None if mig is None else _ask(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", mig)
    matches = [handle for uuid, handle in by_uuid.items() if uuid.startswith(entry)] if entry else []
    return matches[0] if len(matches) == 1 else None


def _read(nvml: Nvml) -> Parts:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles.sort(key=lambda handle: _bus_id(nvml, handle))
    devices = tuple(_device(nvml, handle, f"gpu{i}") for i, handle in enumerate(handles))
    of = dict(zip((device.id for device in devices), handles, strict=True))
    near: dict[Pair, Nearness] = {}
    off: dict[str, str] = {}
    p2p_known = False
    for a, b in combinations(of, 2):
        level = _ask(nvml, "nvmlDeviceGetTopologyCommonAncestor", of[a], of[b])
        if level in _LEVELS:
            near[pair(a, b)] = _LEVELS[level]
        status = _ask(nvml, "nvmlDeviceGetP2PStatus", of[a], of[b], _READ_P2P)
        p2p_known = p2p_known or status is not None
        if status:
            off[f"{a} {b}"] = _P2P[status] if status < len(_P2P) else "unknown"
    facts: dict[str, Any] = {"sources": ["nvml"]}
    driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    if driver:
        facts["driver"] = _text(driver)
    if p2p_known:
        facts["p2p_off"] = off
    domains = {_nvlink_domain(nvml, handle) for handle in handles}
    if len(domains) == 1 and (domain := domains.pop()):
        facts["nvlink_domain"] = domain
    slices = {name: n for name, handle in of.items() if (n := _num_slices(nvml, handle)) is not None}
    if slices:
        facts["mig"] = slices
    return Parts(
        devices=devices,
        near=near,
        nvlinks=_nvlinks(nvml, devices, of),
        pcie_gb_per_s={name: figures for name, h in of.items() if (figures := _pcie(nvml, h)) is not None},
        facts=facts,
    )


def _device(nvml: Nvml, handle: Any, name: str) -> Device:
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    return Device(
        id=name,
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle) or ""),
        bus_id=_bus_id(nvml, handle),
        numa=_numa(nvml, handle),
        compute_capability=None if capability is None else ".".join(str(part) for part in capability),
        pci_id=_pci_id(nvml, handle),
    )


def _pci_id(nvml: Nvml, handle: Any) -> str | None:
    """Vendor and device; NVML writes the device first."""
    number = getattr(nvml.nvmlDeviceGetPciInfo(handle), "pciDeviceId", 0)
    return f"{number & 0xFFFF:04x}:{number >> 16:04x}" if number else None


def _nvlink_domain(nvml: Nvml, handle: Any) -> str | None:
    """The NVLink domain of a GPU whose NVSwitches join several hosts, as NCCL tells them apart; None: it is in none."""
    make = getattr(nvml, "c_nvmlGpuFabricInfo_v2_t", None)
    if make is None:
        return None
    info = make()
    done = _ask(nvml, "nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info))
    cluster = bytes(info.clusterUuid)
    if done is None or info.status != 0 or info.state != _FABRIC_COMPLETED or not any(cluster):
        return None
    return f"{cluster.hex()}.{info.cliqueId}"


def _numa(nvml: Nvml, handle: Any) -> int | None:
    """The NUMA node of a GPU; None where there are several."""
    words = _ask(nvml, "nvmlDeviceGetMemoryAffinity", handle, 4, 0)
    if words is None:
        return None
    nodes = [64 * i + bit for i, word in enumerate(words) for bit in range(64) if int(word) >> bit & 1]
    return nodes[0] if len(nodes) == 1 else None


def _pcie(nvml: Nvml, handle: Any) -> tuple[float, float] | None:
    """The bandwidth of the link, and that of the GPU. An idle GPU reduces its generation, never its lanes."""
    generation = _ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)  # of GPU and slot together
    lanes = _ask(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle)
    if not generation or not lanes:
        return None
    own_generation = _ask(nvml, "nvmlDeviceGetGpuMaxPcieLinkGeneration", handle) or generation
    most_lanes = _ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle) or lanes
    return nominal.pcie_gb_per_s(generation, lanes), nominal.pcie_gb_per_s(own_generation, most_lanes)


def _nvlinks(nvml: Nvml, devices: Iterable[Device], of: Mapping[str, Any]) -> dict[Pair, int]:
    buses = {device.bus_id: device.id for device in devices}
    links: dict[Pair, int] = {}
    for name, handle in of.items():
        mine: dict[Pair, int] = {}
        for number in range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", nominal.MOST_NVLINKS)):
            if not _is_up(nvml, handle, number):
                continue
            remote = _ask(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, number)
            other = None if remote is None else buses.get(bus_id(_text(remote.busId)))
            kind = _ask(nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
            if other is None and kind not in (_REMOTE_GPU, _REMOTE_CPU):
                other = NVSWITCH  # in a virtual machine a switch has no address
            if other is not None:
                mine[pair(name, other)] = mine.get(pair(name, other), 0) + 1
        links |= mine  # the other end has the same count
    return links


def _is_up(nvml: Nvml, handle: Any, number: int) -> bool:
    field = getattr(nvml, "NVML_FI_DEV_NVLINK_GET_STATE", None)
    if field is not None:  # Hopper and later
        values = _ask(nvml, "nvmlDeviceGetFieldValues", handle, [(field, number)])
        if values and values[0].nvmlReturn == 0:
            return bool(values[0].value.uiVal)
    return bool(_ask(nvml, "nvmlDeviceGetNvLinkState", handle, number))


def _num_slices(nvml: Nvml, handle: Any) -> int | None:
    """The number of MIG slices of a GPU; None where MIG is off."""
    mode = _ask(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return None
    most = _ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    return sum(_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, i) is not None for i in range(most))


def _bus_id(nvml: Nvml, handle: Any) -> str:
    return bus_id(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before nvidia-ml-py 11.515


def _ask(nvml: Nvml, function: str, *arguments: Any) -> Any:
    """Calls a function of NVML; None where this driver, GPU or nvidia-ml-py does not support it."""
    call: Callable[..., Any] | None = getattr(nvml, function, None)
    if call is None:
        return None
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None
