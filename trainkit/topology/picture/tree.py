"""The parts of a host as trees: a socket, the PCIe switches below it, and the devices below those."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from trainkit.topology.topology import NETWORK, Host, Link, Topology


@dataclass(frozen=True)
class Node:
    """One vertex of a tree.

    Args:
        name: of the vertex.
        link: to the vertex above; None at the top.
        below: the vertices below.
    """

    name: str
    link: Link | None = None
    below: list["Node"] = field(default_factory=list)

    def leaves(self) -> Iterator["Node"]:
        """The vertices below without any below them."""
        if not self.below:
            yield self
        for node in self.below:
            yield from node.leaves()


def trees(host: Host) -> list[Node]:
    """The trees of a host: sockets first, then the other vertices; NVSwitches are in none."""
    at: dict[str, list[tuple[str, Link]]] = {}
    for link in host.links:
        if link.kind in ("pcie", "loopback") and NETWORK not in (link.a, link.b):
            at.setdefault(link.a, []).append((link.b, link))
            at.setdefault(link.b, []).append((link.a, link))
    parts = [*host.switches, *(d.id for d in host.devices), *(n.id for n in host.nics)]
    rest = [name for name in parts if name not in nvswitches(host)]
    nodes: dict[str, Node] = {}
    roots: list[Node] = []

    def grow(tops: Iterable[str]) -> None:
        fresh = [Node(name) for name in tops]
        roots.extend(fresh)
        nodes.update({node.name: node for node in fresh})
        waiting = list(fresh)
        while waiting:
            node = waiting.pop(0)
            for name, link in at.get(node.name, ()):
                if name not in nodes:
                    nodes[name] = Node(name, link)
                    node.below.append(nodes[name])
                    waiting.append(nodes[name])
            node.below.sort(key=lambda child: _order(host, child))

    grow(sorted((name for name in rest if name.startswith("socket")), key=natural))
    while left := [name for name in rest if name not in nodes]:
        switches = [name for name in left if name in host.switches]
        grow([max(switches, key=lambda name: len(at.get(name, ())))] if switches else left[:1])
    return roots


def nvswitches(host: Host) -> list[str]:
    """The NVSwitches of `host`."""
    ends = {end for link in host.links if link.kind == "nvswitch" for end in (link.a, link.b)}
    return [name for name in host.switches if name in ends]


def other(link: Link, end: str) -> str:
    """The other end of a link."""
    return link.b if link.a == end else link.a


def wire(host: Host, nic: str) -> Link | None:
    """The link of a network card to the network."""
    return next((link for link in host.links if {link.a, link.b} == {nic, NETWORK}), None)


def families(topology: Topology) -> list[list[int]]:
    """Groups the indices of equal hosts, in the order of their first."""
    found: dict[str, list[int]] = {}
    for number, host in enumerate(topology.hosts):
        used = tuple(place.device for place in topology.places if place.host == number)
        plain = replace(host, name="", facts={}, devices=tuple(replace(d, bus_id=None) for d in host.devices))
        found.setdefault(repr((plain, sorted(used))), []).append(number)
    return list(found.values())


def ranks(topology: Topology, host: int) -> dict[str, list[int]]:
    """The ranks on each device of a host."""
    found: dict[str, list[int]] = {}
    for rank, place in enumerate(topology.places):
        if place.host == host:
            found.setdefault(place.device, []).append(rank)
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts gpu10 after gpu9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def short(names: Sequence[str]) -> str:
    """Names as ranges.

    Example:
        >>> short(["gpu0", "gpu1", "gpu2", "gpu5"])
        'gpu0-2, gpu5'
    """
    runs: list[list[str]] = []
    for name in sorted(names, key=natural):
        stem, number = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
        last = re.fullmatch(r"(.*?)(\d*)", runs[-1][-1]).groups() if runs else None  # type: ignore[union-attr]
        if number and last and last[0] == stem and last[1] and int(last[1]) + 1 == int(number):
            runs[-1].append(name)
        else:
            runs.append([name])
    words = []
    for run in runs:
        end = re.search(r"\d+$", run[-1])
        words.append(run[0] if len(run) == 1 or end is None else f"{run[0]}-{end.group()}")
    return ", ".join(words)


def figure(gb_per_s: float) -> str:
    """Formats a bandwidth with three significant digits, or two below 10.

    Example:
        >>> [figure(rate) for rate in (450.0, 20.6, 12.0, 2.345, 0.0251)]
        ['450', '20.6', '12', '2.3', '0.025']
    """
    if gb_per_s >= 99.95:
        return f"{gb_per_s:.0f}"
    if gb_per_s >= 0.995:
        return f"{gb_per_s:.1f}".removesuffix(".0")
    return f"{gb_per_s:.2g}" if gb_per_s >= 1e-4 else f"{gb_per_s:.0e}"


def rate(link: Link) -> str:
    """GB/s, with the rated figure where the link is slower: `6 of 24`; `1.2?` for an assumed figure."""
    word = figure(link.bandwidth_gb_per_s) + ("?" if link.source == "assumed" else "")
    return f"{word} of {figure(link.rated_gb_per_s)}" if is_slow(link) and link.rated_gb_per_s else word


def is_slow(link: Link) -> bool:
    """Whether a PCIe link has less than 60 % of its rated bandwidth, by fewer lanes or an older generation."""
    rated = link.rated_gb_per_s
    return link.kind == "pcie" and rated is not None and link.bandwidth_gb_per_s < 0.6 * rated


def describe(host: Host) -> str:
    """The devices of a host as text, such as `8 x NVIDIA H100`."""
    names = [device.name or {"cuda": "GPU", "cpu": "process on the CPU"}[device.kind] for device in host.devices]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _order(host: Host, node: Node) -> tuple[int, list[tuple[int, str]]]:
    nics = {nic.id for nic in host.nics}
    return (2 if node.name in nics else 0 if node.name in host.switches else 1), natural(node.name)
