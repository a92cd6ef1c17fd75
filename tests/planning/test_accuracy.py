"""Ranges: around the prediction, by kind of machine, and none where nothing is published."""

import pytest

from tests.topology.machines import cpu_hosts
from trainkit.planning.accuracy import PUBLISHED_RANGES, machine_kind, time_range_us
from trainkit.planning.cost import CostModel
from trainkit.planning.reduce_plan import flat
from trainkit.topology.presets import preset


@pytest.mark.parametrize(
    ("name", "num_nodes", "expected"),
    [
        ("dgx-a100", 1, "NVSwitch"),
        ("dgx-a100", 2, "several hosts"),
        ("gb200-nvl72", 1, "NVSwitch"),
        ("4x4090", 1, "staged"),
        ("2x3090-nvlink", 1, "PCIe and NVLink pairs"),
        ("pcie-8-nvlink-pairs", 1, "PCIe and NVLink pairs"),
    ],
)
def test_a_preset_is_of_its_kind(name, num_nodes, expected):
    assert machine_kind(preset(name, num_nodes)) == expected


@pytest.mark.parametrize("num_bytes", [1 << 20, 1 << 30])
def test_a_range_holds_bandwidths_by_their_percentiles(num_bytes):
    model = CostModel(preset("dgx-h100", 2))
    found = time_range_us(model, flat(16), num_bytes)
    assert found is not None
    low_us, high_us = found
    slow, fast = PUBLISHED_RANGES["several hosts"][num_bytes > 128 << 20]
    time_us = model.all_reduce_us(flat(16), num_bytes)
    assert low_us * fast == pytest.approx(time_us)
    assert high_us * slow == pytest.approx(time_us)
    assert low_us < time_us < high_us


def test_nothing_is_said_of_gloo_and_infinity_fabric():
    assert time_range_us(CostModel(preset("mi300x")), flat(8), 1 << 20) is None
    assert time_range_us(CostModel(cpu_hosts(2, 2, 1.0)), flat(4), 1 << 20) is None
