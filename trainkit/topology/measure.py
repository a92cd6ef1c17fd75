"""Measures links, by a short probe between neighbours, and the bus bandwidth of all-reduces."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from trainkit.errors import TopologyError
from trainkit.topology.paths import between
from trainkit.topology.topology import Link, Topology

SMALL_BYTES = 8
FIRST_BYTES, MOST_BYTES, GROWTH = 4096, 64_000_000, 4
ENOUGH_S, MOST_S = 0.05, 0.25  # of one message: enough for a good measurement; the maximum on a slow link
NUM_ROUNDS, NUM_WARM = 5, 2  # the first messages fill buffers and token buckets and are too fast
ASYMMETRY = 1.1
BENCH_S, MOST_ITERATIONS = 0.2, 20

Report = Callable[[str], None]
Edge = tuple[int, int, bool]  # host, number of the link there, from its a to its b


@dataclass(frozen=True)
class Flow:
    """The messages from one rank to its neighbour while all neighbours sent.

    Args:
        a: the rank that sent.
        b: the rank that received.
        gb_per_s: of large messages.
        latency_us: of a small message.
    """

    a: int
    b: int
    gb_per_s: float
    latency_us: float


@dataclass(frozen=True)
class Timing:
    """The time of an all-reduce, with bandwidths as nccl-tests define them.

    Args:
        num_bytes: of the tensor.
        time_us: the mean over calls and ranks.
        world_size: ranks.
        num_wrong: elements of the first result that are not the sum.
    """

    num_bytes: int
    time_us: float
    world_size: int
    num_wrong: int

    @property
    def algorithm_gb_per_s(self) -> float:
        """Bytes of the tensor divided by the time."""
        return self.num_bytes / self.time_us / 1e3

    @property
    def bus_gb_per_s(self) -> float:
        """2 (n - 1) / n of the algorithm bandwidth: that of a ring on its slowest link.

        Example:
            >>> Timing(num_bytes=8_000_000, time_us=1000.0, world_size=4, num_wrong=0).bus_gb_per_s
            12.0
        """
        return self.algorithm_gb_per_s * 2 * (self.world_size - 1) / self.world_size


# -- probe -------------------------------------------------------------------------------------------------------------


def probe(topology: Topology, group: dist.ProcessGroup | None = None, report: Report = lambda text: None) -> Topology:
    """Measures the links of a topology, in 4 s at most. Collective: every rank must call.

    First the ranks of each host send around a ring, all at the same time; then the first ranks of the hosts do. Links
    that cannot be measured in this way keep their figures: see `with_flows`.

    Args:
        topology: of the ranks of `group`.
        group: of all ranks; None: the default one.
        report: called with the name of each part of the probe before it starts.

    Returns:
        The topology with measured figures, the same on all ranks.

    Raises:
        TopologyError: where the group has another size than the topology.
    """
    if not dist.is_initialized():
        return topology
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    if topology.world_size != world_size:
        raise TopologyError(
            f"the topology has {topology.world_size} ranks and the process group {world_size}: "
            f"start {topology.world_size} processes"
        )
    device = _device(topology, rank, group)
    rings = topology.ranks_by_host()
    inside, across = None, None
    if any(len(ring) > 1 for ring in rings):
        report("links inside each host")
        inside = exchange(next(ring for ring in rings if rank in ring), device, group)
    if len(rings) > 1:
        report("links between hosts")
        across = exchange([ring[0] for ring in rings], device, group)
    everyone: list[tuple[Flow | None, ...]] = [()] * world_size
    dist.all_gather_object(everyone, (inside, across), group=group)
    phases = [[flow for flow in flows if flow is not None] for flows in zip(*everyone, strict=True)]
    answer = [with_flows(topology, *phases) if rank == 0 else None]
    dist.broadcast_object_list(answer, group_src=0, group=group)
    assert answer[0] is not None
    return answer[0]


def exchange(ring: Sequence[int], device: torch.device, group: dist.ProcessGroup | None = None) -> Flow | None:
    """Sends messages around rings, in all of them at the same time. Collective: every rank must call.

    Args:
        ring: the ranks of this rank's ring, each of which sends to the next; two of them exchange. One alone: this rank
            only waits for the others.
        device: of the messages.
        group: of all ranks; None: the default one.

    Returns:
        What this rank received; None for a ring of one. All rings use the same sizes.
    """
    rank = dist.get_rank(group)
    takes_part = rank in ring and len(ring) > 1
    index = ring.index(rank) if takes_part else 0
    after, before = ring[(index + 1) % len(ring)], ring[index - 1]

    def rounds(num_bytes: int, num: int) -> list[float]:
        if not takes_part:
            return []
        out, into = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
        seconds = []
        for _ in range(num):
            began = time.perf_counter()
            operations = [
                dist.P2POp(dist.irecv, into, group=group, group_peer=before),
                dist.P2POp(dist.isend, out, group=group, group_peer=after),
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            _wait_for(device)
            seconds.append(time.perf_counter() - began)
        return seconds

    _agree([], device, group)  # NCCL needs all ranks in the first operation of a group
    small = rounds(SMALL_BYTES, 25)[5:]
    size = FIRST_BYTES
    while True:
        fastest, slowest = _agree(rounds(size, 2)[1:], device, group)
        if fastest >= ENOUGH_S or GROWTH * slowest > MOST_S or size == MOST_BYTES:
            break
        size = min(GROWTH * size, MOST_BYTES)
    large = rounds(size, NUM_ROUNDS)[NUM_WARM:]
    if not takes_part:
        return None
    latency_s, whole_s = statistics.median(small), statistics.median(large)
    # With a size near the small one, the difference of the two times would be noise.
    moving_s = max(whole_s - latency_s, whole_s / 4)
    return Flow(before, rank, (size - SMALL_BYTES) / moving_s / 1e9, 1e6 * latency_s)


def _agree(seconds: Sequence[float], device: torch.device, group: dist.ProcessGroup | None) -> tuple[float, float]:
    """The shortest and the longest of all ranks' times; some ranks have none."""
    none = float("-inf")
    extremes = torch.tensor(
        [-min(seconds), max(seconds)] if seconds else [none, none], dtype=torch.float64, device=device
    )
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    return -float(extremes[0]), float(extremes[1])


