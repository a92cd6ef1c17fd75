"""CostModel: what an all-reduce will cost, leg by leg, from the links alone. Pure: nothing is measured here."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trainkit.planning import nccl
from trainkit.planning.nccl import Fabric, Way
from trainkit.planning.reduce_plan import INT8_BLOCK, Format, ReducePlan
from trainkit.topology.graph import Edge, Graph
from trainkit.topology.topology import NETWORK, Topology

Backend = Literal["nccl", "gloo"]
GLOO_CALL_US = 100.0
"""Of one collective of gloo, beside its messages."""
GLOO_CHUNK_US = 100.0
"""Of handing one more chunk to one more leg."""
NCCL_CHUNK_US = 10.0
OVERLAP = {"gloo": 1.0, "nccl": 0.85}
"""What legs that run at once reach of what each reaches alone: NCCL's kernels take multiprocessors from one another.
That of NCCL is a cautious assumption, not a measurement."""
CAST_GB_PER_S = {"cuda": 800.0, "cpu": 2.0}
"""Of a cast between float32 and a 16-bit format: bytes of float32 a second."""
QUANTISE_GB_PER_S = {"cuda": 400.0, "cpu": 4.0}
"""Of a cast between float32 and int8 with its scales."""
ELEMENT_BYTES = 4
"""Of a gradient. A bucket of 16-bit gradients gains less from a format than is predicted here."""
WIRE_BYTES: dict[Format, float] = {"exact": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0 + 4.0 / INT8_BLOCK}
"""What an element takes between groups."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One of the collectives of which a plan is made.

    num_bytes: what crosses the busiest link, in the busier direction. time_us: of the whole bucket, by itself; legs of
    a plan with chunks overlap, so that the plan takes less than the sum.
    """

    name: str
    num_bytes: float
    time_us: float


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A leg per byte of the bucket.

    ways: for each group of ranks that go at once, the ways to choose from. busy: us a byte, of what is shared with
    other legs.
    """

    name: str
    ways: tuple[tuple[Way, ...], ...]
    busy: Mapping[object, float] = field(default_factory=dict)

    def slowest(self, num_bytes: float) -> Way:
        fastest = [min(ways, key=lambda way: way.time_us(num_bytes)) for ways in self.ways]
        return max(fastest, key=lambda way: way.time_us(num_bytes))


