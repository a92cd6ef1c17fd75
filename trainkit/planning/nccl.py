"""NCCL's own choice: the time of its ring, tree and NVLS algorithms, as its tuner estimates them.

The figures are those of NCCL 2.28 (graph/tuning.cc): latencies in us, bandwidths in GB/s.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["LL", "LL128", "Simple"]
Generation = Literal["volta", "ampere", "hopper", "blackwell"]

CALL_US: dict[str, dict[Protocol, float]] = {
    "tree": {"LL": 6.8, "LL128": 14.0, "Simple": 8.4},
    "ring": {"LL": 6.6, "LL128": 14.0, "Simple": 8.4},
}
STEP_US: dict[str, dict[str, dict[Protocol, float]]] = {
    "nvlink": {
        "tree": {"LL": 0.6, "LL128": 1.25, "Simple": 4.0},
        "ring": {"LL": 0.6, "LL128": 1.9, "Simple": 3.4},
    },
    "pcie": {"tree": {"LL": 1.0, "LL128": 1.9, "Simple": 4.0}, "ring": {"LL": 1.0, "LL128": 2.5, "Simple": 5.7}},
    "nic": {"tree": {"LL": 5.0, "LL128": 8.5, "Simple": 14.0}, "ring": {"LL": 2.7, "LL128": 4.0, "Simple": 14.0}},
}
NVLS_US = 80.0
"""Until the switch adds at its full rate. NCCL's tuner says 25; fitted to 8 x H100 (benchmarks/predictions.py)."""
NVLS_TREE_STEP_US = 20.9
PROTOCOL_EFFICIENCY: dict[Protocol, float] = {"LL": 0.5, "LL128": 0.92, "Simple": 1.0}
LL_GB_PER_S: dict[Generation, float] = {"volta": 39.0, "ampere": 87.7, "hopper": 141.0, "blackwell": 282.0}
LL_GB_PER_S_ACROSS_HOSTS = {2: 22.5, 3: 19.0}
TREE_EFFICIENCY = 0.92
"""Inside a host."""
NVLS_EFFICIENCY: dict[Generation, float] = {"volta": 0.0, "ampere": 0.0, "hopper": 0.83, "blackwell": 0.74}
"""Of the links. Hopper's is fitted to 8 x H100; NCCL's tuner says 0.85."""
TREE_CHANNEL_GB_PER_S: dict[Generation, tuple[float, float]] = {
    "volta": (18.5, 10.0),
    "ampere": (23.6, 17.8),
    "hopper": (41.4, 36.0),
    "blackwell": (42.8, 24.0),
}
"""What a channel of a tree carries at most across two hosts, and across more; in bus bandwidth."""
NVLS_TREE_CHANNEL_GB_PER_S: dict[Generation, tuple[float, float]] = {
    "volta": (18.5, 10.0),
    "ampere": (23.6, 17.8),
    "hopper": (57.7, 45.5),
    "blackwell": (96.0, 80.0),
}
NET_OVERHEAD_US: dict[Protocol, float] = {"LL": 2.0, "LL128": 2.0, "Simple": 6.0}
RING_PLATEAU = 1.4
"""What the ring's steps cost more once the message no longer fits into NCCL's buffers."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What NCCL finds between the ranks of one communicator.

    inside_gb_per_s: what each device sends along all rings of its host together; infinite for one device a host.
    across_gb_per_s: what a host sends to the others, over `num_nics` network cards; infinite for one host.
    switch_gb_per_s: of one device into an NVSwitch; 0 without one.
    """

    num_ranks: int
    num_hosts: int
    inside_gb_per_s: float
    across_gb_per_s: float
    num_nics: int
    switch_gb_per_s: float
    nvlink: bool
    generation: Generation

    @property
    def ranks_per_host(self) -> int:
        return math.ceil(self.num_ranks / self.num_hosts)

    @property
    def num_channels(self) -> int:
        """Of rings and trees across hosts: one a network card, or two where it is wide and there are few of them."""
        wide = self.across_gb_per_s / self.num_nics >= 25.0
        few = self.generation in ("volta", "ampere") or self.num_nics <= 4
        return self.num_nics * (2 if wide and few else 1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One algorithm with one protocol. sent: of the bucket's bytes, what crosses the slowest link."""

    name: str
    latency_us: float
    us_per_byte: float
    sent: float

    def time_us(self, num_bytes: float) -> float:
        return self.latency_us + self.us_per_byte * num_bytes


def generation(compute_capability: str | None) -> Generation:
    major = int(compute_capability.split(".")[0]) if compute_capability else 7
    return "volta" if major < 8 else "ampere" if major == 8 else "hopper" if major == 9 else "blackwell"


def all_reduce(fabric: Fabric) -> tuple[Way, ...]:
    """Every way NCCL has for it."""
    return (*_rings(fabric, "all_reduce"), *_trees(fabric), *_nvls(fabric))


def reduce_scatter(fabric: Fabric) -> tuple[Way, ...]:
    """Of reduce-scatter, and of all-gather, which is its mirror. Bytes are those of the whole bucket."""
    return tuple(_rings(fabric, "reduce_scatter"))


def broadcast(fabric: Fabric) -> tuple[Way, ...]:
    """Of broadcast, and of reduce, along rings that are cut open."""
    return tuple(_rings(fabric, "broadcast"))


def _rings(fabric: Fabric, what: Literal["all_reduce", "reduce_scatter", "broadcast"]) -> Iterator[Way]:
    n, hosts = fabric.num_ranks, fabric.num_hosts
    turns = 2 if what == "all_reduce" else 1
    sent = 1.0 if what == "broadcast" else turns * (n - 1) / n
    narrowest = min(fabric.inside_gb_per_s, fabric.across_gb_per_s)
    for protocol, efficiency in PROTOCOL_EFFICIENCY.items():
        if protocol == "LL128" and not fabric.nvlink:
            continue
        gb_per_s = narrowest * efficiency
        if protocol == "LL":
            across = LL_GB_PER_S_ACROSS_HOSTS[min(hosts, 3)] if hosts > 1 else math.inf
            gb_per_s = min(gb_per_s, across, LL_GB_PER_S[fabric.generation])
        inside = STEP_US["nvlink" if fabric.nvlink else "pcie"]["ring"][protocol]
        steps, steps_across = turns * (n - 1), turns * (hosts - 1)
        if hosts > 1:
            inside = max(inside, NET_OVERHEAD_US[protocol])
        latency = (steps - steps_across) * inside + steps_across * STEP_US["nic"]["ring"][protocol]
        if protocol == "Simple" and hosts > 1:
            latency *= RING_PLATEAU
        yield Way(
            name=f"ring, {protocol}",
            latency_us=CALL_US["ring"][protocol] + latency,
            us_per_byte=sent / (gb_per_s * 1e3),
            sent=sent,
        )


def _trees(fabric: Fabric) -> Iterator[Way]:
    hosts, rounds = fabric.num_hosts, math.ceil(math.log2(fabric.num_hosts))
    local, n = fabric.ranks_per_host, fabric.num_ranks
    # Of the two trees, each with half the data, a host is an inner vertex in one and a leaf in the other. Within a host
    # a tree is a chain, and every channel has its own: each device is an end of some of them.
    sent_across = 0.0 if hosts == 1 else 1.0 if hosts == 2 else 2.0
    sent_inside = 2 * (local - 1) / local
    channels_gb_per_s = (
        fabric.num_channels * TREE_CHANNEL_GB_PER_S[fabric.generation][hosts > 2] if hosts > 1 else math.inf
    )
    for protocol, efficiency in PROTOCOL_EFFICIENCY.items():
        if protocol == "LL128" and not fabric.nvlink:
            continue
        kept = 1 / 3.8 if protocol == "LL" else efficiency
        step = STEP_US["nvlink" if fabric.nvlink else "pcie"]["tree"][protocol]
        latency = 2 * ((local - 1) * step + rounds * STEP_US["nic"]["tree"][protocol])
        yield Way(
            name=f"tree, {protocol}",
            latency_us=CALL_US["tree"][protocol] + latency,
            us_per_byte=max(
                sent_inside / (fabric.inside_gb_per_s * TREE_EFFICIENCY * kept * 1e3),
                sent_across / (fabric.across_gb_per_s * kept * 1e3),
                2 * (n - 1) / n / (channels_gb_per_s * kept * 1e3),
            ),
            sent=sent_across or sent_inside,
        )


def _nvls(fabric: Fabric) -> Iterator[Way]:
    """The switch adds: a device sends its whole bucket once, and its share of the sum; so it receives."""
    efficiency = NVLS_EFFICIENCY[fabric.generation]
    local, hosts = fabric.ranks_per_host, fabric.num_hosts
    if fabric.switch_gb_per_s == 0 or efficiency == 0 or local < 3:
        return
    inside = (1 + 1 / local) / (fabric.switch_gb_per_s * efficiency * 1e3)
    if hosts == 1:
        yield Way(name="NVLS", latency_us=NVLS_US, us_per_byte=inside, sent=1 + 1 / local)
        return
    sent = 1.0 if hosts == 2 else 2.0
    rounds, n = math.ceil(math.log2(hosts)), fabric.num_ranks
    channels_gb_per_s = min(fabric.num_nics, local) * NVLS_TREE_CHANNEL_GB_PER_S[fabric.generation][hosts > 2]
    yield Way(
        name="NVLS tree",
        latency_us=NVLS_US + 2 * rounds * NVLS_TREE_STEP_US,
        us_per_byte=max(inside, sent / (fabric.across_gb_per_s * 1e3), 2 * (n - 1) / n / (channels_gb_per_s * 1e3)),
        sent=sent,
    )
