"""What the probe makes of flows, and that all ranks get the same; bus bandwidth and its check."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.topology import shapes
from trainkit.testing import RankError, run_ranks
from trainkit.topology import measure
from trainkit.topology.measure import Flow, Timing, bench, probe, with_flows
from trainkit.topology.topology import Topology

# -- from flows to links: pure -----------------------------------------------------------------------------------------


def _rates(topology, kind):
    return [[link.bandwidth_gb_per_s for link in host.links if link.kind == kind] for host in topology.hosts]


def test_a_ring_between_hosts_measures_network_cards():
    topology = shapes.cpu_hosts(3)
    flows = [Flow(0, 2, 0.025, 100.0), Flow(2, 4, 0.025, 100.0), Flow(4, 0, 0.025, 100.0)]
    found = with_flows(topology, flows)
    assert _rates(found, "nic") == [[0.025]] * 3
    assert _rates(found, "loopback") == _rates(topology, "loopback")
    for host in found.hosts:
        (wire,) = [link for link in host.links if link.kind == "nic"]
        assert wire.source == "measured"
    # Both halves of the path together take what was measured.
    own = [link.latency_us for link in found.hosts[0].links if link.a != "cpu1"]
    assert 2 * sum(own) == pytest.approx(100.0)


def test_a_slow_host_slows_its_neighbours_flows_not_their_cards():
    slow_both_ways = [Flow(0, 2, 0.02, 50.0), Flow(2, 4, 0.02, 50.0), Flow(4, 6, 0.1, 50.0), Flow(6, 0, 0.1, 50.0)]
    assert _rates(with_flows(shapes.cpu_hosts(4), slow_both_ways), "nic") == [[0.1], [0.02], [0.1], [0.1]]


def test_a_sender_that_is_slow_is_to_blame():
    flows = [Flow(0, 2, 0.1, 50.0), Flow(2, 0, 0.02, 50.0)]
    assert _rates(with_flows(shapes.cpu_hosts(2), flows), "nic") == [[0.1], [0.02]]


def test_a_ring_inside_a_host_measures_its_links():
    topology = shapes.dgx_h100()
    inside = [Flow(i, (i + 1) % 8, 350.0, 5.0) for i in range(8)]
    assert _rates(with_flows(topology, inside), "nvswitch") == [[350.0] * 8]
    nodes = shapes.dgx_h100(2)
    across = [Flow(0, 8, 40.0, 9.0), Flow(8, 0, 42.0, 9.0)]
    found = with_flows(nodes, [], across)
    # One card of each host carried something; the others are like it.
    assert _rates(found, "nic") == [[42.0] * 8] * 2
    assert _rates(found, "nvswitch") == _rates(nodes, "nvswitch")


def test_flows_that_share_a_link_add_up():
    topology = shapes.cube_without_nvlink()
    found = with_flows(topology, [Flow(0, 4, 3.0, 1.0), Flow(1, 5, 4.0, 1.0)])
    assert _rates(found, "socket") == [[7.0]]


def test_the_phases_are_counted_apart():
    topology = shapes.cpu_hosts(2)
    inside = [Flow(0, 1, 1.0, 30.0), Flow(1, 0, 1.0, 30.0), Flow(2, 3, 1.5, 30.0), Flow(3, 2, 1.5, 30.0)]
    across = [Flow(0, 2, 0.05, 60.0), Flow(2, 0, 0.05, 60.0)]
    found = with_flows(topology, inside, across)
    assert _rates(found, "loopback") == [[1.0, 1.0], [1.5, 1.5]]
    assert _rates(found, "nic") == [[0.05], [0.05]]


def test_noise_does_not_change_the_fingerprint():
    topology = shapes.cpu_hosts(2)

    def measured(factor):
        inside = [Flow(a, b, factor * (1 + a / 10), 30.0 * factor) for a, b in ((0, 1), (1, 0), (2, 3), (3, 2))]
        return with_flows(topology, inside, [Flow(0, 2, factor / 30, 60.0), Flow(2, 0, factor / 20, 61.0)])

    assert measured(1.0).fingerprint() == measured(9.0).fingerprint()
    assert measured(1.0) != measured(9.0)


def test_without_flows_nothing_changes():
    assert with_flows(shapes.dgx_1()) == shapes.dgx_1() == probe(shapes.dgx_1())


# -- on ranks ----------------------------------------------------------------------------------------------------------


def _probe(hosts, ranks_per_host):
    said: list[str] = []
    measure.MOST_BYTES = 1_000_000  # quick
    found = probe(shapes.cpu_hosts(hosts, ranks_per_host), report=said.append)
    return found.to_json(), said


@pytest.mark.parametrize(("hosts", "each"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_all_ranks_get_the_same(hosts, each):
    answers = run_ranks(_probe, hosts * each, hosts, each)
    assert len({text for text, _ in answers}) == 1
    found = Topology.from_json(answers[0][0])
    by_kind = {"loopback": each > 1, "nic": hosts > 1}
    for kind, was_measured in by_kind.items():
        links = [link for host in found.hosts for link in host.links if link.kind == kind]
        assert all((link.source == "measured") == was_measured for link in links if kind == "nic" or each > 1)
        assert all(0.001 < link.bandwidth_gb_per_s < 1000 and link.latency_us > 0 for link in links)
    begun = ["links inside each host"] * (each > 1) + ["links between hosts"] * (hosts > 1)
    assert all(said == begun for _, said in answers)


def test_a_topology_of_another_size_is_refused():
    with pytest.raises(RankError, match="the topology has 4 ranks and the process group 2"):
        run_ranks(_probe, 2, 2, 2)


def test_bus_bandwidth():
    row = Timing(num_bytes=1_000_000_000, time_us=1e6, world_size=8, num_wrong=0)
    assert row.algorithm_gb_per_s == pytest.approx(1.0)
    assert row.bus_gb_per_s == pytest.approx(2 * 7 / 8)
    assert replace(row, world_size=1).bus_gb_per_s == 0


def _bench(reduce):
    return list(bench([1, 1000, 100_000], reduce))


def _forgets_the_last(tensor):
    last = tensor[-1].clone()
    dist.all_reduce(tensor)
    tensor[-1] = last


def _does_nothing(tensor: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_bench_counts_what_is_wrong(world_size):
    answers = run_ranks(_bench, world_size, None)
    assert all(answer == answers[0] for answer in answers)
    assert [(row.num_bytes, row.num_wrong) for row in answers[0]] == [(4, 0), (1000, 0), (100_000, 0)]
    assert all(row.time_us > 0 and row.world_size == world_size for row in answers[0])
    if world_size > 1:
        wrong = [row.num_wrong for row in run_ranks(_bench, world_size, _does_nothing)[0]]
        assert wrong == [world_size, 250 * world_size, 25_000 * world_size]
        assert [row.num_wrong for row in run_ranks(_bench, world_size, _forgets_the_last)[0]] == [world_size] * 3