class CostModel:
    """Predicts the time of an all-reduce over the ranks of a topology.

    A leg is a set of simultaneous flows over the hosts' links; it takes the latency of its steps, and the bytes of its
    busiest link over that link's bandwidth. Flows over one link in one direction share it.
    backend: whose algorithms run the legs; nccl where every device is cuda, else gloo.
    Raises TopologyError where no link leads from one rank to another.
    """

    def __init__(self, topology: Topology, backend: Backend | None = None) -> None:
        self.topology = topology
        kinds = {device.kind for host in topology.hosts for device in host.devices}
        self.backend: Backend = backend or ("nccl" if kinds == {"cuda"} else "gloo")
        self._device = "cuda" if kinds == {"cuda"} else "cpu"
        alike: dict[object, Graph] = {}
        self._graphs = [
            alike.setdefault((h.devices, h.nics, h.switches, h.links, h.facts.get("p2p")), Graph(h))
            for h in topology.hosts
        ]
        self._capability = {
            (i, device.id): device.compute_capability
            for i, host in enumerate(topology.hosts)
            for device in host.devices
        }
        self._stages: dict[tuple[object, ...], tuple[_Stage, ...]] = {}

    def all_reduce_us(self, plan: ReducePlan, num_bytes: int) -> float:
        """Of one bucket of `num_bytes`, from when every rank has it until every rank has its sum."""
        stages = self._of(plan)
        if not stages:
            return 0.0
        chunks = max(1, math.ceil(num_bytes / plan.chunk_bytes)) if plan.chunk_bytes else 1
        chunk = num_bytes / chunks
        chunk_us = GLOO_CHUNK_US if self.backend == "gloo" else NCCL_CHUNK_US
        times = [stage.slowest(chunk).time_us(chunk) + (chunk_us if chunks > 1 else 0.0) for stage in stages]
        busy: dict[object, float] = {}
        for stage in stages:
            for what, us_per_byte in stage.busy.items():
                busy[what] = busy.get(what, 0.0) + us_per_byte * chunk
        return sum(times) + (chunks - 1) * max(*times, *busy.values(), 0.0) / OVERLAP[self.backend]

    def legs(self, plan: ReducePlan, num_bytes: int) -> list[Leg]:
        """What the plan consists of, in order."""
        found = []
        for stage in self._of(plan):
            way = stage.slowest(num_bytes)
            name = f"{stage.name} ({way.name})" if way.name else stage.name
            found.append(Leg(name=name, num_bytes=way.sent * num_bytes, time_us=way.time_us(num_bytes)))
        return found

    def bus_bandwidth_gb_per_s(self, plan: ReducePlan, num_bytes: int) -> float:
        """As nccl-tests define it: bytes / time * 2 (n - 1) / n."""
        n = plan.world_size
        time_us = self.all_reduce_us(plan, num_bytes)
        return num_bytes / time_us / 1e3 * 2 * (n - 1) / n if time_us > 0 else math.inf

    # -- plans as stages ---------------------------------------------------------------------------------------------

    def _of(self, plan: ReducePlan) -> tuple[_Stage, ...]:
        key = (plan.kind, plan.groups, plan.format)
        if key not in self._stages:
            self._stages[key] = tuple(self._build(plan))
        return self._stages[key]

    def _build(self, plan: ReducePlan) -> list[_Stage]:
        if plan.world_size == 1:
            return []
        every = tuple(rank for group in plan.groups for rank in group)
        if plan.kind in ("flat", "ring"):
            return [self._rings("all-reduce", [every], 1.0)]
        within = [group for group in plan.groups if len(group) > 1]
        between, before, after = [], [], []
        if plan.kind == "hierarchical":
            size = len(plan.groups[0])
            peers = list(zip(*plan.groups, strict=True))
            if within:
                before = [self._halves("reduce-scatter", within)]
                after = [self._halves("all-gather", within)]
        else:
            size, peers = 1, [tuple(group[0] for group in plan.groups)]
            if within:
                before, after = [self._reduce(within)], [self._broadcast(within)]
        if len(plan.groups) > 1:
            between = self._between(peers, plan.format, 1.0 / size)
        return [*before, *between, *after]

    def _between(self, peers: Sequence[tuple[int, ...]], format: Format, share: float) -> list[_Stage]:
        if format == "exact":
            return [self._rings("all-reduce between groups", peers, share)]
        wire = share * WIRE_BYTES[format] / ELEMENT_BYTES
        if format != "int8":
            cast = 1.0 / CAST_GB_PER_S[self._device] / 1e3
            return [
                self._work(f"cast to {format}", share * cast),
                self._rings(f"all-reduce between groups, {format}", peers, wire),
                self._work(f"cast from {format}", share * cast),
            ]
        quantise, hosts = 1.0 / QUANTISE_GB_PER_S[self._device] / 1e3, len(peers[0])
        return [
            self._work("quantise", share * quantise),
            self._exchange("all-to-all between groups, int8", peers, wire),
            self._work("sum and quantise", share * (1 + 1 / hosts) * quantise),
            self._exchange("all-gather between groups, int8", peers, wire),
            self._work("dequantise", share * quantise),
        ]

    def _work(self, name: str, us_per_byte: float) -> _Stage:
        way = Way(name="", latency_us=0.0, us_per_byte=us_per_byte, sent=0.0)
        return _Stage(name=name, ways=((way,),), busy={"device": us_per_byte})

    # -- collectives -------------------------------------------------------------------------------------------------

    def _rings(self, name: str, groups: Sequence[Sequence[int]], share: float) -> _Stage:
        """All-reduce in each of the groups at once, of `share` of the bucket."""
        n = len(groups[0])
        if self.backend == "nccl" and len(groups) == 1:
            return self._inside(name, groups, nccl.all_reduce, share)
        flows = [(a, b, 2 * (n - 1) / n * share) for ring in groups for a, b in _ring(ring)]
        if self.backend == "nccl":
            return self._across(name, groups, flows, share)
        return self._gloo(name, flows, steps=2 * (n - 1))

    def _halves(self, name: str, groups: Sequence[Sequence[int]]) -> _Stage:
        """Reduce-scatter or all-gather in each group at once."""
        if self.backend == "nccl":
            return self._inside(name, groups, nccl.reduce_scatter, 1.0)
        flows = [(a, b, 1.0 / len(group)) for group in groups for a in group for b in group if a != b]
        return self._gloo(name, flows, steps=max(len(group) for group in groups) - 1)

    def _exchange(self, name: str, groups: Sequence[Sequence[int]], share: float) -> _Stage:
        """All-to-all, or all-gather, in each group at once: every pair sends a part of `share` of the bucket."""
        n = len(groups[0])
        flows = [(a, b, share / n) for group in groups for a in group for b in group if a != b]
        if self.backend == "gloo":
            return self._gloo(name, flows, steps=n - 1)
        load = self._load(flows)
        latency = nccl.CALL_US["ring"]["Simple"] + (n - 1) * nccl.STEP_US["nic"]["ring"]["Simple"]
        return load.stage(name, "", latency)

    def _reduce(self, groups: Sequence[Sequence[int]]) -> _Stage:
        if self.backend == "nccl":
            return self._inside("reduce", groups, nccl.broadcast, 1.0)
        flows = []
        for group in groups:
            n = len(group)
            flows += [(a, b, (n - 1) / n) for a, b in _ring(group)]
            flows += [(rank, group[0], 1.0 / n) for rank in group[1:]]
        return self._gloo("reduce", flows, steps=max(len(group) for group in groups))

    def _broadcast(self, groups: Sequence[Sequence[int]]) -> _Stage:
        if self.backend == "nccl":
            return self._inside("broadcast", groups, nccl.broadcast, 1.0)
        flows = [
            (group[i - (1 << (i.bit_length() - 1))], group[i], 1.0) for group in groups for i in range(1, len(group))
        ]
        return self._gloo("broadcast", flows, steps=max(len(group) for group in groups).bit_length())

    # -- NCCL --------------------------------------------------------------------------------------------------------

    def _inside(
        self, name: str, groups: Sequence[Sequence[int]], ways: Callable[[Fabric], tuple[Way, ...]], share: float
    ) -> _Stage:
        """A collective over NCCL's own rings and trees. Groups must not share links, as hosts and islands do not."""
        fabrics = list(dict.fromkeys(self._fabric(group) for group in groups))
        every = tuple(tuple(_scaled(way, share) for way in ways(fabric)) for fabric in fabrics)
        rate = max(min(way.us_per_byte for way in group) for group in every)
        busy: dict[object, float] = {"inside": rate}
        if not all(fabric.nvlink for fabric in fabrics):
            sent = [(a, b, (len(group) - 1) / len(group) * share) for group in groups for a, b in _ring(group)]
            busy |= self._load(sent).busy
        return _Stage(name=name, ways=every, busy=busy)

    def _across(
        self, name: str, rings: Sequence[Sequence[int]], flows: Sequence[tuple[int, int, float]], share: float
    ) -> _Stage:
        """All-reduces of many communicators at once, which share the links on which their rings' flows run."""
        load, n = self._load(flows), len(rings[0])
        gb_per_s = 2 * (n - 1) / n * share / (load.us_per_byte * 1e3)
        hosts = len({self.topology.places[rank].host for rank in rings[0]})
        fabric = Fabric(
            num_ranks=n,
            num_hosts=hosts,
            inside_gb_per_s=gb_per_s if hosts < n else math.inf,
            across_gb_per_s=gb_per_s if hosts > 1 else math.inf,
            num_nics=1,
            switch_gb_per_s=0.0,
            nvlink=False,
            generation=self._generation(rings[0]),
        )
        ways = tuple(_scaled(way, share) for way in nccl.all_reduce(fabric))
        return _Stage(name=name, ways=(ways,), busy=load.busy)

    def _fabric(self, ranks: Sequence[int]) -> Fabric:
        by_host: dict[int, dict[str, None]] = {}  # a set that keeps its order
        for rank in ranks:
            place = self.topology.places[rank]
            by_host.setdefault(place.host, {})[place.device] = None
        alike = {(id(self._graphs[host]), tuple(devices)): host for host, devices in by_host.items()}
        parts = [(self._graphs[host], devices) for (_, devices), host in alike.items()]
        switched = all(graph.has_nvswitch(devices) for graph, devices in parts)
        networks = [graph.network(devices) for graph, devices in parts] if len(by_host) > 1 else [(math.inf, 1)]
        across, num_nics = min(networks)
        return Fabric(
            num_ranks=len(ranks),
            num_hosts=len(by_host),
            inside_gb_per_s=min(graph.rings_gb_per_s(devices) for graph, devices in parts),
            across_gb_per_s=across,
            num_nics=num_nics,
            switch_gb_per_s=min(g.width(g.path(d, e)) for g, (d, e, *_) in parts) if switched else 0.0,
            nvlink=all(graph.joined_by_nvlink(devices) for graph, devices in parts if len(devices) > 1),
            generation=self._generation(ranks),
        )

    def _generation(self, ranks: Iterable[int]) -> nccl.Generation:
        known = {self._capability[self.topology.places[r].host, self.topology.places[r].device] for r in ranks}
        order: list[nccl.Generation] = ["volta", "ampere", "hopper", "blackwell"]
        return min((nccl.generation(capability) for capability in known), key=order.index)

    # -- flows -------------------------------------------------------------------------------------------------------

    def _gloo(self, name: str, flows: Sequence[tuple[int, int, float]], steps: int) -> _Stage:
        load = self._load(flows)
        return load.stage(name, "", GLOO_CALL_US + steps * load.latency_us)

    def _load(self, flows: Iterable[tuple[int, int, float]]) -> "_Load":
        load = _Load()
        for a, b, sent in flows:
            here, there = self.topology.places[a], self.topology.places[b]
            if here.host == there.host:
                ends = [(here.host, here.device, there.device)]
            else:
                ends = [(here.host, here.device, NETWORK), (there.host, NETWORK, there.device)]
            latency = 0.0
            for host, start, end in ends:
                graph = self._graphs[host]
                nic = self._only_nic(host) if len(ends) > 1 and self.backend == "gloo" else None
                route = graph.path(start, end, load.of_host.setdefault(host, {}), nic)
                latency += graph.latency_us(route)
                for edge in route:
                    load.add(host, edge, sent, graph.gb_per_s[edge[0]])
            load.latency_us = max(load.latency_us, latency)
        return load

    def _only_nic(self, host: int) -> str | None:
        """gloo uses one network card: the widest."""
        graph = self._graphs[host]
        leading = [nic for nic in graph.nics if graph.leads_out(nic)]
        return max(leading, key=lambda nic: graph.width(graph.path(nic, NETWORK)), default=None)