def _device(topology: Topology, rank: int, group: dist.ProcessGroup | None) -> torch.device:
    wants_cuda = topology.device_of(rank).kind == "cuda" and "nccl" in str(dist.get_backend_config(group))
    return torch.device("cuda", torch.cuda.current_device()) if wants_cuda else torch.device("cpu")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- flows to links ----------------------------------------------------------------------------------------------------


def with_flows(topology: Topology, *phases: Sequence[Flow]) -> Topology:
    """Derives the bandwidths of links from flows. Pure.

    The slowest link of a path has the bandwidth that it carried, in its faster direction. Where that leaves no link of
    a path full, the link of the sender is assumed to be the limit, as a rate-limited uplink is. Other links of a path
    keep their figure unless they carried more. Links that carried nothing get the median of the measured links of their
    host with the same kind and nominal figure.

    Args:
        topology: with nominal figures.
        *phases: lists of flows; those of one list ran at the same time.

    Returns:
        The topology with measured figures.
    """
    narrowest: set[tuple[int, int]] = set()
    found: dict[tuple[int, int], float] = defaultdict(float)
    latencies: dict[tuple[int, int], list[float]] = defaultdict(list)
    every: list[tuple[list[Edge], dict[Edge, float], set[tuple[int, int]]]] = []
    for flows in phases:
        paths = [(flow, _edges(topology, flow)) for flow in flows]
        load = Counter(edge for _, path in paths for edge in path)
        carried: dict[Edge, float] = defaultdict(float)
        tight: set[tuple[int, int]] = set()
        for flow, path in paths:
            shares = [_link(topology, edge).bandwidth_gb_per_s / load[edge] for edge in path]
            tight |= {edge[:2] for edge, share in zip(path, shares, strict=True) if share <= 1.01 * min(shares)}
            nominal_us = sum(_link(topology, edge).latency_us for edge in path)
            for edge in path:
                carried[edge] += flow.gb_per_s
                own = _link(topology, edge).latency_us / nominal_us if nominal_us else 1 / len(path)
                latencies[edge[:2]].append(flow.latency_us * own)
            every.append((path, carried, tight))
        for edge, rate in carried.items():
            if edge[:2] in tight or edge[:2] not in narrowest:
                found[edge[:2]] = max(found[edge[:2]], rate)
        narrowest |= tight
    for number, i in found.keys() - narrowest:
        found[number, i] = max(found[number, i], topology.hosts[number].links[i].bandwidth_gb_per_s)
    for path, carried, tight in every:
        if path and all(found[edge[:2]] > ASYMMETRY * carried[edge] for edge in path):
            limit = next(edge for edge in path if edge[:2] in tight)
            found[limit[:2]] = carried[limit]
    return _with_links(topology, found, {at: _mean(values) for at, values in latencies.items()}, narrowest)


