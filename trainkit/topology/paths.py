"""The path that data takes between two vertices of a host, or between devices of two hosts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.errors import TopologyError
from trainkit.topology.graph import Graph
from trainkit.topology.topology import NETWORK, Host, Link, Topology

CLASSES = {
    "NVL": "NVLink from one to the other",
    "NVS": "through an NVSwitch",
    "MEM": "through the host's memory",
    "PIX": "through one PCIe switch",
    "PXB": "through several PCIe switches",
    "PHB": "through a processor",
    "SYS": "from one processor's socket to another's",
    "NET": "through the network",
}
"""What a path may be called, the fastest kind first; those that `nvidia-smi topo -m` has too mean the same there."""


@dataclass(frozen=True)
class Path:
    """links: from one end to the other; vertices: one more than links. kind: one of CLASSES."""

    vertices: tuple[str, ...]
    links: tuple[Link, ...]
    kind: str

    @property
    def bandwidth_gb_per_s(self) -> float:
        """Of its narrowest link."""
        return min(link.bandwidth_gb_per_s for link in self.links)

    @property
    def latency_us(self) -> float:
        return sum(link.latency_us for link in self.links)


def path(host: Host, a: str, b: str) -> Path | None:
    """The shortest of the widest paths from `a` to `b`, as the cost model takes it; None where nothing joins them."""
    graph = Graph(host)
    try:
        edges = graph.paths(a, b)[0]
    except TopologyError:
        return None
    vertices = [a]
    for number, forward in edges:
        vertices.append(host.links[number].b if forward else host.links[number].a)
    links = tuple(host.links[number] for number, _ in edges)
    return Path(tuple(vertices), links, _kind(vertices, links))


def nearest_nic(host: Host, device: str) -> tuple[str, Path] | None:
    """The network card over which `device` reaches the network, and the path to it; None where there is none."""
    found = [(nic.id, path(host, device, nic.id)) for nic in host.nics]
    known = [(nic, way) for nic, way in found if way is not None]
    rates = {link.a if link.b == NETWORK else link.b: link for link in host.links if NETWORK in (link.a, link.b)}

    def order(entry: tuple[str, Path]) -> tuple[float, int, float]:
        nic, way = entry
        rate = rates[nic].bandwidth_gb_per_s if nic in rates else 0.0
        return -min(way.bandwidth_gb_per_s, rate), list(CLASSES).index(way.kind), way.latency_us

    return min(known, key=order, default=None)


def between(topology: Topology, a: int, b: int) -> list[tuple[int, Path]]:
    """The parts of the path from rank `a` to rank `b`: (number of the host, path there); empty where it is broken.

    One part within a host; from host to host two, that meet at NETWORK.
    """
    places = topology.places[a], topology.places[b]
    if places[0].host == places[1].host:
        way = path(topology.hosts[places[0].host], places[0].device, places[1].device)
        return [] if way is None else [(places[0].host, way)]
    out, back = (path(topology.hosts[place.host], place.device, NETWORK) for place in places)
    if out is None or back is None:
        return []
    return [(places[0].host, out), (places[1].host, Path(back.vertices[::-1], back.links[::-1], back.kind))]


def _kind(vertices: Sequence[str], links: Sequence[Link]) -> str:
    kinds = {link.kind for link in links}
    if NETWORK in vertices:
        return "NET"
    if "socket" in kinds:
        return "SYS"
    if "nvswitch" in kinds:
        return "NVS"
    if kinds == {"nvlink"}:
        return "NVL"
    inner = vertices[1:-1]
    if "loopback" in kinds or "memory" in inner:
        return "MEM"
    if any(name.startswith("socket") for name in inner):
        return "PHB"
    return "PXB" if len(inner) > 1 else "PIX"
