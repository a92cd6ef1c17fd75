"""CostModel: predicts the time of an all-reduce, phase by phase, from the links alone. Pure: it measures nothing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from trainkit.planning import nccl
from trainkit.planning.nccl import Algorithm, Fabric
from trainkit.planning.reduce_plan import INT8_BLOCK, ReducePlan, WireDtype
from trainkit.topology.graph import Graph
from trainkit.topology.rings import Edge
from trainkit.topology.topology import NETWORK, Host, RankPlacement, Topology

CommBackend = Literal["nccl", "gloo"]
GLOO_CALL_US = 100.0
"""The overhead of one gloo collective in addition to its messages."""
GLOO_CHUNK_US = 100.0
"""The overhead of one more chunk in each phase."""
NCCL_CHUNK_US = 10.0
OVERLAP = {"gloo": 1.0, "nccl": 0.85}
"""The share of its speed that a phase reaches while others run: NCCL's kernels compete for multiprocessors.
The value for NCCL is a conservative assumption, not a measurement."""
CAST_GB_PER_S = {"cuda": 800.0, "cpu": 2.0}
"""The speed of a cast between float32 and a 16-bit format, in float32 GB/s."""
QUANTIZE_GB_PER_S = {"cuda": 400.0, "cpu": 4.0}
"""The speed of quantization between float32 and int8 with its scales, in float32 GB/s."""
EFA_CLOUD = "Amazon EC2"
FACTS = ("p2p", "p2p_off", "acs", "cpu", "environment")
"""Of a host, beside its parts: hosts that are alike in all of them share a graph."""
ELEMENT_BYTES = 4
"""Of a float32 gradient. A wire_dtype saves less than predicted for 16-bit gradients."""
WIRE_BYTES: dict[WireDtype, float] = {"exact": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0 + 4.0 / INT8_BLOCK}
"""The bytes of an element between groups."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a plan: a collective or a cast.

    Args:
        name: such as `reduce-scatter (ring, Simple)`.
        num_bytes: on the busiest link, in its busier direction.
        time_us: of the whole bucket without overlap; with chunks, phases overlap and a plan takes less than their sum.
    """

    name: str
    num_bytes: float
    time_us: float


@dataclass(frozen=True, kw_only=True)
class _PhaseCost:
    """The cost of a phase per byte of the bucket."""

    name: str
    algorithms: tuple[tuple[Algorithm, ...], ...]  # for each group that communicates at the same time, the choices
    busy: Mapping[object, float] = field(default_factory=dict)  # us per byte of each resource that phases share

    def slowest(self, num_bytes: float) -> Algorithm:
        fastest = [min(choices, key=lambda each: each.time_us(num_bytes)) for choices in self.algorithms]
        return max(fastest, key=lambda each: each.time_us(num_bytes))


class CostModel:
    """Predicts the time of an all-reduce over the ranks of a topology.

    A phase is a set of simultaneous flows over the hosts' links. Its time is the latency of its steps, and the bytes of
    its busiest link divided by that link's bandwidth. Flows over one link in one direction share it.

    Args:
        topology: the hosts, their links, and where the ranks run.
        backend: whose algorithms run the phases; None: `nccl` where all devices are GPUs, otherwise `gloo`.

    Raises:
        TopologyError: from the methods, where no link leads from one rank to another.

    Example:
        >>> from trainkit.planning.reduce_plan import flat
        >>> from trainkit.topology.presets import preset
        >>> model = CostModel(preset("dgx-h100"))
        >>> round(model.all_reduce_us(flat(8), 25_000_000))
        169
    """

    def __init__(self, topology: Topology, backend: CommBackend | None = None) -> None:
        self.topology = topology
        kinds = {device.kind for host in topology.hosts for device in host.devices}
        self.backend: CommBackend = backend or ("nccl" if kinds == {"cuda"} else "gloo")
        self._device = "cuda" if kinds == {"cuda"} else "cpu"
        alike: dict[object, Graph] = {}
        self._graphs = [
            alike.setdefault((h.devices, h.nics, h.switches, h.links, *(str(h.facts.get(f)) for f in FACTS)), Graph(h))
            for h in topology.hosts
        ]
        self._capability = {
            (i, device.id): device.compute_capability
            for i, host in enumerate(topology.hosts)
            for device in host.devices
        }
        self._network_factor = max(_network_factor(host) for host in topology.hosts)
        self._phases: dict[tuple[object, ...], tuple[_PhaseCost, ...]] = {}

    def all_reduce_us(self, plan: ReducePlan, num_bytes: int) -> float:
        """Predicts the time of one all-reduce.

        Args:
            plan: of the all-reduce.
            num_bytes: of the bucket of float32 gradients.

        Returns:
            Microseconds from when all ranks have their gradients until all have the sum.
        """
        phases = self._of(plan)
        if not phases:
            return 0.0
        chunks = max(1, math.ceil(num_bytes / plan.chunk_bytes)) if plan.chunk_bytes else 1
        chunk = num_bytes / chunks
        chunk_us = GLOO_CHUNK_US if self.backend == "gloo" else NCCL_CHUNK_US
        times = [phase.slowest(chunk).time_us(chunk) + (chunk_us if chunks > 1 else 0.0) for phase in phases]
        busy: dict[object, float] = {}
        for phase in phases:
            for what, us_per_byte in phase.busy.items():
                busy[what] = busy.get(what, 0.0) + us_per_byte * chunk
        return sum(times) + (chunks - 1) * max(*times, *busy.values(), 0.0) / OVERLAP[self.backend]

    def phases(self, plan: ReducePlan, num_bytes: int) -> list[Phase]:
        """Predicts the time of each phase of a plan, for a bucket of `num_bytes`.

        Returns:
            The phases in their order.
        """
        found = []
        for phase in self._of(plan):
            slowest = phase.slowest(num_bytes)
            name = f"{phase.name} ({slowest.name})" if slowest.name else phase.name
            found.append(Phase(name=name, num_bytes=slowest.sent * num_bytes, time_us=slowest.time_us(num_bytes)))
        return found

    def bus_bandwidth_gb_per_s(self, plan: ReducePlan, num_bytes: int) -> float:
        """The bus bandwidth as nccl-tests define it: bytes / time * 2 (n - 1) / n."""
        n = plan.world_size
        time_us = self.all_reduce_us(plan, num_bytes)
        return num_bytes / time_us / 1e3 * 2 * (n - 1) / n if time_us > 0 else math.inf

    # -- plans as phases ---------------------------------------------------------------------------------------------

    def _of(self, plan: ReducePlan) -> tuple[_PhaseCost, ...]:
        key = (plan.kind, plan.groups, plan.wire_dtype)
        if key not in self._phases:
            self._phases[key] = tuple(self._build(plan))
        return self._phases[key]

    def _build(self, plan: ReducePlan) -> list[_PhaseCost]:
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
            between = self._between(peers, plan.wire_dtype, 1.0 / size)
        return [*before, *between, *after]

    def _between(self, peers: Sequence[tuple[int, ...]], wire_dtype: WireDtype, share: float) -> list[_PhaseCost]:
        if wire_dtype == "exact":
            return [self._rings("all-reduce between groups", peers, share)]
        wire = share * WIRE_BYTES[wire_dtype] / ELEMENT_BYTES
        if wire_dtype != "int8":
            cast = 1.0 / CAST_GB_PER_S[self._device] / 1e3
            return [
                self._work(f"cast to {wire_dtype}", share * cast),
                self._rings(f"all-reduce between groups, {wire_dtype}", peers, wire),
                self._work(f"cast from {wire_dtype}", share * cast),
            ]
        quantize, hosts = 1.0 / QUANTIZE_GB_PER_S[self._device] / 1e3, len(peers[0])
        return [
            self._work("quantize", share * quantize),
            self._exchange("all-to-all between groups, int8", peers, wire),
            self._work("sum and quantize", share * (1 + 1 / hosts) * quantize),
            self._exchange("all-gather between groups, int8", peers, wire),
            self._work("dequantize", share * quantize),
        ]

    def _work(self, name: str, us_per_byte: float) -> _PhaseCost:
        only = Algorithm(name="", latency_us=0.0, us_per_byte=us_per_byte, sent=0.0)
        return _PhaseCost(name=name, algorithms=((only,),), busy={"device": us_per_byte})

    # -- collectives -------------------------------------------------------------------------------------------------

    def _rings(self, name: str, groups: Sequence[Sequence[int]], share: float) -> _PhaseCost:
        """All-reduces of a `share` of the bucket in all groups at the same time."""
        n = len(groups[0])
        if self.backend == "nccl" and len(groups) == 1:
            return self._inside(name, groups, nccl.all_reduce, share)
        flows = [(a, b, 2 * (n - 1) / n * share) for ring in groups for a, b in _ring(ring)]
        if self.backend == "nccl":
            return self._across(name, groups, flows, share)
        return self._gloo(name, flows, steps=2 * (n - 1))

    def _halves(self, name: str, groups: Sequence[Sequence[int]]) -> _PhaseCost:
        """Reduce-scatter or all-gather in all groups at the same time."""
        if self.backend == "nccl":
            return self._inside(name, groups, nccl.reduce_scatter, 1.0)
        flows = [(a, b, 1.0 / len(group)) for group in groups for a in group for b in group if a != b]
        return self._gloo(name, flows, steps=max(len(group) for group in groups) - 1)

    def _exchange(self, name: str, groups: Sequence[Sequence[int]], share: float) -> _PhaseCost:
        """All-to-all or all-gather in all groups at the same time: each pair sends 1/n of a `share` of the bucket."""
        n = len(groups[0])
        flows = [(a, b, share / n) for group in groups for a in group for b in group if a != b]
        if self.backend == "gloo":
            return self._gloo(name, flows, steps=n - 1)
        load = self._load(flows)
        step_us = nccl.STEP_US["nic"]["ring"]["Simple"] * nccl.STEP_FACTOR["nic"]["Simple"] * self._network_factor
        latency = nccl.CALL_US["ring"]["Simple"] + (n - 1) * step_us
        return load.phase(name, latency)

    def _reduce(self, groups: Sequence[Sequence[int]]) -> _PhaseCost:
        if self.backend == "nccl":
            return self._inside("reduce", groups, nccl.broadcast, 1.0)
        flows = []
        for group in groups:
            n = len(group)
            flows += [(a, b, (n - 1) / n) for a, b in _ring(group)]
            flows += [(rank, group[0], 1.0 / n) for rank in group[1:]]
        return self._gloo("reduce", flows, steps=max(len(group) for group in groups))

    def _broadcast(self, groups: Sequence[Sequence[int]]) -> _PhaseCost:
        if self.backend == "nccl":
            return self._inside("broadcast", groups, nccl.broadcast, 1.0)
        flows = [
            (group[i - (1 << (i.bit_length() - 1))], group[i], 1.0) for group in groups for i in range(1, len(group))
        ]
        return self._gloo("broadcast", flows, steps=max(len(group) for group in groups).bit_length())

    # -- NCCL --------------------------------------------------------------------------------------------------------

    def _inside(
        self,
        name: str,
        groups: Sequence[Sequence[int]],
        algorithms: Callable[[Fabric], tuple[Algorithm, ...]],
        share: float,
    ) -> _PhaseCost:
        """A collective over NCCL's own rings and trees. Groups must not share links; those by host or NVLink do not."""
        fabrics = list(dict.fromkeys(self._fabric(group) for group in groups))
        every = tuple(tuple(_scaled(each, share) for each in algorithms(fabric)) for fabric in fabrics)
        rate = max(min(each.us_per_byte for each in group) for group in every)
        busy: dict[object, float] = {"inside": rate}
        if not all(fabric.nvlink for fabric in fabrics):
            sent = [(a, b, (len(group) - 1) / len(group) * share) for group in groups for a, b in _ring(group)]
            busy |= self._load(sent).busy
        return _PhaseCost(name=name, algorithms=every, busy=busy)

    def _across(
        self, name: str, rings: Sequence[Sequence[int]], flows: Sequence[tuple[int, int, float]], share: float
    ) -> _PhaseCost:
        """All-reduces of several communicators at the same time, whose rings share links."""
        load, n = self._load(flows), len(rings[0])
        gb_per_s = 2 * (n - 1) / n * share / (load.us_per_byte * 1e3)
        hosts = len({self.topology.nvlink_node(self.topology.places[rank].host) for rank in rings[0]})
        fabric = Fabric(
            num_ranks=n,
            num_hosts=hosts,
            inside_gb_per_s=gb_per_s if hosts < n else math.inf,
            across_gb_per_s=gb_per_s if hosts > 1 else math.inf,
            num_nics=1,
            switch_gb_per_s=0.0,
            nvlink=False,
            generation=self._generation(rings[0]),
            network_factor=self._network_factor,
        )
        algorithms = tuple(_scaled(each, share) for each in nccl.all_reduce(fabric))
        return _PhaseCost(name=name, algorithms=(algorithms,), busy=load.busy)

    def _fabric(self, ranks: Sequence[int]) -> Fabric:
        by_host: dict[int, dict[str, None]] = {}  # a dict, which keeps the order
        for rank in ranks:
            place = self.topology.places[rank]
            by_host.setdefault(place.host, {})[place.device] = None
        if (of_domains := self._fabric_of_domains(ranks, by_host)) is not None:
            return of_domains
        alike = {(id(self._graphs[host]), tuple(devices)): host for host, devices in by_host.items()}
        parts = [(self._graphs[host], devices) for (_, devices), host in alike.items()]
        networks = [graph.network(devices) for graph, devices in parts] if len(by_host) > 1 else [(math.inf, 1)]
        across, num_nics = min(networks)
        return Fabric(
            num_ranks=len(ranks),
            num_hosts=len(by_host),
            inside_gb_per_s=min(graph.rings_gb_per_s(devices) for graph, devices in parts),
            across_gb_per_s=across,
            num_nics=num_nics,
            switch_gb_per_s=min(graph.switch_gb_per_s(tuple(devices)) for graph, devices in parts),
            nvlink=all(graph.joined_by_nvlink(devices) for graph, devices in parts if len(devices) > 1),
            generation=self._generation(ranks),
            network_factor=self._network_factor,
        )

    def _fabric_of_domains(self, ranks: Sequence[int], by_host: Mapping[int, Iterable[str]]) -> Fabric | None:
        """The fabric where NVSwitches join hosts: to NCCL an NVLink domain is one host. None where none does."""
        by_node: dict[object, list[tuple[Graph, tuple[str, ...]]]] = {}
        for host, devices in by_host.items():
            by_node.setdefault(self.topology.nvlink_node(host), []).append((self._graphs[host], tuple(devices)))
        every = [(graph, device) for hosts in by_node.values() for graph, devices in hosts for device in devices]
        rates = [graph.nvswitch_of(device) for graph, device in every]
        if len(by_node) == len(by_host) or None in rates:
            return None
        switch = min(rate for _, rate in filter(None, rates))
        networks = [[graph.network(devices) for graph, devices in hosts] for hosts in by_node.values()]
        across = [(sum(gb_per_s for gb_per_s, _ in own), sum(num_nics for _, num_nics in own)) for own in networks]
        return Fabric(
            num_ranks=len(ranks),
            num_hosts=len(by_node),
            inside_gb_per_s=switch,
            across_gb_per_s=min(across)[0] if len(by_node) > 1 else math.inf,
            num_nics=min(across)[1] if len(by_node) > 1 else 1,
            switch_gb_per_s=switch,
            nvlink=True,
            generation=self._generation(ranks),
            network_factor=self._network_factor,
        )

    def _generation(self, ranks: Iterable[int]) -> nccl.Generation:
        known = {self._capability[self.topology.places[r].host, self.topology.places[r].device] for r in ranks}
        order: list[nccl.Generation] = ["volta", "ampere", "hopper", "blackwell"]
        return min((nccl.generation(capability) for capability in known), key=order.index)

    # -- flows -------------------------------------------------------------------------------------------------------

    def _gloo(self, name: str, flows: Sequence[tuple[int, int, float]], steps: int) -> _PhaseCost:
        load = self._load(flows)
        return load.phase(name, GLOO_CALL_US + steps * load.latency_us)

    def _load(self, flows: Iterable[tuple[int, int, float]]) -> "_Load":
        load = _Load()
        for a, b, sent in flows:
            here, there = self.topology.places[a], self.topology.places[b]
            if here.host == there.host:
                ends = [(here.host, here.device, there.device)]
            else:
                out, back = self._meeting(here, there)
                ends = [(here.host, here.device, out), (there.host, back, there.device)]
            latency = 0.0
            for host, start, end in ends:
                graph = self._graphs[host]
                nic = self._only_nic(host) if len(ends) > 1 and self.backend == "gloo" else None
                route = graph.path(start, end, load.of_host.setdefault(host, {}), nic)
                latency += graph.latency_us(route)
                for edge in route:
                    load.add(host, edge, sent, graph.gb_per_s_between(start, end, edge))
            load.latency_us = max(load.latency_us, latency)
        return load

    def _meeting(self, here: RankPlacement, there: RankPlacement) -> tuple[str, str]:
        """The vertices of two hosts at which a flow from one to the other leaves and enters."""
        switches = [self._graphs[place.host].nvswitch_of(place.device) for place in (here, there)]
        one_domain = self.topology.nvlink_node(here.host) == self.topology.nvlink_node(there.host)
        if self.backend == "nccl" and one_domain and switches[0] and switches[1]:
            return switches[0][0], switches[1][0]
        return NETWORK, NETWORK

    def _only_nic(self, host: int) -> str | None:
        """The network card that gloo uses: the fastest."""
        graph = self._graphs[host]
        leading = [nic for nic in graph.nics if graph.leads_out(nic)]
        return max(leading, key=lambda nic: graph.width(graph.path(nic, NETWORK)), default=None)


class _Load:
    """The load of simultaneous flows on the links: us and bytes, each per byte of the bucket."""

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

    def phase(self, name: str, latency_us: float) -> _PhaseCost:
        busy = self.busy
        slowest = max(busy, key=lambda edge: busy[edge], default=None)
        sent = self.sent[slowest] if slowest is not None else 0.0
        only = Algorithm(name="", latency_us=latency_us, us_per_byte=self.us_per_byte, sent=sent)
        return _PhaseCost(name=name, algorithms=((only,),), busy=busy)


def _network_factor(host: Host) -> float:
    """EFA is known by its cloud: its cards look like InfiniBand ones."""
    by_sockets = bool(host.nics) and all(nic.kind == "ethernet" for nic in host.nics)
    return nccl.NETWORK_FACTOR if by_sockets or host.facts.get("hypervisor") == EFA_CLOUD else 1.0


def _ring(ranks: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ranks, (*ranks[1:], ranks[0]), strict=True))


def _scaled(algorithm: Algorithm, share: float) -> Algorithm:
    """The cost per byte of a bucket of which `share` is sent."""
    return replace(algorithm, us_per_byte=algorithm.us_per_byte * share, sent=algorithm.sent * share)
