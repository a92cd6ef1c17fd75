"""Parts: what one source tells about a host. Each source knows some of it; together they make a Host."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from trainkit.topology.topology import Device, Nic

Nearness = Literal["PIX", "PXB", "PHB", "NODE", "SYS"]
NEARNESS: tuple[Nearness, ...] = get_args(Nearness)
"""The nearest first, in nvidia-smi's words: behind one PCIe switch, behind several, one host bridge, one NUMA node,
and across sockets."""

NVSWITCH = "nvswitch"
T = TypeVar("T")
Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one host and what is known of the ways between them; pairs are written by `pair`.

    near: how near two parts are by PCIe.
    nvlinks: how many join two devices, or (device, NVSWITCH).
    pcie_gb_per_s: what a part's own PCIe link carries, and what it could.
    nic_gbit_per_s: the rate of a network card's wire.
    socket_gb_per_s: between two sockets; None where no source knows the processor.
    """

    devices: tuple[Device, ...] = ()
    nics: tuple[Nic, ...] = ()
    near: Mapping[Pair, Nearness] = field(default_factory=dict)
    nvlinks: Mapping[Pair, int] = field(default_factory=dict)
    nvlink_gb_per_s: float | None = None
    pcie_gb_per_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    nic_gbit_per_s: Mapping[str, float] = field(default_factory=dict)
    socket_gb_per_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def filled_by(self, other: "Parts") -> "Parts":
        """These parts, with what `other` knows beside.

        Parts are the same where their bus ids are, or their names; devices without bus ids where their ids are.
        Devices that only `other` has are left out unless there are none here: a process may not see all GPUs of a
        host. Network cards are added.
        """
        names, added = self._same(other)
        devices = tuple(_filled(d, _find(other.devices, names, d.id)) for d in self.devices)
        nics = tuple(_filled(n, _find(other.nics, names, n.id)) for n in self.nics)

        def known(pairs: Mapping[Pair, T]) -> dict[Pair, T]:
            here = names | {NVSWITCH: NVSWITCH}
            return {pair(here[a], here[b]): v for (a, b), v in pairs.items() if a in here and b in here}

        def of_parts(values: Mapping[str, T]) -> dict[str, T]:
            return {names[part]: value for part, value in values.items() if part in names}

        return Parts(
            devices=devices or other.devices,
            nics=nics + added,
            near=known(other.near) | dict(self.near),
            # A source that knows some NVLinks knows them all.
            nvlinks=dict(self.nvlinks) or known(other.nvlinks),
            nvlink_gb_per_s=self.nvlink_gb_per_s or other.nvlink_gb_per_s,
            pcie_gb_per_s=of_parts(other.pcie_gb_per_s) | dict(self.pcie_gb_per_s),
            nic_gbit_per_s=of_parts(other.nic_gbit_per_s) | dict(self.nic_gbit_per_s),
            socket_gb_per_s=self.socket_gb_per_s or other.socket_gb_per_s,
            facts=dict(other.facts) | dict(self.facts) | {"sources": self.sources + other.sources},
        )

    @property
    def everything(self) -> tuple[Device | Nic, ...]:
        return (*self.devices, *self.nics)

    @property
    def sources(self) -> list[str]:
        return list(self.facts.get("sources", ()))

    def only(self, devices: Iterable[str]) -> "Parts":
        """These parts without the devices whose ids are not among `devices`; pairs with them are left out too."""
        kept = set(devices)
        gone = {device.id for device in self.devices} - kept

        def known(pairs: Mapping[Pair, T]) -> dict[Pair, T]:
            return {ends: value for ends, value in pairs.items() if not gone & set(ends)}

        return replace(
            self,
            devices=tuple(device for device in self.devices if device.id in kept),
            near=known(self.near),
            nvlinks=known(self.nvlinks),
        )

    def _same(self, other: "Parts") -> tuple[dict[str, str], tuple[Nic, ...]]:
        """What the parts of `other` are called here, and its network cards that are not here, under free ids."""
        names: dict[str, str] = {}
        buses = {device.bus_id: device.id for device in self.devices if device.bus_id}
        ids = {device.id for device in self.devices}
        for device in other.devices:
            if not self.devices:
                names[device.id] = device.id
            elif device.bus_id in buses:
                names[device.id] = buses[device.bus_id]
            elif not (device.bus_id and buses) and device.id in ids:
                names[device.id] = device.id
        cards = {nic.name: nic.id for nic in self.nics if nic.name}
        unnamed = {nic.bus_id: nic.id for nic in self.nics if nic.bus_id and not nic.name}
        added: list[Nic] = []
        for nic in other.nics:
            here = cards.get(nic.name) or unnamed.pop(nic.bus_id or "", None)
            if here is None:
                here = f"nic{len(self.nics) + len(added)}"
                added.append(replace(nic, id=here))
            names[nic.id] = here
        return names, tuple(added)


def pair(a: str, b: str) -> Pair:
    """The two ids as the key of a mapping: the same whichever comes first."""
    return (a, b) if a <= b else (b, a)


def bus_id(text: str) -> str:
    """A PCI bus id as sysfs writes it: `00000000:3B:00.0` is `0000:3b:00.0`. Other text stays as it is."""
    domain, _, rest = text.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}" if rest else text
    except ValueError:
        return text


def nearness(a: tuple[str, ...], b: tuple[str, ...], *, one_bridge: bool, one_numa: bool) -> Nearness:
    """Of two parts, by the PCIe switches above each, from the host bridge down."""
    if a and a == b:
        return "PIX"
    if a and b and a[0] == b[0]:
        return "PXB"
    if one_bridge:
        return "PHB"
    return "NODE" if one_numa else "SYS"


def _find(parts: Iterable[T], names: Mapping[str, str], name: str) -> T | None:
    return next((part for part in parts if names.get(part.id) == name), None)  # type: ignore[attr-defined]


def _filled(mine: T, theirs: T | None) -> T:
    if theirs is None:
        return mine
    given = {key: value for key, value in vars(theirs).items() if value not in (None, "")}
    own = {key: value for key, value in vars(mine).items() if value not in (None, "")}
    return type(mine)(**(given | own))
