"""Oracles: bytes counted by hand, the bandwidth bound, and what nccl-tests define."""

from dataclasses import replace

import pytest

from tests.topology.machines import cpu_hosts
from trainkit.errors import TopologyError
from trainkit.planning.cost import CostModel
from trainkit.planning.plan import candidates
from trainkit.planning.reduce_plan import INT8_BLOCK, ReducePlan, flat
from trainkit.topology.graph import Graph
from trainkit.topology.presets import preset, preset_names
from trainkit.topology.topology import Device, Host, Link, Topology

SIZE = 25_000_000
SLOW = 0.025  # GB/s: 200 Mb/s


def by_host(topology: Topology, kind="hierarchical", **changes) -> ReducePlan:
    return ReducePlan(kind=kind, groups=topology.ranks_by_host(), **changes)


def sent_by_a_host(topology: Topology, plan: ReducePlan) -> float:
    """Bytes through the network cards, in units of the bucket: those phases for which the slow link is the busiest."""
    return (
        sum(
            phase.num_bytes
            for phase in CostModel(topology).phases(plan, SIZE)
            if phase.time_us > SIZE / SLOW / 1e3 * 0.1
        )
        / SIZE
    )


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_bytes_over_the_slow_link_are_those_counted_by_hand(num_hosts):
    """A ring sends 2(N-1)/N a host; with a sum in each host first, 2(H-1)/H."""
    topology, n = cpu_hosts(num_hosts, 2, SLOW), 2 * num_hosts
    exact = 2 * (num_hosts - 1) / num_hosts
    int8 = exact * (1 + 4 / INT8_BLOCK) / 4
    assert sent_by_a_host(topology, flat(n)) == pytest.approx(2 * (n - 1) / n)
    assert sent_by_a_host(topology, by_host(topology)) == pytest.approx(exact)
    assert sent_by_a_host(topology, by_host(topology, "leader")) == pytest.approx(exact)
    assert sent_by_a_host(topology, by_host(topology, wire_dtype="fp16")) == pytest.approx(exact / 2)
    assert sent_by_a_host(topology, by_host(topology, wire_dtype="int8")) == pytest.approx(int8)


def test_round_robin_order_doubles_the_bytes_of_a_flat_ring():
    mixed = cpu_hosts(2, 2, SLOW, order="round robin")
    assert sent_by_a_host(mixed, flat(4)) == pytest.approx(2 * 1.5)
    assert sent_by_a_host(mixed, by_host(mixed, "ring")) == pytest.approx(1.5)


@pytest.mark.parametrize("num_hosts", [2, 3, 4])
@pytest.mark.parametrize("size", [64_000, 4_000_000, 100_000_000])
def test_no_exact_plan_beats_the_bandwidth_bound(num_hosts, size):
    bound_us = 2 * (num_hosts - 1) / num_hosts * size / SLOW / 1e3
    for entry in candidates(cpu_hosts(num_hosts, 2, SLOW), size):
        assert entry.time_us >= bound_us, entry.plan.describe()


@pytest.mark.parametrize("name", [name for name in preset_names() if name != "gb200-nvl72"])  # see test_domain.py
@pytest.mark.parametrize("num_nodes", [2, 4])
def test_no_exact_plan_beats_the_bandwidth_bound_on_any_preset(name, num_nodes):
    topology = preset(name, num_nodes)
    nics = sum(link.bandwidth_gb_per_s for link in topology.hosts[0].links if link.kind == "nic")
    bound_us = 2 * (num_nodes - 1) / num_nodes * 1e9 / nics / 1e3
    for entry in candidates(topology, 10**9):
        assert entry.time_us >= bound_us * 0.999999, entry.plan.describe()


def test_chunks_overlap_phases_and_take_at_least_the_slowest():
    topology = cpu_hosts(2, 2, SLOW, loopback_gb_per_s=0.2)
    model = CostModel(topology)
    whole, chunked = (model.all_reduce_us(by_host(topology, chunk_bytes=c), SIZE) for c in (None, 2 << 20))
    phases = model.phases(by_host(topology), SIZE)
    assert whole == pytest.approx(sum(phase.time_us for phase in phases))
    assert max(phase.time_us for phase in phases) < chunked < 0.95 * whole


def test_legs_over_the_same_link_do_not_overlap():
    """Where the loopback is the slow link, reduce-scatter and all-gather both need it: chunks gain nothing there."""
    topology = cpu_hosts(2, 2, 100.0, loopback_gb_per_s=0.1)
    model = CostModel(topology)
    within_us = 2 * (SIZE / 2) / 0.1 / 1e3
    assert model.all_reduce_us(by_host(topology, chunk_bytes=1 << 20), SIZE) >= within_us


