"""What a plan sends from host to host, counted. Pure."""

from collections.abc import Sequence

from trainkit.planning.cost import ELEMENT_BYTES, WIRE_BYTES
from trainkit.planning.reduce_plan import ReducePlan
from trainkit.topology.topology import Topology


def network_bytes(topology: Topology, plan: ReducePlan, num_bytes: int, *, orders_rings: bool) -> float:
    """Bytes that the busiest host sends to others in one all-reduce of float32.

    orders_rings: the backend puts the ranks of a host side by side, as NCCL does and gloo does not.

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
            if home != topology.places[b].host:
                sent[home] += each

    ranks = [rank for group in plan.groups for rank in group]
    wire = WIRE_BYTES[plan.format] / ELEMENT_BYTES
    if plan.kind in ("flat", "ring"):
        by_host = [rank for own in topology.ranks_by_host() for rank in own]
        ring(by_host if orders_rings else ranks, 1.0)
        return max(sent.values())
    size = len(plan.groups[0]) if plan.kind == "hierarchical" else 1
    for place in range(size):
        ring([group[place] for group in plan.groups], wire / size)
    for group in plan.groups:  # where a group spans hosts, its own legs cross too
        if plan.kind == "hierarchical":
            ring(group, 1.0)
    return max(sent.values())
