"""The bytes that a plan sends from host to host. Pure."""

from collections.abc import Sequence

from trainkit.planning.cost import ELEMENT_BYTES, WIRE_BYTES
from trainkit.planning.reduce_plan import ReducePlan
from trainkit.topology.topology import Topology


def network_bytes(topology: Topology, plan: ReducePlan, num_bytes: int, *, orders_rings: bool) -> float:
    """Counts the bytes that the busiest host sends over the network in one all-reduce of float32.

    Hosts of one NVLink domain send nothing over it to each other.

    Args:
        topology: the hosts and their ranks.
        plan: of the all-reduce.
        num_bytes: of the gradient.
        orders_rings: whether the backend puts the ranks of a host next to each other, as NCCL does and gloo does not.

    Returns:
        Bytes.

    Example:
        >>> from trainkit.planning.reduce_plan import flat
        >>> from trainkit.topology.topology import Device, Host
        >>> host = Host(name="", devices=(Device(id="gpu0"), Device(id="gpu1")))
        >>> network_bytes(Topology(hosts=(host, host)), flat(4), 100, orders_rings=True)
        150.0
    """
    sent = dict.fromkeys(range(len(topology.hosts)), 0.0)

    def ring(ranks: Sequence[int], share: float) -> None:
        each = 2 * (len(ranks) - 1) / len(ranks) * share * num_bytes
        for a, b in zip(ranks, [*ranks[1:], ranks[0]], strict=True):
            home = topology.places[a].host
            if topology.nvlink_node(home) != topology.nvlink_node(topology.places[b].host):
                sent[home] += each

    ranks = [rank for group in plan.groups for rank in group]
    wire = WIRE_BYTES[plan.wire_dtype] / ELEMENT_BYTES
    if plan.kind in ("flat", "ring"):
        by_host = [rank for own in topology.ranks_by_nvlink_node() for rank in own]
        ring(by_host if orders_rings else ranks, 1.0)
        return max(sent.values())
    size = len(plan.groups[0]) if plan.kind == "hierarchical" else 1
    for place in range(size):
        ring([group[place] for group in plan.groups], wire / size)
    for group in plan.groups:  # a group that spans hosts sends between them within the group, too
        if plan.kind == "hierarchical":
            ring(group, 1.0)
    return max(sent.values())
