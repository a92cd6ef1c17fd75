"""Oracles: published parameter counts and throughputs of BERT, a step composed by hand, and monotonicity."""

import pytest

from tests.topology.machines import cpu_hosts
from trainkit.errors import TopologyError
from trainkit.planning.cost import CostModel
from trainkit.planning.simulate import BUCKET_BYTES, Point, Workload, knee, simulate, what_if, workload
from trainkit.topology.presets import preset

CHATTY = Workload(name="chatty", num_parameters=340_000_000, flops_per_sample=1e9, samples_per_device=64, tflops=100.0)


@pytest.mark.parametrize(("name", "millions"), [("bert-base", 110), ("bert-large", 336)])
def test_parameters_are_those_of_the_paper(name, millions):
    assert workload(name).num_parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("device", "precision", "sequences_per_s"),
    [("dgx-a100", "fp16", 580), ("dgx-a100", "tf32", 317), ("dgx-1", "fp16", 224)],
)
def test_one_device_computes_as_fast_as_nvidia_published(device, precision, sequences_per_s):
    point = simulate(preset(device), [1], workload("bert-large", precision=precision, samples_per_device=8192))[0]
    assert point.samples_per_s / 8 == pytest.approx(sequences_per_s, rel=0.1)


@pytest.mark.parametrize(("num_nodes", "published"), [(1, 4591 / (8 * 580)), (32, 138_300 / (256 * 580))])
def test_scaling_is_near_what_nvidia_published(num_nodes, published):
    """BERT-large in fp16, a global batch of 65,536, reduced once a step."""
    batch = workload("bert-large", precision="fp16", samples_per_device=65_536 // (8 * num_nodes))
    assert simulate(preset("dgx-a100"), [num_nodes], batch)[0].efficiency == pytest.approx(published, abs=0.08)


def test_a_step_composed_by_hand():
    """Two buckets: the first is ready after forward and half of backward, the second at the end."""
    small = Workload(
        name="two buckets", num_parameters=12_500_000, flops_per_sample=1e9, samples_per_device=60, tflops=1.0
    )
    topology = preset("pcie-8")
    point = simulate(topology, [1], small)[0]
    one_us = CostModel(topology).all_reduce_us(point.plan, BUCKET_BYTES)
    assert point.compute_us == pytest.approx(60_000)
    assert one_us < 20_000
    assert point.communication_us == pytest.approx(2 * one_us)
    assert point.exposed_us == pytest.approx(one_us)
    assert point.samples_per_s == pytest.approx(8 * 60 / (60_000 + one_us) * 1e6)


def test_at_most_all_but_the_backward_pass_is_exposed():
    for point in simulate(preset("workstation-2"), [1, 2, 4], CHATTY):
        assert point.communication_us - 2 / 3 * point.compute_us <= point.exposed_us * 1.000001
        assert point.exposed_us <= point.communication_us


def test_more_nodes_are_never_more_efficient():
    points = simulate(preset("pcie-8"), [1, 2, 4, 8, 16], workload("bert-large"))
    efficiency = [point.efficiency for point in points]
    assert efficiency == sorted(efficiency, reverse=True)
    found = knee(points)
    assert isinstance(found, Point)
    assert found.efficiency < 0.9
    assert all(point.efficiency >= 0.9 for point in points[: points.index(found)])
    assert knee(simulate(preset("dgx-h100"), [1], workload("bert-large", samples_per_device=4096))) is None


def test_nvlink_pays_where_communication_is_exposed():
    without = {entry.change: entry for entry in what_if(preset("dgx-a100"), CHATTY, 1)}["without NVLink"]
    assert without.gain < -1
    hidden = workload("bert-large", samples_per_device=65_536)
    assert abs({entry.change: entry for entry in what_if(preset("dgx-a100"), hidden, 1)}["without NVLink"].gain) < 0.01


def test_nvlink_is_offered_where_there_is_none():
    changes = {entry.change: entry.gain for entry in what_if(preset("pcie-8"), CHATTY, 1)}
    assert list(changes) == ["with NVLink through an NVSwitch, 12 links a device"]
    assert changes["with NVLink through an NVSwitch, 12 links a device"] > 0.5


def test_a_faster_network_never_slows():
    for name in ("pcie-8", "dgx-a100", "workstation-2"):
        gains = {entry.change: entry.gain for entry in what_if(preset(name), CHATTY, 2) if "network" in entry.change}
        assert len(gains) == 2
        assert all(gain >= 0 for gain in gains.values())
    assert gains["network cards 4 x as fast"] > gains["network cards 2 x as fast"] > 0.3


def test_int8_where_it_is_tolerated():
    exact, int8 = (simulate(preset("workstation-2"), [2], CHATTY, wire_dtype=t)[0] for t in ("exact", "int8"))
    assert int8.step_us < 0.5 * exact.step_us
    assert int8.plan.wire_dtype == "int8"


def test_errors_say_what_to_give():
    with pytest.raises(TopologyError, match=r"no recipe 'bert-lage'.*Did you mean 'bert-large'"):
        workload("bert-lage")
    with pytest.raises(TopologyError, match=r"give --tflops \(tflops=\)"):
        simulate(cpu_hosts(1, 2, 1.0), [1], workload("bert-base"))
    with pytest.raises(TopologyError, match=r"precision=bf16: .* must use one of"):
        simulate(preset("dgx-1"), [1], workload("bert-base"))
