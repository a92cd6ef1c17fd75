"""Staged messages and ACS. Oracles: crossings of a link counted by hand, and published machines."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.machines import machine
from trainkit.planning.cost import CostModel
from trainkit.planning.reduce_plan import flat
from trainkit.topology.graph import Graph
from trainkit.topology.staging import KERNEL_GB_PER_S, SHARE, is_staged, link_gb_per_s
from trainkit.topology.topology import Device, Host, Link, Topology

CARDS: dict[str, Any] = {"num_gpus": 4, "capability": "8.9", "gpus_per_switch": 2}
UPLINK_GB_PER_S = 20.0


def graph(**facts: Any) -> Graph:
    return Graph(machine(**CARDS, **facts).hosts[0])


def crossings(some: Graph, a: str, b: str) -> list[tuple[str, str]]:
    links = [(some.links[number], forward) for number, forward in some.path(a, b)]
    return [(link.a, link.b) if forward else (link.b, link.a) for link, forward in links]


def test_cards_at_one_switch_reach_each_other_below_its_uplink():
    assert crossings(graph(), "gpu0", "gpu1") == [("gpu0", "pcie0"), ("pcie0", "gpu1")]


@pytest.mark.parametrize("facts", [{"acs": True}, {"p2p": False}])
def test_redirected_messages_cross_the_uplink_up_and_down(facts):
    found = crossings(graph(**facts), "gpu0", "gpu1")
    assert found == [("gpu0", "pcie0"), ("pcie0", "socket0"), ("socket0", "pcie0"), ("pcie0", "gpu1")]
    between = crossings(graph(**facts), "gpu0", "gpu2")
    assert between == [("gpu0", "pcie0"), ("pcie0", "socket0"), ("socket0", "pcie1"), ("pcie1", "gpu2")]


def test_messages_turn_above_the_highest_switch_on_their_way():
    links = [("gpu0", "pcie1"), ("pcie1", "pcie0"), ("gpu1", "pcie0"), ("pcie0", "socket0")]
    host = Host(
        name="nested",
        devices=(Device(id="gpu0"), Device(id="gpu1")),
        switches=("pcie0", "pcie1", "socket0"),
        links=tuple(Link(a=a, b=b, kind="pcie", bandwidth_gb_per_s=24, latency_us=1) for a, b in links),
        facts={"acs": True},
    )
    found = crossings(Graph(host), "gpu0", "gpu1")
    assert found == [*links[:2], ("pcie0", "socket0"), ("socket0", "pcie0"), ("pcie0", "gpu1")]


def test_two_flows_share_an_uplink_under_acs():
    """Each of the two sends up and down: half of the uplink; 19 to 21 GB/s are published for PCIe 5."""
    assert graph(acs=True).rings_gb_per_s(("gpu0", "gpu1")) == pytest.approx(UPLINK_GB_PER_S / 2)
    assert graph().rings_gb_per_s(("gpu0", "gpu1")) == pytest.approx(24)
    fast = Graph(machine(**CARDS, slot_gb_per_s=48, acs=True).hosts[0])
    assert fast.rings_gb_per_s(("gpu0", "gpu1", "gpu2", "gpu3")) == pytest.approx(20, rel=0.06)


def test_network_messages_do_not_turn():
    host = machine(num_gpus=2, capability="8.0", nics=[100], p2p=False).hosts[0]
    assert len(Graph(host).path("gpu0", "network")) == 3


def test_kernels_on_an_amd_host_are_the_limit_not_the_links():
    cards = ("gpu0", "gpu2")
    assert graph(p2p=False, cpu="AuthenticAMD").rings_gb_per_s(cards) == pytest.approx(KERNEL_GB_PER_S)
    assert graph(p2p=False).rings_gb_per_s(cards) == pytest.approx(KERNEL_GB_PER_S)
    assert graph(p2p=False, cpu="GenuineIntel").rings_gb_per_s(cards) == pytest.approx(UPLINK_GB_PER_S * SHARE)
    by_engine = graph(p2p=False, cpu="AuthenticAMD", copy_engine=True)
    assert by_engine.rings_gb_per_s(cards) == pytest.approx(UPLINK_GB_PER_S * SHARE)


def test_measured_links_keep_their_bandwidth():
    host = machine(**CARDS, p2p=False).hosts[0]
    for link in host.links:
        assert link_gb_per_s(host, replace(link, source="measured")) == link.bandwidth_gb_per_s


def test_unknown_peer_access_is_not_staged():
    assert not is_staged(machine(**CARDS).hosts[0])
    assert not is_staged(machine(**CARDS, p2p=True).hosts[0])
    assert is_staged(machine(**CARDS, p2p=False).hosts[0])


# -- access of some pairs ----------------------------------------------------------------------------------------------

ACROSS = {f"gpu{a} gpu{b}": "chipset not supported" for a in (0, 1) for b in (2, 3)}


def test_only_pairs_without_access_are_staged():
    some = graph(p2p_off=ACROSS)
    assert [some.is_staged("gpu0", other) for other in ("gpu1", "gpu2")] == [False, True]
    assert crossings(some, "gpu0", "gpu1") == [("gpu0", "pcie0"), ("pcie0", "gpu1")]
    assert some.rings_gb_per_s(("gpu0", "gpu1")) == pytest.approx(24)
    assert some.rings_gb_per_s(("gpu0", "gpu2")) == pytest.approx(KERNEL_GB_PER_S)


def test_a_ring_is_as_fast_as_its_pair_without_access():
    every = ("gpu0", "gpu1", "gpu2", "gpu3")
    assert graph(p2p_off=ACROSS).rings_gb_per_s(every) == pytest.approx(KERNEL_GB_PER_S, rel=0.25)
    assert graph(p2p=False).rings_gb_per_s(every) == pytest.approx(KERNEL_GB_PER_S, rel=0.25)


def test_a_ring_avoids_a_pair_without_access():
    every = ("gpu0", "gpu1", "gpu2", "gpu3")
    one = graph(p2p_off={"gpu0 gpu2": "chipset not supported"})
    assert one.rings_gb_per_s(every) == pytest.approx(graph().rings_gb_per_s(every))


def test_known_pairs_stand_on_a_staged_host():
    """NVML names the pairs, and so the host is a staged one; the pairs with access keep it."""
    some = graph(p2p=False, p2p_off=ACROSS)
    assert not some.is_staged("gpu2", "gpu3")
    assert some.rings_gb_per_s(("gpu2", "gpu3")) == pytest.approx(24)


def test_hosts_that_differ_in_their_pairs_are_predicted_apart():
    two = machine(**CARDS), machine(**CARDS, p2p_off=ACROSS)
    fast, slow = (CostModel(one, "nccl").all_reduce_us(flat(4), 1 << 28) for one in two)
    assert slow > 3 * fast
    both = Topology(hosts=(*two[0].hosts, *two[1].hosts))
    assert len({id(each) for each in CostModel(both, "nccl")._graphs}) == 2
