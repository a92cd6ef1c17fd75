"""Bytes from host to host, against the bounds of a ring and of a hierarchy."""

import pytest

from tests.topology.machines import cpu_hosts
from trainkit.planning.reduce_plan import ReducePlan, WireDtype, flat
from trainkit.planning.traffic import network_bytes

SIZE = 1 << 20


def _share(topology, plan, orders_rings=False):
    return network_bytes(topology, plan, SIZE, orders_rings=orders_rings) / SIZE


@pytest.mark.parametrize(("hosts", "each"), [(2, 2), (4, 2), (2, 8), (8, 8)])
def test_flat_and_hierarchical(hosts, each):
    topology, num_ranks = cpu_hosts(hosts, each, 0.1), hosts * each
    groups = topology.ranks_by_host()
    parts: dict[WireDtype, float] = {"exact": 1.0, "fp16": 0.5, "int8": 0.25 + 1 / 256}
    assert _share(topology, flat(num_ranks)) == pytest.approx(2 * (num_ranks - 1) / num_ranks)
    for kind in ("hierarchical", "leader"):
        for wire_dtype, part in parts.items():
            plan = ReducePlan(kind=kind, groups=groups, wire_dtype=wire_dtype)
            assert _share(topology, plan) == pytest.approx(2 * (hosts - 1) / hosts * part)


def test_a_bad_order_of_ranks_crosses_more_often():
    topology = cpu_hosts(2, 4, 0.1, order="round robin")
    assert _share(topology, flat(8)) == pytest.approx(4 * 2 * 7 / 8)
    assert _share(topology, flat(8), orders_rings=True) == pytest.approx(2 * 7 / 8)
    ring = ReducePlan(kind="ring", groups=topology.ranks_by_host())
    assert _share(topology, ring) == pytest.approx(2 * 7 / 8)
