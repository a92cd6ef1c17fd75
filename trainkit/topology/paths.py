"""Path: the links between two vertices of a host, or between devices of two hosts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.errors import TopologyError
from trainkit.topology.graph import Graph
from trainkit.topology.topology import NETWORK, Host, Link, Topology

CLASSES = {
    "NVL": "direct NVLink",
    "NVS": "through an NVSwitch",
    "XGM": "direct Infinity Fabric",
    "MEM": "through the host's memory",
    "PIX": "through one PCIe switch",
    "PXB": "through several PCIe switches",
    "PHB": "through a processor",
    "SYS": "between the sockets of two processors",
    "NET": "through the network",
}
"""The kinds of paths, fastest first; those that `nvidia-smi topo -m` prints have the same meaning there."""


@dataclass(frozen=True)
class Path:
    """A path through a host.

    Args:
        vertices: from one end to the other.
        links: between them; one less than vertices.
        kind: one of CLASSES.
    """

    vertices: tuple[str, ...]
    links: tuple[Link, ...]
    kind: str

    @property
    def bandwidth_gb_per_s(self) -> float:
        """The bandwidth of the slowest link."""
        return min(link.bandwidth_gb_per_s for link in self.links)

    @property
    def latency_us(self) -> float:
        """The sum over the links."""
        return sum(link.latency_us for link in self.links)


def path(host: Host, a: str, b: str) -> Path | None:
    """Finds the path that the cost model uses: the shortest of those with the largest bandwidth.

    Args:
        host: in which the path lies.
        a: its first vertex.
        b: its last vertex.

    Returns:
        The path; None where there is none.
    """
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
    """Finds the network card over which a device reaches the network.

    Args:
        host: of the device.
        device: its id.

    Returns:
        The id of the card and the path to it; None where there is none.
    """
    found = [(nic.id, path(host, device, nic.id)) for nic in host.nics]
    known = [(nic, to_nic) for nic, to_nic in found if to_nic is not None]
    rates = {link.a if link.b == NETWORK else link.b: link for link in host.links if NETWORK in (link.a, link.b)}

    def order(entry: tuple[str, Path]) -> tuple[float, int, float]:
        nic, to_nic = entry
        rate = rates[nic].bandwidth_gb_per_s if nic in rates else 0.0
        return -min(to_nic.bandwidth_gb_per_s, rate), list(CLASSES).index(to_nic.kind), to_nic.latency_us

    return min(known, key=order, default=None)


def between(topology: Topology, a: int, b: int) -> list[tuple[int, Path]]:
    """Finds the path from one rank to another.

    Args:
        topology: of the job.
        a: the rank that sends.
        b: the rank that receives.

    Returns:
        (number of the host, path in it): one within a host, two that meet at NETWORK or at the NVSwitch of their NVLink
        domain between hosts, none where no path exists.
    """
    places = topology.places[a], topology.places[b]
    if places[0].host == places[1].host:
        inside = path(topology.hosts[places[0].host], places[0].device, places[1].device)
        return [] if inside is None else [(places[0].host, inside)]
    meeting = [NETWORK, NETWORK]
    if topology.nvlink_node(places[0].host) == topology.nvlink_node(places[1].host):
        switches = [Graph(topology.hosts[place.host]).nvswitch_of(place.device) for place in places]
        meeting = [NETWORK if switch is None else switch[0] for switch in switches]
    ends = zip(places, meeting, strict=True)
    out, back = (path(topology.hosts[place.host], place.device, end) for place, end in ends)
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
    if kinds == {"xgmi"}:
        return "XGM"
    inner = vertices[1:-1]
    if "loopback" in kinds or "memory" in inner:
        return "MEM"
    if any(name.startswith("socket") for name in inner):
        return "PHB"
    return "PXB" if len(inner) > 1 else "PIX"
