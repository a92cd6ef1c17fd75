"""Paths between devices: the widest, what passes whom, and what they are called."""

import pytest

from tests.topology import shapes
from trainkit.topology.paths import between, nearest_nic, path


@pytest.mark.parametrize(
    ("machine", "a", "b", "kind", "gb_per_s"),
    [
        (shapes.dgx_1, "gpu0", "gpu3", "NVL", 40.0),
        (shapes.dgx_1, "gpu0", "gpu5", "SYS", 9.0),  # two NVLinks lead there, but over a third GPU
        (shapes.dgx_2, "gpu0", "gpu15", "NVS", 120.0),
        (shapes.cube_without_nvlink, "gpu0", "gpu1", "PIX", 12.0),
        (shapes.cube_without_nvlink, "gpu0", "gpu2", "PHB", 12.0),
        (shapes.cube_without_nvlink, "gpu0", "gpu7", "SYS", 9.0),
        (shapes.workstation, "gpu0", "gpu1", "PHB", 6.0),
        (shapes.cpu_hosts, "cpu0", "cpu1", "MEM", 2.0),
        (shapes.dgx_1, "gpu2", "nic1", "PIX", 12.0),
    ],
)
def test_path(machine, a, b, kind, gb_per_s):
    host = machine().hosts[0]
    for way in (path(host, a, b), path(host, b, a)):
        assert way is not None
        assert (way.kind, way.bandwidth_gb_per_s) == (kind, gb_per_s)
        assert len(way.vertices) == len(way.links) + 1
        for x, y, link in zip(way.vertices, way.vertices[1:], way.links, strict=False):
            assert {x, y} == {link.a, link.b}


def test_nearest_nic_is_that_of_the_own_switch():
    host = shapes.dgx_1().hosts[0]
    nearest = [nearest_nic(host, f"gpu{i}") for i in range(8)]
    assert [found and found[0] for found in nearest] == [f"nic{i // 2}" for i in range(8)]


def test_between_hosts_the_network_joins_two_parts():
    topology = shapes.cpu_hosts(2)
    (first, out), (second, back) = between(topology, 0, 3)
    assert (first, out.vertices) == (0, ("cpu0", "memory", "nic0", "network"))
    assert (second, back.vertices) == (1, ("network", "nic0", "memory", "cpu1"))
    assert out.kind == "NET" and out.bandwidth_gb_per_s == 0.12


def test_no_path():
    host = shapes.box("x", 2, 2, 0)
    assert path(host, "gpu0", "network") is None and nearest_nic(host, "gpu0") is None