class _Load:
    """What flows that run at once put onto the links: us and bytes, each per byte of the bucket."""

    def __init__(self) -> None:
        self.of_host: dict[int, dict[Edge, float]] = {}
        self.sent: dict[object, float] = {}
        self.latency_us = 0.0

    def add(self, host: int, edge: Edge, sent: float, gb_per_s: float) -> None:
        self.of_host[host][edge] = self.of_host[host].get(edge, 0.0) + sent / (gb_per_s * 1e3)
        self.sent[host, edge] = self.sent.get((host, edge), 0.0) + sent

    @property
    def busy(self) -> dict[object, float]:
        return {(host, edge): us for host, edges in self.of_host.items() for edge, us in edges.items()}

    @property
    def us_per_byte(self) -> float:
        return max(self.busy.values(), default=0.0)

    def stage(self, name: str, way: str, latency_us: float) -> _Stage:
        busy = self.busy
        slowest = max(busy, key=lambda edge: busy[edge], default=None)
        sent = self.sent[slowest] if slowest is not None else 0.0
        only = Way(name=way, latency_us=latency_us, us_per_byte=self.us_per_byte, sent=sent)
        return _Stage(name=name, ways=((only,),), busy=busy)


def _ring(ranks: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ranks, (*ranks[1:], ranks[0]), strict=True))


def _scaled(way: Way, share: float) -> Way:
    return Way(name=way.name, latency_us=way.latency_us, us_per_byte=way.us_per_byte * share, sent=way.sent * share)