def _with_links(
    topology: Topology,
    found: Mapping[tuple[int, int], float],
    latencies: Mapping[tuple[int, int], float],
    narrowest: Collection[tuple[int, int]],
) -> Topology:
    hosts = []
    for number, host in enumerate(topology.hosts):
        links = [
            replace(link, bandwidth_gb_per_s=found[number, i], latency_us=latencies[number, i], source="measured")
            if (number, i) in found
            else link
            for i, link in enumerate(host.links)
        ]
        alike: dict[tuple[str, float], list[Link]] = defaultdict(list)
        for i, link in enumerate(host.links):
            if (number, i) in narrowest:
                alike[link.kind, link.bandwidth_gb_per_s].append(links[i])
        for i, link in enumerate(host.links):
            same = alike.get((link.kind, link.bandwidth_gb_per_s), [])
            if (number, i) not in found and same:
                links[i] = replace(
                    link,
                    bandwidth_gb_per_s=statistics.median(other.bandwidth_gb_per_s for other in same),
                    latency_us=statistics.median(other.latency_us for other in same),
                    source="measured",
                )
        hosts.append(replace(host, links=tuple(links)))
    return replace(topology, hosts=tuple(hosts))


def _edges(topology: Topology, flow: Flow) -> list[Edge]:
    edges = []
    for host, path in between(topology, flow.a, flow.b):
        for vertex, link in zip(path.vertices, path.links, strict=False):
            edges.append((host, topology.hosts[host].links.index(link), vertex == link.a))
    return edges


def _link(topology: Topology, edge: Edge) -> Link:
    return topology.hosts[edge[0]].links[edge[1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# -- bench -------------------------------------------------------------------------------------------------------------


def bench(
    sizes: Sequence[int],
    reduce: Callable[[torch.Tensor], None] | None = None,
    *,
    device: torch.device | None = None,
    group: dist.ProcessGroup | None = None,
) -> Iterator[Timing]:
    """Times in-place all-reduces of float32 tensors. Collective: every rank must call, and take as many results.

    The result of the first call of each size is checked; the following calls are timed.

    Args:
        sizes: bytes of the tensors, rounded down to whole elements, at least 1.
        reduce: sums a 1-d tensor over all ranks in place; None: the all-reduce of PyTorch.
        device: of the tensors; None: the CPU.
        group: of all ranks; None: the default one.

    Yields:
        A timing for each size, the same on all ranks.
    """
    world_size = dist.get_world_size(group) if dist.is_initialized() else 1
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    where = device or torch.device("cpu")

    def flat(tensor: torch.Tensor) -> None:
        if world_size > 1:
            dist.all_reduce(tensor, group=group)

    call = reduce or flat
    for size in sizes:
        num = max(size // 4, 1)
        pattern = (torch.arange(num, device=where) % 13 + 1).float()
        buffer = pattern + rank  # small integers: the sum is the same in any order
        expected = world_size * pattern + world_size * (world_size - 1) / 2
        call(buffer)
        wrong = float((buffer != expected).sum())
        buffer.zero_()
        first = _seconds(call, buffer, 1)
        longest = _agree([first], where, group)[1] if world_size > 1 else first
        num_calls = max(1, min(MOST_ITERATIONS, int(BENCH_S / max(longest, 1e-9))))
        sums = torch.tensor([_seconds(call, buffer, num_calls) / num_calls, wrong], dtype=torch.float64, device=where)
        flat(sums)
        yield Timing(4 * num, 1e6 * float(sums[0]) / world_size, world_size, int(sums[1]))


def _seconds(call: Callable[[torch.Tensor], None], buffer: torch.Tensor, num: int) -> float:
    _wait_for(buffer.device)
    began = time.perf_counter()
    for _ in range(num):
        call(buffer)
    _wait_for(buffer.device)
    return time.perf_counter() - began
