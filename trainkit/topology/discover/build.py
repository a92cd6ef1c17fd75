"""Builds a Host from its parts: PCIe switches, sockets, NVSwitches, and the links."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from trainkit.topology.cards import card_of
from trainkit.topology.discover import nominal
from trainkit.topology.discover.parts import NEARNESS, NVSWITCH, Nearness, Parts, pair
from trainkit.topology.topology import NETWORK, Device, Host, Link, LinkKind


def host_of(parts: Parts, name: str) -> Host:
    """The host called `name` with these parts, and their facts."""
    sockets = _sockets(parts)
    switches, pcie = _pcie(parts, sockets)
    nvswitches, nvlinks = _nvlinks(parts)
    names = [f"socket{i}" for i in range(len(sockets))]
    between = parts.socket_gb_per_s or nominal.socket_gb_per_s()
    wires = [nic_link(nic.id, nic.kind, parts.nic_gbit_per_s.get(nic.id)) for nic in parts.nics]
    facts = dict(parts.facts)
    if any(nic.id not in parts.nic_gbit_per_s for nic in parts.nics):
        facts["nic_speed"] = "unknown"
    facts |= _of_cards(parts)
    return Host(
        name=name,
        devices=parts.devices,
        nics=parts.nics,
        switches=(*nvswitches, *switches, *names),
        links=(*nvlinks, *pcie, *(link(a, b, "socket", between) for a, b in combinations(names, 2)), *wires),
        facts=facts,
    )


def _of_cards(parts: Parts) -> dict[str, Any]:
    """Facts that follow from the models of the GPUs: figures that had to be assumed, and peer access that is off."""
    facts: dict[str, Any] = {}
    linked = {part for ends in parts.nvlinks for part in ends} if parts.nvlink_gb_per_s is None else set()
    assumed = {
        d.id: nominal.assumed(d, pcie=d.id not in parts.pcie_gb_per_s, nvlink=d.id in linked) for d in parts.devices
    }
    if any(assumed.values()):
        facts["assumed"] = {name: figures for name, figures in assumed.items() if figures}
    models = [card_of(device) for device in parts.devices]
    if "p2p_off" not in parts.facts and any(card is not None and card.peer_access == "off" for card in models):
        facts["p2p"] = False
    return facts


def link(a: str, b: str, kind: LinkKind, gb_per_s: float, rated_gb_per_s: float | None = None) -> Link:
    """A link with nominal figures; a rated bandwidth is kept where it differs."""
    rated = rated_gb_per_s if rated_gb_per_s != gb_per_s else None
    return Link(
        a=a,
        b=b,
        kind=kind,
        bandwidth_gb_per_s=round(gb_per_s, 4),
        latency_us=nominal.LATENCY_US[kind],
        rated_gb_per_s=rated,
    )


def nic_link(nic: str, kind: str, gbit_per_s: float | None, *, by_sockets: bool = False) -> Link:
    """The link of a network card to NETWORK; `by_sockets`: with the latency of TCP."""
    rate = gbit_per_s or nominal.UNKNOWN_NIC_GBIT[kind]
    latency_us = nominal.TCP_NIC_LATENCY_US if by_sockets else nominal.LATENCY_US["nic"]
    bandwidth = round(rate * nominal.NIC_GB_PER_S_PER_GBIT, 4)
    return Link(a=nic, b=NETWORK, kind="nic", bandwidth_gb_per_s=bandwidth, latency_us=latency_us)


# -- NVLink --------------------------------------------------------------------------------------------------------


def _nvlinks(parts: Parts) -> tuple[list[str], list[Link]]:
    each = parts.nvlink_gb_per_s or _usual_nvlink(parts.devices)
    direct = {ends: count for ends, count in parts.nvlinks.items() if NVSWITCH not in ends}
    to_switch = {d.id: n for d in parts.devices if (n := parts.nvlinks.get(pair(d.id, NVSWITCH)))}
    islands: list[dict[str, int]] = [to_switch] if to_switch else []
    links: list[Link] = []
    for members in _joined([device.id for device in parts.devices], direct):
        counts = {direct.get(pair(a, b), 0) for a, b in combinations(members, 2)}
        most = max(counts, default=0)
        if len(counts) == 1 and most * (len(members) - 1) > nominal.MOST_NVLINKS:
            islands.append(dict.fromkeys(members, most))
            continue
        known = [(a, b, direct[pair(a, b)]) for a, b in combinations(members, 2) if pair(a, b) in direct]
        links += [link(a, b, "nvlink", n * each) for a, b, n in known]
    names = [NVSWITCH] if len(islands) == 1 else [f"{NVSWITCH}{i}" for i in range(len(islands))]
    for name, island in zip(names, islands, strict=True):
        links += [link(device, name, "nvswitch", count * each) for device, count in island.items()]
    return names, links


def _usual_nvlink(devices: Sequence[Device]) -> float:
    figures = [nominal.nvlink_gb_per_s(device) or nominal.ANY_NVLINK_GB_PER_S for device in devices]
    return min(figures, default=nominal.ANY_NVLINK_GB_PER_S)


# -- PCIe ------------------------------------------------------------------------------------------------------------


def _sockets(parts: Parts) -> list[list[str]]:
    """The parts of each socket, sockets in the order of their NUMA nodes.

    The NUMA nodes of two parts override a SYS between them: on many machines SYS is between root ports of one socket.
    Parts for which neither is known are on the first socket.
    """
    numa = {part.id: part.numa for part in parts.everything if part.numa is not None}
    near = [ends for ends, how in parts.near.items() if how != "SYS"]
    apart = {part for ends, how in parts.near.items() if how == "SYS" for part in ends}
    first_of: dict[int, str] = {}
    same = [(first_of.setdefault(node, part), part) for part, node in numa.items()]
    groups = _joined([part.id for part in parts.everything], [*near, *same])
    groups.sort(key=lambda group: min((float(numa[part]) for part in group if part in numa), default=float("inf")))
    placed = [group for group in groups if any(part in numa or part in apart for part in group)]
    homeless = [part for group in groups if group not in placed for part in group]
    first = [*(placed[0] if placed else ()), *homeless]
    return [socket for socket in (first, *placed[1:]) if socket]


def _pcie(parts: Parts, sockets: list[list[str]]) -> tuple[list[str], list[Link]]:
    switches: list[str] = []
    links: list[Link] = []
    usual = _usual_pcie(parts.devices)

    def attach(lower: str, upper: str, members: Iterable[str]) -> None:
        carried = [parts.pcie_gb_per_s.get(part, (usual, usual)) for part in members]
        now = max(figures[0] for figures in carried)
        # The rated bandwidth is known for devices and cards, not for switches.
        links.append(link(lower, upper, "pcie", now, carried[0][1] if lower not in switches else now))

    def behind_switch() -> str:
        name = f"pcie{len(switches)}"
        switches.append(name)
        return name

    for i, socket in enumerate(sockets):
        for branch in _groups(parts, socket, "PXB"):
            leaves = _groups(parts, branch, "PIX")
            top = f"socket{i}" if len(leaves) == 1 else behind_switch()
            if len(leaves) > 1:
                attach(top, f"socket{i}", branch)
            for leaf in leaves:
                foot = top if len(leaf) == 1 else behind_switch()
                if foot != top:
                    attach(foot, top, leaf)
                for part in leaf:
                    attach(part, foot, [part])
    return switches, links


def _usual_pcie(devices: Sequence[Device]) -> float:
    assumed = nominal.pcie_gb_per_s(nominal.ASSUMED_PCIE_GENERATION)
    return min((nominal.slot_gb_per_s(device) for device in devices), default=assumed)


def _groups(parts: Parts, members: list[str], level: Nearness) -> list[list[str]]:
    enough = NEARNESS[: NEARNESS.index(level) + 1]
    return _joined(members, [ends for ends, how in parts.near.items() if how in enough])


def _joined(members: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
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