def test_times_measured_on_shaped_links_are_predicted():
    """25 MB on 2 hosts x 2 at 200 Mb/s took 1.617 s flat, 1.164 s hierarchical, 1.084 s with chunks."""
    topology = cpu_hosts(2, 2, SLOW, loopback_gb_per_s=0.2)
    model = CostModel(topology)
    plans = (flat(4), by_host(topology), by_host(topology, chunk_bytes=2 << 20))
    seconds = [model.all_reduce_us(plan, SIZE) / 1e6 for plan in plans]
    assert seconds == pytest.approx([1.617, 1.164, 1.084], rel=0.1)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_twice_the_bandwidth_of_any_kind_of_link_never_slows(name, num_nodes):
    topology, sizes = preset(name, num_nodes), (1 << 16, 1 << 25, 1 << 32)
    whole = flat(topology.world_size)
    before = [CostModel(topology).all_reduce_us(whole, size) for size in sizes]
    for kind in {link.kind for link in topology.hosts[0].links}:
        links = tuple(
            replace(link, bandwidth_gb_per_s=link.bandwidth_gb_per_s * (2 if link.kind == kind else 1))
            for link in topology.hosts[0].links
        )
        faster = CostModel(Topology(hosts=(replace(topology.hosts[0], links=links),)).times(num_nodes))
        for size, slow_us in zip(sizes, before, strict=True):
            assert faster.all_reduce_us(whole, size) <= slow_us * 1.000001, (kind, size)


@pytest.mark.parametrize("name", preset_names())
def test_more_bytes_take_longer(name):
    model = CostModel(preset(name, 2))
    for plan in (flat(model.topology.world_size), by_host(model.topology, chunk_bytes=1 << 20)):
        times = [model.all_reduce_us(plan, 1 << k) for k in range(10, 34)]
        assert times == sorted(times)


def test_bus_bandwidth_is_that_of_nccl_tests():
    model = CostModel(preset("dgx-a100"))
    assert model.bus_bandwidth_gb_per_s(flat(8), 10**9) == pytest.approx(
        1e9 / (model.all_reduce_us(flat(8), 10**9) / 1e6) * 2 * 7 / 8 / 1e9
    )


def test_hybrid_cube_mesh_holds_six_rings():
    """Its 24 links of 2 x 8 lanes part into three cycles through all eight GPUs, each run in both directions."""
    host = preset("dgx-1").hosts[0]
    lane = min(link.bandwidth_gb_per_s for link in host.links if link.kind == "nvlink")
    assert Graph(host).rings_gb_per_s(tuple(d.id for d in host.devices)) == pytest.approx(6 * lane)


def test_rings_share_a_link_that_they_both_need():
    """Four cards on two switches, which one narrow link joins: a ring crosses it once in each direction."""
    cards = tuple(Device(id=f"gpu{i}") for i in range(4))
    links = [Link(a=f"gpu{i}", b=f"pcie{i // 2}", kind="pcie", bandwidth_gb_per_s=12, latency_us=1) for i in range(4)]
    links.append(Link(a="pcie0", b="pcie1", kind="socket", bandwidth_gb_per_s=5, latency_us=1))
    host = Host(name="h", devices=cards, switches=("pcie0", "pcie1"), links=tuple(links))
    graph = Graph(host)
    assert graph.rings_gb_per_s(("gpu0", "gpu1", "gpu2", "gpu3")) == pytest.approx(5)
    assert graph.rings_gb_per_s(("gpu0", "gpu1")) == pytest.approx(12)


def test_a_message_takes_the_widest_then_shortest_path():
    cards = tuple(Device(id=f"gpu{i}") for i in range(3))
    links = (
        Link(a="gpu0", b="gpu1", kind="nvlink", bandwidth_gb_per_s=40, latency_us=1),
        Link(a="gpu1", b="gpu2", kind="nvlink", bandwidth_gb_per_s=40, latency_us=1),
        *(Link(a=f"gpu{i}", b="pcie0", kind="pcie", bandwidth_gb_per_s=12, latency_us=1) for i in range(3)),
    )
    graph = Graph(Host(name="h", devices=cards, switches=("pcie0",), links=links))
    assert graph.path("gpu0", "gpu1") == ((0, True),)
    assert graph.width(graph.path("gpu0", "gpu2")) == 12
    assert graph.islands(("gpu0", "gpu1", "gpu2")) == (("gpu0", "gpu1", "gpu2"),)


def test_all_network_cards_next_to_a_device_are_used():
    host = preset("dgx-h100").hosts[0]
    assert Graph(host).network(["gpu0", "gpu1"]) == pytest.approx((2 * 48, 2))
    for name, cards in (("dgx-a100", 8), ("dgx-1", 4)):
        host = preset(name).hosts[0]
        wire = [link.bandwidth_gb_per_s for link in host.links if link.kind == "nic"]
        assert Graph(host).network([d.id for d in host.devices]) == pytest.approx((sum(wire), cards))


def test_a_missing_link_is_named():
    host = Host(name="lonely", devices=(Device(id="gpu0"), Device(id="gpu1")))
    with pytest.raises(TopologyError, match="'lonely': no path leads from gpu0 to gpu1"):
        CostModel(Topology(hosts=(host,))).all_reduce_us(flat(2), 100)
    with pytest.raises(TopologyError, match="network"):
        CostModel(preset("dgx-1")).topology.times(2)
        bare = replace(preset("dgx-1").hosts[0], nics=(), links=preset("dgx-1").hosts[0].links[:24])
        CostModel(Topology(hosts=(bare,)).times(2)).all_reduce_us(flat(16), 100)


def test_one_rank_has_nothing_to_reduce():
    one = cpu_hosts(1, 1, 1.0)
    assert CostModel(one).all_reduce_us(flat(1), SIZE) == 0
    assert [entry.plan.kind for entry in candidates(one, SIZE)] == ["flat"]
