"""Builds a Host from its parts: PCIe switches, sockets, NVSwitches, and the links."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from trainkit.topology.cards import card_of
from trainkit.topology.discover import nominal, nvlinks
from trainkit.topology.discover.nics import nic_link
from trainkit.topology.discover.parts import NEARNESS, NVSWITCH, Nearness, Parts, joined, pair
from trainkit.topology.topology import Device, Host, Link, LinkKind


def host_of(parts: Parts, name: str) -> Host:
    """The host called `name` with these parts, and their facts."""
    sockets = _sockets(parts)
    switches, pcie = _pcie(parts, sockets)
    nvswitches, direct = _nvlinks(parts)
    names = [f"socket{i}" for i in range(len(sockets))]
    between = parts.socket_gb_per_s or nominal.socket_gb_per_s()
    wires = [nic_link(nic.id, parts.nic_gbit_per_s.get(nic.id)) for nic in parts.nics]
    facts = dict(parts.facts)
    if down := nvlinks.missing(parts):
        facts["nvlinks_down"] = down
    if nvlinks.may_be_hidden(parts):
        facts["nvlinks"] = "unknown"
    if any(nic.id not in parts.nic_gbit_per_s for nic in parts.nics):
        facts["nic_speed"] = "unknown"
    facts |= _of_cards(parts)
    return Host(
        name=name,
        devices=tuple(replace(d, compute_capability=nominal.compute_capability(d)) for d in parts.devices),
        nics=parts.nics,
        switches=(*nvswitches, *switches, *names),
        links=(*direct, *pcie, *(link(a, b, "socket", between) for a, b in combinations(names, 2)), *wires),
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
    if "p2p_off" in parts.facts:
        if not _reached_by_peers(parts):
            facts["p2p"] = False
    elif any(card is not None and card.peer_access == "off" for card in models):
        facts["p2p"] = False
    return facts


def _reached_by_peers(parts: Parts) -> bool:
    """Whether pairs with access to each other's memory connect all GPUs, so that rings need no other pair."""
    off = {pair(*ends.split()) for ends in parts.facts["p2p_off"]}
    ids = [device.id for device in parts.devices]
    return len(joined(ids, [ends for ends in combinations(ids, 2) if pair(*ends) not in off])) < 2


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


# -- NVLink --------------------------------------------------------------------------------------------------------


def _nvlinks(parts: Parts) -> tuple[list[str], list[Link]]:
    each = parts.nvlink_gb_per_s or _usual_nvlink(parts.devices)
    switched, direct = nvlinks.islands(parts)
    names = [NVSWITCH] if len(switched) == 1 else [f"{NVSWITCH}{i}" for i in range(len(switched))]
    links = [link(a, b, "nvlink", count * each) for (a, b), count in direct.items()]
    for name, island in zip(names, switched, strict=True):
        most = max(island.values()) * each
        links += [link(device, name, "nvswitch", count * each, most) for device, count in island.items()]
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
    groups = joined([part.id for part in parts.everything], [*near, *same])
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
    return joined(members, [ends for ends, how in parts.near.items() if how in enough])
