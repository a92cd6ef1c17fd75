"""Reads /sys and /proc: PCI devices and the switches above them, network cards, and the hypervisor."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from trainkit.topology.discover import acs, build, nominal
from trainkit.topology.discover.parts import Nearness, Pair, Parts, nearness, pair
from trainkit.topology.topology import Device, Host, Nic

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
_GPU_CLASSES = ("0x0300", "0x0302")
_NVIDIA = "0x10de"
# Text in the DMI table of a virtual machine -> the name of its hypervisor.
_HYPERVISORS = {
    "Amazon EC2": "Amazon EC2",
    "Google": "Google Cloud",
    "Microsoft Corporation": "Hyper-V",
    "Alibaba Cloud": "Alibaba Cloud",
    "Tencent Cloud": "Tencent Cloud",
    "OpenStack": "OpenStack",
    "QEMU": "QEMU",
    "Red Hat": "KVM",
    "VMware": "VMware",
    "Xen": "Xen",
    "innotek": "VirtualBox",
}


def read_sysfs(root: Path = Path("/sys"), proc: Path = Path("/proc")) -> Host | None:
    """Reads the NVIDIA GPUs and network cards of this host; None where there is no GPU."""
    parts = read(root, proc)
    return build.host_of(parts, name="sysfs") if parts.devices else None


def read(root: Path = Path("/sys"), proc: Path = Path("/proc")) -> Parts:
    """Reads the parts of this host; what cannot be read is missing in the result."""
    gpus = list(_gpus(root))
    cards = list(_nics(root))
    paths = {part.id: path for part, path, _ in [*gpus, *cards] if path is not None}
    numa = {part.id: part.numa for part, _, _ in [*gpus, *cards]}
    near: dict[Pair, Nearness] = {}
    for a, b in combinations(paths, 2):
        one_bridge = _bridge(paths[a]) == _bridge(paths[b])
        if one_bridge or (numa[a] is not None and numa[b] is not None):
            above = _switches(paths[a]), _switches(paths[b])
            near[pair(a, b)] = nearness(*above, one_bridge=one_bridge, one_numa=numa[a] == numa[b])
    pcie = {name: figures for name, path in paths.items() if (figures := _pcie(path)) is not None}
    facts: dict[str, Any] = {"sources": ["sysfs"]}
    if (hypervisor := read_hypervisor(root, proc)) is not None:
        facts["hypervisor"] = hypervisor
    if (vendor := re.search(r"^vendor_id\s*:\s*(\S+)", _text(proc / "cpuinfo"), re.MULTILINE)) is not None:
        facts["cpu"] = vendor[1]
    if gpus:
        facts["iommu"] = any(_listed(root / "class/iommu"))
        modules = [root / "module/nvidia_peermem", root / "module/nv_peer_mem"]
        facts["peermem"] = any(module.is_dir() for module in modules)
        # Of a switch: with a root port alone above it, a GPU has nothing beside it that could be reached more directly.
        ports = {path.parent for _, path, _ in gpus if path is not None and _switches(path)}
        if (redirected := acs.is_on(sorted(ports))) is not None:
            facts["acs"] = redirected
    return Parts(
        devices=tuple(part for part, _, _ in gpus),
        nics=tuple(part for part, _, _ in cards),
        near=near,
        pcie_gb_per_s=pcie,
        nic_gbit_per_s={part.id: rate for part, _, rate in cards if rate is not None},
        socket_gb_per_s=_socket(proc),
        facts=facts,
    )


def read_hypervisor(root: Path = Path("/sys"), proc: Path = Path("/proc")) -> str | None:
    """The name of this machine's hypervisor; None for a physical machine, and where it is unknown."""
    info = _text(proc / "cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    if flags is not None and "hypervisor" not in flags[1].split():
        return None
    words = " ".join(_text(root / "class/dmi/id" / name) for name in ("sys_vendor", "product_name", "bios_vendor"))
    named = next((name for part, name in _HYPERVISORS.items() if part in words), None)
    if flags is None:  # not x86: only the vendor is known, which is the same for its physical machines
        return None if ".metal" in words else named
    return named or _text(root / "hypervisor/type") or "a hypervisor"


def socket_interface(environment: Mapping[str, str] | None = None, proc: Path = Path("/proc")) -> str | None:
    """The network interface of gloo: $GLOO_SOCKET_IFNAME, otherwise that of the default route; None: there is none."""
    environment = os.environ if environment is None else environment
    given = environment.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if given:
        return given
    routes = []
    for line in _text(proc / "net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000":
            routes.append((int(words[6]), words[0]))
    return min(routes)[1] if routes else None


def interface_gbit(name: str, root: Path = Path("/sys")) -> float | None:
    """The rate of a network interface in Gb/s; None where its driver does not report it, as in virtual machines."""
    text = _text(root / "class/net" / name / "speed")
    return int(text) / 1000 if text.isdecimal() and int(text) > 0 else None


def interface_place(name: str, root: Path = Path("/sys")) -> tuple[str | None, int | None]:
    """The PCI bus id and the NUMA node of a network interface; None where it has none."""
    path = _pci_path(root / "class/net" / name / "device")
    return (None, None) if path is None else (path.name, _numa(path))


# -- devices -------------------------------------------------------------------------------------------------

_Found = tuple[Any, Path | None, float | None]  # the part, its PCI device, its rate in Gb/s


def _gpus(root: Path) -> Iterator[_Found]:
    number = 0
    for entry in _listed(root / "bus/pci/devices"):
        if _text(entry / "vendor") == _NVIDIA and _text(entry / "class").startswith(_GPU_CLASSES):
            path = entry.resolve()
            model = f"{_NVIDIA}:{_text(entry / 'device')}".replace("0x", "") if _text(entry / "device") else None
            yield Device(id=f"gpu{number}", bus_id=path.name, numa=_numa(path), pci_id=model), path, None
            number += 1


def _nics(root: Path) -> Iterator[_Found]:
    """The active ports of InfiniBand and RoCE cards, then the active Ethernet cards that are none of these."""
    number, taken = 0, set()
    for card in _listed(root / "class/infiniband"):
        path = _pci_path(card / "device")
        for port in _listed(card / "ports"):
            rate = re.match(r"([\d.]+) Gb/sec", _text(port / "rate"))
            if not _text(port / "state").startswith("4"):  # ACTIVE
                continue
            several = sum(1 for _ in _listed(card / "ports")) > 1
            name = f"{card.name}:{port.name}" if several else card.name
            bus, numa = (None, None) if path is None else (path.name, _numa(path))
            nic = Nic(id=f"nic{number}", name=name, kind="infiniband", bus_id=bus, numa=numa)
            yield nic, path, None if rate is None else float(rate[1])
            number += 1
            taken.add(bus)
    for interface in _listed(root / "class/net"):
        path = _pci_path(interface / "device")
        if path is None or path.name in taken or _text(interface / "operstate") not in ("up", "unknown"):
            continue
        nic = Nic(id=f"nic{number}", name=interface.name, kind="ethernet", bus_id=path.name, numa=_numa(path))
        yield nic, path, interface_gbit(interface.name, root)
        number += 1


# -- PCI ---------------------------------------------------------------------------------------------------------------


def _pci_path(link: Path) -> Path | None:
    """The PCI device behind a `device` link; for a virtio card it is the device above."""
    if not link.exists():
        return None
    path = link.resolve()
    return next((p for p in (path, *path.parents) if _PCI_ADDRESS.match(p.name)), None)


def _above(path: Path) -> list[str]:
    """The PCI bridges above a device, from its root port down."""
    return [part for part in path.parts[:-1] if _PCI_ADDRESS.match(part)]


def _switches(path: Path) -> tuple[str, ...]:
    """The upstream ports of the PCIe switches above a device.

    The bridges above it are its root port, then for each switch an upstream and a downstream port.
    """
    return tuple(_above(path)[1::2])


def _bridge(path: Path) -> str:
    return next((part for part in path.parts if part.startswith("pci")), "")


def _numa(path: Path) -> int | None:
    text = _text(path / "numa_node")
    return int(text) if text.isdecimal() else None  # -1: unknown, as on machines with one node


def _pcie(path: Path) -> tuple[float, float] | None:
    """The bandwidth of the link, and that of the device.

    An idle GPU reduces its speed, so the speed is the maximum of device and port, and the lanes are those in use.
    """
    own = nominal.pcie_generation_of(_text(path / "max_link_speed"))
    lanes, most = _text(path / "current_link_width"), _text(path / "max_link_width")
    if own is None or not lanes.isdecimal() or int(lanes) in (0, 255) or not most.isdecimal():
        return None
    port = nominal.pcie_generation_of(_text(path.parent / "max_link_speed")) or own
    return nominal.pcie_gb_per_s(min(own, port), int(lanes)), nominal.pcie_gb_per_s(own, int(most))


def _socket(proc: Path) -> float | None:
    found = re.findall(r"^(vendor_id|cpu family|model)\s*:\s*(\S+)", _text(proc / "cpuinfo"), re.MULTILINE)
    words = dict(reversed(found))
    if not {"vendor_id", "cpu family", "model"} <= words.keys():
        return None
    return nominal.socket_gb_per_s(words["vendor_id"], int(words["cpu family"]), int(words["model"]))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _listed(path: Path) -> Iterable[Path]:
    try:
        return sorted(
            path.iterdir(), key=lambda entry: [int(p) if p.isdecimal() else p for p in _natural_key(entry.name)]
        )
    except OSError:
        return ()


def _natural_key(name: str) -> list[str]:
    """Splits a name so that mlx5_10 sorts after mlx5_9. PCI addresses are not split."""
    return [name] if _PCI_ADDRESS.match(name) else re.split(r"(\d+)", name)
