"""Parts: the devices and network cards of a host as one source describes them. Several are merged into a Host."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from trainkit.topology.topology import Device, Nic

Nearness = Literal["PIX", "PXB", "PHB", "NODE", "SYS"]
NEARNESS: tuple[Nearness, ...] = get_args(Nearness)
"""The levels of nvidia-smi, nearest first: one PCIe switch, several, one host bridge, one NUMA node, and across
sockets."""

NVSWITCH = "nvswitch"
T = TypeVar("T")
Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one host and the known links between them; the keys of pairs are written by `pair`.

    Args:
        devices: GPUs.
        nics: network cards.
        near: the distance of two parts over PCIe.
        nvlinks: the number of NVLinks between two devices, or between a device and NVSWITCH.
        nvlinks_known: whether a GPU without any in `nvlinks` has none; otherwise they may not have been shown.
        nvlink_gb_per_s: of one NVLink; None: unknown.
        pcie_gb_per_s: the bandwidth of a part's PCIe link, and the rated one.
        nic_gbit_per_s: the rate of a network card.
        socket_gb_per_s: between two sockets; None: unknown.
        facts: of the host.
    """

    devices: tuple[Device, ...] = ()
    nics: tuple[Nic, ...] = ()
    near: Mapping[Pair, Nearness] = field(default_factory=dict)
    nvlinks: Mapping[Pair, int] = field(default_factory=dict)
    nvlinks_known: bool = False
    nvlink_gb_per_s: float | None = None
    pcie_gb_per_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    nic_gbit_per_s: Mapping[str, float] = field(default_factory=dict)
    socket_gb_per_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def filled_by(self, other: "Parts") -> "Parts":
        """Adds the information of another source.

        Parts are the same where their bus ids or names are; devices without bus ids where their ids are. Network cards
        of `other` are added. Its devices are added only where there are none here, because a process does not see all
        GPUs of a host.
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
            # A source with some NVLinks has all of them.
            nvlinks=dict(self.nvlinks) if self.nvlinks or self.nvlinks_known else known(other.nvlinks),
            nvlinks_known=self.nvlinks_known or other.nvlinks_known,
            nvlink_gb_per_s=self.nvlink_gb_per_s or other.nvlink_gb_per_s,
            pcie_gb_per_s=of_parts(other.pcie_gb_per_s) | dict(self.pcie_gb_per_s),
            nic_gbit_per_s=of_parts(other.nic_gbit_per_s) | dict(self.nic_gbit_per_s),
            socket_gb_per_s=self.socket_gb_per_s or other.socket_gb_per_s,
            facts=dict(other.facts) | dict(self.facts) | {"sources": self.sources + other.sources},
        )

    def placed_by(self, file: "Parts") -> "Parts":
        """Takes from a file where the parts are on PCI and what is missing, as `filled_by` does.

        Args:
            file: NCCL's XML, which overrides the distances, NUMA nodes and PCIe links that a guest sees.
        """
        names, _ = self._same(file)
        numa = {names[part.id]: part.numa for part in file.everything if part.id in names and part.numa is not None}
        apart = {pair(names[a], names[b]) for a, b in file.near if a in names and b in names}
        linked = {names[part] for part in file.pcie_gb_per_s if part in names}
        base = replace(
            self,
            devices=tuple(replace(d, numa=numa.get(d.id, d.numa)) for d in self.devices),
            nics=tuple(replace(n, numa=numa.get(n.id, n.numa)) for n in self.nics),
            near={ends: how for ends, how in self.near.items() if ends not in apart},
            pcie_gb_per_s={part: v for part, v in self.pcie_gb_per_s.items() if part not in linked},
        )
        return base.filled_by(file)

    @property
    def everything(self) -> tuple[Device | Nic, ...]:
        """Devices and network cards."""
        return (*self.devices, *self.nics)

    @property
    def sources(self) -> list[str]:
        """The names of the sources."""
        return list(self.facts.get("sources", ()))

    def only(self, devices: Iterable[str]) -> "Parts":
        """These parts with only the devices whose ids are in `devices`, and the pairs of these."""
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
        """The ids here of the parts of `other`, and its network cards that are missing here, with new ids."""
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
        slots = {nic.bus_id: nic.id for nic in reversed(self.nics) if nic.bus_id}
        added: list[Nic] = []
        for nic in other.nics:
            here = (cards if nic.name else slots).get(nic.name or nic.bus_id or "")
            here = here or unnamed.pop(nic.bus_id or "", None)
            if here is None:
                here = f"nic{len(self.nics) + len(added)}"
                added.append(replace(nic, id=here))
            names[nic.id] = here
        return names, tuple(added)


def pair(a: str, b: str) -> Pair:
    """The key of a mapping for two ids in any order."""
    return (a, b) if a <= b else (b, a)


def joined(members: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups the members that `pairs` connect, in their order."""
    inside = set(members)
    root = {member: member for member in members}

    def top(member: str) -> str:
        while root[member] != member:
            member = root[member]
        return member

    for a, b in pairs:
        if a in inside and b in inside:
            root[top(b)] = top(a)
    groups: dict[str, list[str]] = {}
    for member in members:
        groups.setdefault(top(member), []).append(member)
    return list(groups.values())


def bus_id(text: str) -> str:
    """Normalizes a PCI bus id to the format of sysfs; other text is returned unchanged.

    Example:
        >>> bus_id("00000000:3B:00.0")
        '0000:3b:00.0'
    """
    domain, _, rest = text.strip().lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}" if rest else text
    except ValueError:
        return text


def nearness(a: tuple[str, ...], b: tuple[str, ...], *, one_bridge: bool, one_numa: bool) -> Nearness:
    """The distance of two parts.

    Args:
        a: the PCIe switches above one part, from the host bridge down.
        b: those above the other part.
        one_bridge: whether they are below one host bridge.
        one_numa: whether they are on one NUMA node.
    """
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
    given = {key: value for key, value in vars(theirs).items() if value not in (None, "", "unknown")}
    own = {key: value for key, value in vars(mine).items() if value not in (None, "", "unknown")}
    return type(mine)(**(vars(mine) | given | own))
