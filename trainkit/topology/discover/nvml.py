"""NVML, the library below nvidia-smi, through nvidia-ml-py (`import pynvml`), which need not be installed."""

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


def read_nvml(nvml: Nvml = None) -> Host | None:
    """The GPUs of this host and the links between them; None where NVML cannot be read. nvml: in the module's place."""
    parts, _ = read(nvml)
    return None if parts is None else build.host_of(parts, name="nvml")


def read(nvml: Nvml = None) -> tuple[Parts | None, str]:
    """All GPUs that NVML shows to this process, in the order of their bus ids, or None and why there are none."""
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
    """Bus ids of the GPUs that CUDA shows to a process of this environment, in CUDA's order; None: all of them.

    A slice of a MIG GPU stands for the GPU that it is of. As CUDA does, it stops at the first entry that it does not
    know. Indices are NVML's: on a host with GPUs of several kinds CUDA counts so with CUDA_DEVICE_ORDER=PCI_BUS_ID.
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
    """The GPU that an entry of CUDA_VISIBLE_DEVICES means: an index, the beginning of a UUID, or a MIG slice."""
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-GPU-"):  # MIG-<UUID of the GPU>/<instance>/<instance>, before driver 470
        entry = entry.removeprefix("MIG-").split("/")[0]
    elif entry.startswith("MIG-"):
        piece = _ask(nvml, "nvmlDeviceGetHandleByUUID", entry)
        return None if piece is None else _ask(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", piece)
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
    )


def _numa(nvml: Nvml, handle: Any) -> int | None:
    """The one NUMA node whose memory is near; None where there are several."""
    words = _ask(nvml, "nvmlDeviceGetMemoryAffinity", handle, 4, 0)
    if words is None:
        return None
    nodes = [64 * i + bit for i, word in enumerate(words) for bit in range(64) if int(word) >> bit & 1]
    return nodes[0] if len(nodes) == 1 else None


def _pcie(nvml: Nvml, handle: Any) -> tuple[float, float] | None:
    """What the link carries and what the GPU could. An idle GPU lowers its generation, never its lanes."""
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
                other = NVSWITCH  # in a guest a switch has no address
            if other is not None:
                mine[pair(name, other)] = mine.get(pair(name, other), 0) + 1
        links |= mine  # the other end tells the same
    return links


def _is_up(nvml: Nvml, handle: Any, number: int) -> bool:
    field = getattr(nvml, "NVML_FI_DEV_NVLINK_GET_STATE", None)
    if field is not None:  # Hopper and later
        values = _ask(nvml, "nvmlDeviceGetFieldValues", handle, [(field, number)])
        if values and values[0].nvmlReturn == 0:
            return bool(values[0].value.uiVal)
    return bool(_ask(nvml, "nvmlDeviceGetNvLinkState", handle, number))


def _num_slices(nvml: Nvml, handle: Any) -> int | None:
    """How many MIG slices a GPU is cut into; None where it is whole."""
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
    """The answer; None where this driver, GPU or nvidia-ml-py does not know the question."""
    call: Callable[..., Any] | None = getattr(nvml, function, None)
    if call is None:
        return None
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None
