"""NVLink domains of several hosts, against one host with the same GPUs on one NVSwitch, and a published bandwidth."""

import ctypes
from dataclasses import replace

import pytest

from tests.topology.hosts import FakeNvml, bus, nvml_host
from trainkit.planning.cost import CostModel
from trainkit.planning.plan import candidates, groupings, plan_all_reduce
from trainkit.planning.reduce_plan import ReducePlan, flat
from trainkit.planning.simulate import simulate, workload
from trainkit.planning.traffic import network_bytes
from trainkit.topology.paths import between
from trainkit.topology.presets import preset
from trainkit.topology.topology import Device, Host, Link, RankPlacement, Topology

SIZES = (1 << 20, 25_000_000, 1 << 30)


def rack(num_hosts: int) -> Topology:
    return preset("gb200-nvl72", num_hosts)


def one_host(num_gpus: int) -> Topology:
    """GPUs of the same links on one NVSwitch."""
    devices = tuple(Device(id=f"gpu{i}", compute_capability="10.0") for i in range(num_gpus))
    links = tuple(
        Link(a=d.id, b="nvswitch", kind="nvswitch", bandwidth_gb_per_s=721.8, latency_us=0.5) for d in devices
    )
    return Topology(hosts=(Host(name="one", devices=devices, switches=("nvswitch",), links=links),))


def without_domains(topology: Topology) -> Topology:
    return replace(topology, hosts=tuple(replace(host, facts={}) for host in topology.hosts))


def test_the_published_bandwidth_of_two_trays():
    """811 GB/s: nccl-tests, 2 x 4 GB200 of one rack (lixueduan.com/posts/ai/13-gb200-mnnvl-nccl-test)."""
    assert CostModel(rack(2)).bus_bandwidth_gb_per_s(flat(8), 16 << 30) == pytest.approx(811, rel=0.05)


@pytest.mark.parametrize("num_hosts", [2, 18])
@pytest.mark.parametrize("size", SIZES)
def test_the_hosts_of_a_domain_are_one_machine(num_hosts, size):
    plan = flat(4 * num_hosts)
    expected = CostModel(one_host(4 * num_hosts)).all_reduce_us(plan, size)
    assert CostModel(rack(num_hosts)).all_reduce_us(plan, size) == pytest.approx(expected)
    assert CostModel(without_domains(rack(num_hosts))).all_reduce_us(plan, size) > 1.05 * expected


def test_one_rank_a_host_has_the_switch_too():
    topology = rack(4)
    places = tuple(RankPlacement(host=i, device="gpu0") for i in range(4))
    model = CostModel(replace(topology, places=places))
    assert model.all_reduce_us(flat(4), 1 << 30) == pytest.approx(
        CostModel(one_host(4)).all_reduce_us(flat(4), 1 << 30)
    )


def test_no_exact_plan_beats_the_bandwidth_between_racks():
    topology, size = rack(36), 10**9
    network_gb_per_s = 18 * 4 * 48.0
    for entry in candidates(topology, size):
        assert entry.time_us >= size / network_gb_per_s / 1e3 * 0.999999, entry.plan.describe()


class Rack(FakeNvml):
    """NVML of a tray: `state` 3 is completed."""

    class c_nvmlGpuFabricInfo_v2_t(ctypes.Structure):
        _fields_ = (
            ("version", ctypes.c_uint),
            ("clusterUuid", ctypes.c_uint8 * 16),
            ("status", ctypes.c_uint),
            ("cliqueId", ctypes.c_uint32),
            ("state", ctypes.c_uint8),
            ("healthMask", ctypes.c_uint32),
        )

    cluster, clique, state = bytes(range(16)), 7, 3

    def nvmlDeviceGetGpuFabricInfoV(self, handle, pointer):
        info = pointer._obj
        info.clusterUuid[:], info.cliqueId, info.state = list(self.cluster), self.clique, self.state
        return 0


def test_nvml_names_the_domain():
    one, other, alone, starting = (Rack([bus(0), bus(1)]) for _ in range(4))
    other.clique, alone.cluster, starting.state = 8, bytes(16), 2
    domains = [nvml_host(module).facts.get("nvlink_domain") for module in (one, one, other, alone, starting)]
    assert domains == [f"{bytes(range(16)).hex()}.{n}" for n in (7, 7, 8)] + [None, None]
    hosts = tuple(replace(nvml_host(one), name=name) for name in "ab")
    assert len(Topology(hosts=hosts).ranks_by_nvlink_node()) == 1


def test_racks_share_the_network():
    """A ring over two racks crosses the network cards of each, of 18 hosts or of 2."""
    inside, across = CostModel(rack(18)), CostModel(rack(20))
    assert across.all_reduce_us(flat(80), 1 << 30) > inside.all_reduce_us(flat(72), 1 << 30)
    assert network_bytes(rack(18), flat(72), 1 << 20, orders_rings=True) == 0
    assert network_bytes(rack(20), flat(80), 1 << 20, orders_rings=True) == pytest.approx(2 * 79 / 80 * (1 << 20))


def test_flows_between_hosts_of_a_domain_use_the_switch():
    topology = rack(2)
    plan = ReducePlan(kind="hierarchical", groups=topology.ranks_by_host(), wire_dtype="int8")
    fast, slow = (
        sum(phase.time_us for phase in CostModel(each).phases(plan, 1 << 30) if "between" in phase.name)
        for each in (topology, without_domains(topology))
    )
    assert fast < 0.3 * slow  # four NVLinks of 721.8 GB/s a host in place of four network cards of 48
    ((host, out), (other, back)) = between(topology, 0, 4)
    assert (host, out.vertices, other, back.vertices) == (0, ("gpu0", "nvswitch"), 1, ("nvswitch", "gpu0"))
    assert out.kind == back.kind == "NVS"
    assert {kind for _, way in between(rack(19), 0, 72) for kind in (way.kind,)} == {"NET"}


def test_groups_by_rack_are_planned():
    assert groupings(rack(36))[0] == (tuple(range(72)), tuple(range(72, 144)))
    assert plan_all_reduce(rack(18), 25_000_000).kind == "flat"


def test_a_step_scales_further_in_a_rack():
    points = simulate(preset("gb200-nvl72"), [1, 18], workload("bert-large"))
    assert points[1].num_devices == 72 and points[1].efficiency > 0.9
    other = simulate(preset("dgx-h100"), [9], workload("bert-large"))[0]
    assert points[1].samples_per_s > other.samples_per_s
