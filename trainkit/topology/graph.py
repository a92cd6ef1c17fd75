"""Graph: the links of one host, the paths over them, and the rings that fit on them at the same time."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from trainkit.errors import TopologyError
from trainkit.topology.rings import SAME, Edge, widest
from trainkit.topology.staging import is_redirected, is_staged, link_gb_per_s, staged_pairs
from trainkit.topology.topology import GPU_LINKS, NETWORK, Host, Link

Path = tuple[Edge, ...]


_SOCKET = "socket"
"""What the names of sockets begin with."""


class Graph:
    """The links of one host. Vertices are devices, network cards, switches, and NETWORK.

    A path can pass through switches and, on its way to NETWORK, through a network card, but not through a device, which
    does not forward messages.

    Args:
        host: whose links these are.
    """

    def __init__(self, host: Host) -> None:
        self.name = host.name
        self._host = host
        self._nvlinks: Graph | None = None
        self.links: tuple[Link, ...] = host.links
        self.gb_per_s = tuple(link_gb_per_s(host, link) for link in host.links)
        self._is_staged, self._is_redirected = is_staged(host), is_redirected(host)
        self._staged = staged_pairs(host)
        self._by_way = {
            way: tuple(link_gb_per_s(host, link, staged=way) for link in host.links) for way in (True, False)
        }
        self._devices = {device.id for device in host.devices}
        self.nics = tuple(nic.id for nic in host.nics)
        self._forwards = {*host.switches, *self.nics}
        self._neighbours: dict[str, list[tuple[str, Edge]]] = {}
        for number, link in enumerate(host.links):
            self._neighbours.setdefault(link.a, []).append((link.b, (number, True)))
            self._neighbours.setdefault(link.b, []).append((link.a, (number, False)))
        self._paths: dict[tuple[str, str, str | None], tuple[Path, ...]] = {}
        self._rings: dict[tuple[str, ...], float] = {}

    def width(self, path: Path) -> float:
        """The bandwidth of a path that nothing else uses, in GB/s."""
        return min((self.gb_per_s[number] for number, _ in path), default=math.inf)

    def is_staged(self, start: str, end: str) -> bool:
        """Whether messages of two devices pass through the memory of the host."""
        return self._is_staged if self._staged is None else {start, end} in self._staged

    def gb_per_s_between(self, start: str, end: str, edge: Edge) -> float:
        """The bandwidth of a link for the messages of two vertices, in GB/s."""
        if self._staged is None or not {start, end} <= self._devices:
            return self.gb_per_s[edge[0]]
        return self._by_way[self.is_staged(start, end)][edge[0]]

    def latency_us(self, path: Path) -> float:
        """The sum of the latencies of a path's links, in microseconds."""
        return sum(self.links[number].latency_us for number, _ in path)

    def paths(self, start: str, end: str, nic: str | None = None) -> tuple[Path, ...]:
        """The shortest among the paths with the largest bandwidth, in a fixed order.

        Args:
            start: a vertex.
            end: a vertex.
            nic: the only network card that a path can use; None: any.

        Raises:
            TopologyError: where there is no path.
        """
        if start == end:
            return ((),)
        key = (start, end, nic)
        if key not in self._paths:
            found = self._search(start, end, nic)
            if not found:
                raise TopologyError(
                    f"host {self.name!r}: no path leads from {start} to {end}; add the links between them to its file"
                )
            self._paths[key] = found
        return self._paths[key]

    def path(self, start: str, end: str, load: Mapping[Edge, float] | None = None, nic: str | None = None) -> Path:
        """The path of `paths` whose busiest link has the smallest `load` (us)."""
        every = self.paths(start, end, nic)
        if load is None or len(every) == 1:
            return every[0]
        return min(every, key=lambda path: max((load.get(edge, 0.0) for edge in path), default=0.0))

    def _search(self, start: str, end: str, nic: str | None) -> tuple[Path, ...]:
        for width in sorted(set(self.gb_per_s), reverse=True):
            found = self._shortest(start, end, width, nic)
            if found:
                turns = {start, end} <= self._devices and (self._is_redirected or self.is_staged(start, end))
                return tuple(self._through_root(path) for path in found) if turns else found
        return ()

    def _through_root(self, path: Path) -> Path:
        """The path with a detour from its PCIe switch to the socket above and back; others stay as they are."""
        if any(self.links[number].kind != "pcie" for number, _ in path):
            return path
        sockets = sorted(vertex for vertex in self._forwards if vertex.startswith(_SOCKET))
        switches = [self.links[number].b if forward else self.links[number].a for number, forward in path[:-1]]
        ways = [
            (len(ups[0]), place, ups[0])
            for place, switch in enumerate(switches, 1)
            for socket in sockets
            if (ups := self._shortest(switch, socket, 0.0, None))
        ]
        if not ways:
            return path
        _, place, up = min(ways)  # empty where the path passes a socket already
        down = tuple((number, not forward) for number, forward in reversed(up))
        return (*path[:place], *up, *down, *path[place:])

    def _shortest(self, start: str, end: str, width: float, nic: str | None) -> tuple[Path, ...]:
        """All shortest paths over links of at least this width."""
        distance = {start: 0}
        paths: dict[str, list[Path]] = {start: [()]}
        queue = deque([start])
        while queue:
            vertex = queue.popleft()
            if vertex == end:
                return tuple(paths[end])
            if vertex != start and vertex not in self._forwards:
                continue
            for other, edge in self._neighbours.get(vertex, ()):
                if self.gb_per_s[edge[0]] < width * SAME or (nic is not None and other in self.nics and other != nic):
                    continue
                if other not in distance:
                    distance[other] = distance[vertex] + 1
                    paths[other] = []
                    queue.append(other)
                if distance[other] == distance[vertex] + 1:
                    paths[other] += [(*path, edge) for path in paths[vertex]]
        return ()

    # -- several flows at the same time ------------------------------------------------------------------------------

    def kinds(self, start: str, end: str) -> set[str]:
        """The kinds of the links on the path between two vertices."""
        return {self.links[number].kind for number, _ in self.path(start, end)}

    def joined_by_nvlink(self, devices: Sequence[str]) -> bool:
        """Whether NVLink alone holds a ring through all of `devices`."""
        return len(devices) > 1 and self._over_nvlink()._widest_rings(tuple(devices)) > 0

    def _over_nvlink(self) -> "Graph":
        if self._nvlinks is None:
            kept = tuple(link for link in self.links if link.kind in GPU_LINKS)
            self._nvlinks = self if len(kept) == len(self.links) else Graph(replace(self._host, links=kept))
        return self._nvlinks

    def has_nvswitch(self, devices: Sequence[str]) -> bool:
        """Whether an NVSwitch connects all of `devices`."""
        first = devices[0]
        return len(devices) > 1 and all(self.kinds(first, other) == {"nvswitch"} for other in devices[1:])

    def switch_gb_per_s(self, devices: Sequence[str]) -> float:
        """The bandwidth of the slowest of `devices` into the NVSwitch that connects them; 0 without one."""
        if not self.has_nvswitch(devices):
            return 0.0
        return min(self.width(self.path(devices[0], other)) for other in devices[1:])

    def nvswitch_of(self, device: str) -> tuple[str, float] | None:
        """The NVSwitch of a device and the GB/s to it; None: it has none."""
        found = [
            (other, edge[0])
            for other, edge in self._neighbours.get(device, ())
            if self.links[edge[0]].kind == "nvswitch"
        ]
        return max(((name, self.gb_per_s[number]) for name, number in found), key=lambda way: way[1], default=None)

    def islands(self, devices: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Groups `devices` by NVLink or NVSwitch connections, direct or through others; in the given order."""
        return self._joined(devices, (link for link in self.links if link.kind in GPU_LINKS))

    def by_pcie_switch(self, devices: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Groups `devices` by the PCIe switches below a socket, in the given order."""
        below = (
            link
            for link in self.links
            if link.kind == "pcie" and not link.a.startswith(_SOCKET) and not link.b.startswith(_SOCKET)
        )
        return self._joined(devices, below)

    def by_socket(self, devices: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Groups `devices` that reach each other without passing from one socket to another, in the given order."""
        return self._joined(devices, (link for link in self.links if link.kind not in ("socket", "nic")))

    def _joined(self, devices: Sequence[str], links: Iterable[Link]) -> tuple[tuple[str, ...], ...]:
        parent: dict[str, str] = {}

        def root(vertex: str) -> str:
            while parent.get(vertex, vertex) != vertex:
                vertex = parent[vertex]
            return vertex

        for link in links:
            parent[root(link.a)] = root(link.b)
        groups: dict[str, list[str]] = {}
        for device in devices:
            groups.setdefault(root(device), []).append(device)
        return tuple(tuple(group) for group in groups.values())

    def network(self, devices: Sequence[str]) -> tuple[float, int]:
        """The bandwidth from `devices` to NETWORK, over the network cards that are nearest to them.

        A card with less than half the bandwidth of the fastest is not used.

        Args:
            devices: that send at the same time.

        Returns:
            GB/s of all devices together, and the number of network cards.

        Raises:
            TopologyError: where no path leads to NETWORK.
        """
        width = {nic: self.width(self.paths(nic, NETWORK)[0]) for nic in self.nics if self.leads_out(nic)}
        wide = [nic for nic in width if width[nic] >= max(width.values()) / 2]
        load: dict[Edge, float] = {}
        total, used = 0.0, self._nearest(devices, wide)
        for nic in used:
            routes = [self.path(device, NETWORK, load, nic) for device in devices]
            route = min(routes, key=lambda path: (-self.width(path), len(path), max(load.get(e, 0.0) for e in path)))
            total += self.width(route)
            for edge in route:
                load[edge] = load.get(edge, 0.0) + self.width(route) / self.gb_per_s[edge[0]]
        if not load:
            raise TopologyError(
                f"host {self.name!r}: no path leads from {', '.join(devices)} to {NETWORK}; add a network card and its "
                "links to its file"
            )
        return total / max(1.0, *load.values()), len(used)

    def _nearest(self, devices: Sequence[str], nics: Sequence[str]) -> list[str]:
        """The network cards to which a device has its fastest and then shortest path."""
        found: set[str] = set()
        for device in devices:
            reached = {nic: path for nic in nics if (path := self._search(device, NETWORK, nic))}
            rank = {nic: (-self.width(paths[0]), len(paths[0])) for nic, paths in reached.items()}
            found |= {nic for nic in rank if rank[nic] == min(rank.values())}
        return [nic for nic in nics if nic in found]

    def leads_out(self, nic: str) -> bool:
        """Whether a network card has a link to NETWORK."""
        return any(other == NETWORK for other, _ in self._neighbours.get(nic, ()))

    def rings_gb_per_s(self, devices: Sequence[str]) -> float:
        """The bandwidth of each device over rings through all of `devices`, as NCCL searches for its channels.

        Args:
            devices: of the rings, which share the links.

        Returns:
            GB/s; infinite for one device.

        Raises:
            TopologyError: where there is no ring.
        """
        if len(devices) < 2:
            return math.inf
        found = self._widest_rings(tuple(devices))
        if found == 0:
            for a, b in zip(devices, (*devices[1:], devices[0]), strict=True):
                self.paths(a, b)  # raises, with the names of the two
        return found

    def _widest_rings(self, devices: tuple[str, ...]) -> float:
        """GB/s over NVLink alone where it holds a ring: NCCL does not mix kinds of links. 0 where there is no ring."""
        if devices not in self._rings:
            others = self._over_nvlink()
            over_nvlink = others._widest_rings(devices) if others is not self else 0.0
            self._rings[devices] = over_nvlink or self._search_rings(devices)
        return self._rings[devices]

    def _search_rings(self, devices: tuple[str, ...]) -> float:
        paths = {(a, b): path[0] for a in devices for b in devices if a != b and (path := self._search(a, b, None))}
        between = {ends: {e: self.gb_per_s_between(*ends, e) for e in path} for ends, path in paths.items()}
        fastest = [max(self.gb_per_s[n], self._by_way[False][n]) for n in range(len(self.links))]
        bound = min(sum(fastest[edge[0]] for _, edge in self._neighbours.get(d, ())) for d in devices)
        return widest(devices, between, {(n, d): g for n, g in enumerate(self.gb_per_s) for d in (True, False)}, bound)
