"""The time of NCCL's ring, tree and NVLS algorithms.

The tables are those of NCCL 2.28's tuner (graph/tuning.cc): latencies in us, bandwidths in GB/s. What its kernels take
differs from what the tuner expects, above all below 128 MiB. The factors that are called fitted say by how much; they
minimize the absolute errors over the fitted half of the published rows (benchmarks/predictions.py). NCCL is taken to
choose the fastest algorithm: what its tuner's other choices cost is within the range of the predictions.
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
STEP_FACTOR: dict[str, dict[Protocol, float]] = {
    "nvlink": {"LL": 0.33, "LL128": 1.0, "Simple": 2.7},
    "pcie": {"LL": 1.0, "LL128": 1.0, "Simple": 1.0},
    "nic": {"LL": 1.0, "LL128": 3.7, "Simple": 2.8},
}
"""The latency of a step over that of the tuner; those that are not 1 are fitted."""
GPU_FACTOR: dict[Generation, float] = {"volta": 2.3, "ampere": 2.3, "hopper": 1.0, "blackwell": 1.0}
"""On the latencies of kernels that wait for NVLink. Fitted to the A100."""
NETWORK_FACTOR = 6.6
"""On the latencies between hosts over EFA, and over network cards without RDMA. Fitted to EFA."""
NVLS_US = 87.0
"""The latency of NVLS. NCCL's tuner has 25; fitted."""
NVLS_TREE_US = 207.0
"""The latency of NVLS over hosts without its steps between them. NCCL's tuner has 25; fitted."""
NVLS_TREE_STEP_US = 11.0
"""Of a step between hosts. NCCL's tuner has 20.9; fitted."""
PROTOCOL_EFFICIENCY: dict[Protocol, float] = {"LL": 0.5, "LL128": 0.92, "Simple": 1.0}
LL_FACTOR = 0.41
"""The bandwidth of the LL protocol over the tuner's. Fitted."""
LL_GB_PER_S: dict[Generation, float] = {"volta": 39.0, "ampere": 87.7, "hopper": 141.0, "blackwell": 282.0}
LL_GB_PER_S_ACROSS_HOSTS = {2: 22.5, 3: 19.0}
TREE_LL_EFFICIENCY = 1 / 3.8
TREE_EFFICIENCY = 0.92
"""Of trees within a host."""
NVLS_EFFICIENCY: dict[Generation, float] = {"volta": 0.0, "ampere": 0.0, "hopper": 0.83, "blackwell": 0.74}
"""Of the bandwidth of the links. That of Hopper is fitted; NCCL's tuner has 0.85."""
TREE_CHANNEL_GB_PER_S: dict[Generation, tuple[float, float]] = {
    "volta": (18.5, 10.0),
    "ampere": (23.6, 17.8),
    "hopper": (41.4, 36.0),
    "blackwell": (42.8, 24.0),
}
"""The largest bus bandwidth of a channel of a tree over two hosts, and over more."""
NVLS_TREE_CHANNEL_GB_PER_S: dict[Generation, tuple[float, float]] = {
    "volta": (18.5, 10.0),
    "ampere": (23.6, 17.8),
    "hopper": (59.9, 45.5),
    "blackwell": (96.0, 80.0),
}
"""Of an NVLS tree. That of Hopper over two hosts is fitted; NCCL's tuner has 57.7."""
NET_OVERHEAD_US: dict[Protocol, float] = {"LL": 2.0, "LL128": 2.0, "Simple": 6.0}
RING_PLATEAU = 1.4
"""The factor on the latency of a ring over hosts with the Simple protocol, as in NCCL's tuner."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The links between the ranks of one NCCL communicator.

    Args:
        num_ranks: of the communicator.
        num_hosts: on which they run.
        inside_gb_per_s: that each device sends along all rings of its host together; infinite for one device per host.
        across_gb_per_s: that a host sends to the others, over `num_nics` network cards; infinite for one host.
        num_nics: network cards of a host.
        switch_gb_per_s: of one device into an NVSwitch; 0 without one.
        nvlink: whether the devices of a host are connected by NVLink.
        generation: of the oldest device.
        network_factor: on the latencies between hosts: 1 over InfiniBand and RoCE, otherwise NETWORK_FACTOR.
    """

    num_ranks: int
    num_hosts: int
    inside_gb_per_s: float
    across_gb_per_s: float
    num_nics: int
    switch_gb_per_s: float
    nvlink: bool
    generation: Generation
    network_factor: float = 1.0

    @property
    def ranks_per_host(self) -> int:
        """The number of ranks on each host, rounded up."""
        return math.ceil(self.num_ranks / self.num_hosts)

    def step_us(self, what: Literal["ring", "tree"], protocol: Protocol) -> float:
        """The latency of a step within a host."""
        link = "nvlink" if self.nvlink else "pcie"
        return STEP_US[link][what][protocol] * STEP_FACTOR[link][protocol] * self._gpu_factor

    def step_across_us(self, what: Literal["ring", "tree"], protocol: Protocol) -> float:
        """The latency of a step between hosts."""
        return STEP_US["nic"][what][protocol] * STEP_FACTOR["nic"][protocol] * self.network_factor

    def call_us(self, what: Literal["ring", "tree"], protocol: Protocol) -> float:
        """The latency of a call."""
        return CALL_US[what][protocol] * self._gpu_factor

    @property
    def _gpu_factor(self) -> float:
        return GPU_FACTOR[self.generation] if self.nvlink else 1.0

    @property
    def num_channels(self) -> int:
        """Channels of rings and trees over hosts: one for each network card, or two for a few fast cards."""
        wide = self.across_gb_per_s / self.num_nics >= 25.0
        few = self.generation in ("volta", "ampere") or self.num_nics <= 4
        return self.num_nics * (2 if wide and few else 1)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The cost of one algorithm with one protocol.

    Args:
        name: such as `ring, LL128`.
        latency_us: for any number of bytes.
        us_per_byte: of the bucket.
        sent: bytes on the slowest link per byte of the bucket.
    """

    name: str
    latency_us: float
    us_per_byte: float
    sent: float

    def time_us(self, num_bytes: float) -> float:
        """The time for a bucket of `num_bytes`, in microseconds."""
        return self.latency_us + self.us_per_byte * num_bytes


def generation(compute_capability: str | None) -> Generation:
    """The GPU generation of a compute capability such as `9.0`; `volta`, the slowest, where it is unknown."""
    major = int(compute_capability.split(".")[0]) if compute_capability else 7
    return "volta" if major < 8 else "ampere" if major == 8 else "hopper" if major == 9 else "blackwell"


def all_reduce(fabric: Fabric) -> tuple[Algorithm, ...]:
    """The algorithms of an all-reduce."""
    return (*_rings(fabric, "all_reduce"), *_trees(fabric), *_nvls(fabric))


def reduce_scatter(fabric: Fabric) -> tuple[Algorithm, ...]:
    """The algorithms of reduce-scatter, and of all-gather, which costs the same. Bytes are of the whole bucket."""
    return tuple(_rings(fabric, "reduce_scatter"))


def broadcast(fabric: Fabric) -> tuple[Algorithm, ...]:
    """The algorithms of broadcast and reduce, which use rings without the last link."""
    return tuple(_rings(fabric, "broadcast"))


def _rings(fabric: Fabric, what: Literal["all_reduce", "reduce_scatter", "broadcast"]) -> Iterator[Algorithm]:
    n, hosts = fabric.num_ranks, fabric.num_hosts
    rounds = 2 if what == "all_reduce" else 1
    sent = 1.0 if what == "broadcast" else rounds * (n - 1) / n
    narrowest = min(fabric.inside_gb_per_s, fabric.across_gb_per_s)
    for protocol, efficiency in PROTOCOL_EFFICIENCY.items():
        if protocol == "LL128" and not fabric.nvlink:
            continue
        gb_per_s = narrowest * efficiency
        if protocol == "LL":
            across = LL_GB_PER_S_ACROSS_HOSTS[min(hosts, 3)] if hosts > 1 else math.inf
            gb_per_s = min(gb_per_s, across * LL_FACTOR, LL_GB_PER_S[fabric.generation] * LL_FACTOR)
        inside = fabric.step_us("ring", protocol)
        steps, steps_across = rounds * (n - 1), rounds * (hosts - 1)
        if hosts > 1:
            inside = max(inside, NET_OVERHEAD_US[protocol])
        latency = (steps - steps_across) * inside + steps_across * fabric.step_across_us("ring", protocol)
        if protocol == "Simple" and hosts > 1:
            latency *= RING_PLATEAU
        yield Algorithm(
            name=f"ring, {protocol}",
            latency_us=fabric.call_us("ring", protocol) + latency,
            us_per_byte=sent / (gb_per_s * 1e3),
            sent=sent,
        )


def _trees(fabric: Fabric) -> Iterator[Algorithm]:
    hosts, rounds = fabric.num_hosts, math.ceil(math.log2(fabric.num_hosts))
    local, n = fabric.ranks_per_host, fabric.num_ranks
    # NCCL builds two trees, each for half the data; a host is an inner vertex of one and a leaf of the other. Within a
    # host a tree is a chain, and each channel has its own, so each device is an end of some of them.
    sent_across = 0.0 if hosts == 1 else 1.0 if hosts == 2 else 2.0
    sent_inside = 2 * (local - 1) / local
    channels_gb_per_s = (
        fabric.num_channels * TREE_CHANNEL_GB_PER_S[fabric.generation][hosts > 2] if hosts > 1 else math.inf
    )
    for protocol, efficiency in PROTOCOL_EFFICIENCY.items():
        if protocol == "LL128" and not fabric.nvlink:
            continue
        kept = TREE_LL_EFFICIENCY * LL_FACTOR if protocol == "LL" else efficiency
        step = fabric.step_us("tree", protocol)
        latency = 2 * ((local - 1) * step + rounds * fabric.step_across_us("tree", protocol))
        yield Algorithm(
            name=f"tree, {protocol}",
            latency_us=fabric.call_us("tree", protocol) + latency,
            us_per_byte=max(
                sent_inside / (fabric.inside_gb_per_s * TREE_EFFICIENCY * kept * 1e3),
                sent_across / (fabric.across_gb_per_s * kept * 1e3),
                2 * (n - 1) / n / (channels_gb_per_s * kept * 1e3),
            ),
            sent=sent_across or sent_inside,
        )


def _nvls(fabric: Fabric) -> Iterator[Algorithm]:
    """The switch adds: a device sends its bucket once and 1/n of the sum, and receives as much."""
    efficiency = NVLS_EFFICIENCY[fabric.generation]
    local, hosts = fabric.ranks_per_host, fabric.num_hosts
    if fabric.switch_gb_per_s == 0 or efficiency == 0 or local < 3:
        return
    inside = (1 + 1 / local) / (fabric.switch_gb_per_s * efficiency * 1e3)
    if hosts == 1:
        yield Algorithm(name="NVLS", latency_us=NVLS_US, us_per_byte=inside, sent=1 + 1 / local)
        return
    sent = 1.0 if hosts == 2 else 2.0
    rounds, n = math.ceil(math.log2(hosts)), fabric.num_ranks
    channels_gb_per_s = min(fabric.num_nics, local) * NVLS_TREE_CHANNEL_GB_PER_S[fabric.generation][hosts > 2]
    yield Algorithm(
        name="NVLS tree",
        latency_us=NVLS_TREE_US + 2 * rounds * NVLS_TREE_STEP_US * fabric.network_factor,
        us_per_byte=max(inside, sent / (fabric.across_gb_per_s * 1e3), 2 * (n - 1) / n / (channels_gb_per_s * 1e3)),
        sent=sent,
    )
