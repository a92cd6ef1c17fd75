"""Accuracy: how far published all-reduces are from their predictions, by kind of machine and size. Pure."""

from typing import Literal

from trainkit.planning.cost import CostModel
from trainkit.planning.reduce_plan import ReducePlan
from trainkit.topology.graph import Graph
from trainkit.topology.staging import is_staged
from trainkit.topology.topology import Topology

MachineKind = Literal["staged", "PCIe and NVLink pairs", "NVSwitch", "several hosts"]
SMALL_BYTES = 128 << 20
"""The largest message of the first pair of PUBLISHED_RANGES; the second is of larger ones."""
PUBLISHED_RANGES: dict[MachineKind, tuple[tuple[float, float], tuple[float, float]]] = {
    "staged": ((0.50, 0.98), (0.51, 1.27)),
    "PCIe and NVLink pairs": ((0.82, 1.01), (0.94, 1.08)),
    "NVSwitch": ((0.84, 1.09), (0.99, 1.03)),
    "several hosts": ((0.61, 1.20), (0.84, 1.04)),
}
"""The 10th and the 90th percentile of published over predicted bus bandwidths, of all rows of
benchmarks/published_all_reduces.yaml; a test holds them against these."""


def machine_kind(topology: Topology) -> MachineKind:
    """The kind of machine on which the ranks of a topology communicate.

    Args:
        topology: of a job with at least two ranks.

    Example:
        >>> from trainkit.topology.presets import preset
        >>> machine_kind(preset("dgx-h100"))
        'NVSwitch'
    """
    if len(topology.ranks_by_nvlink_node()) > 1:
        return "several hosts"
    by_host = topology.ranks_by_host()
    if len(by_host) > 1:  # one NVLink domain
        return "NVSwitch"
    host = topology.hosts[topology.places[by_host[0][0]].host]
    devices = tuple(dict.fromkeys(topology.places[rank].device for rank in by_host[0]))
    graph = Graph(host)
    if len(devices) > 1 and graph.has_nvswitch(devices):
        return "NVSwitch"
    return "staged" if is_staged(host) and not graph.joined_by_nvlink(devices) else "PCIe and NVLink pairs"


def time_range_us(model: CostModel, plan: ReducePlan, num_bytes: int) -> tuple[float, float] | None:
    """The range in which 8 of 10 published all-reduces of such a machine and size lie, and the prediction too.

    Args:
        model: of the machines.
        plan: of the all-reduce.
        num_bytes: of the bucket of float32 gradients.

    Returns:
        Microseconds, the shorter time first; None for gloo and AMD's Infinity Fabric, with which nothing was compared.

    Raises:
        TopologyError: where no link leads from one rank to another.
    """
    if model.backend != "nccl" or any(link.kind == "xgmi" for host in model.topology.hosts for link in host.links):
        return None
    low, high = PUBLISHED_RANGES[machine_kind(model.topology)][num_bytes > SMALL_BYTES]
    time_us = model.all_reduce_us(plan, num_bytes)
    return time_us / max(high, 1.0), time_us / min(low, 1.0)
