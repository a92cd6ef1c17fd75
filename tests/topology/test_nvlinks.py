"""NVLinks that are down: what stands behind them is told apart, the weakest GPU decides, and it is named."""

from dataclasses import replace

import pytest

from tests.topology.hosts import FakeNvml, bus, links, matrix, nccl_xml, nvml_host
from tests.topology.shapes import CUBE_MESH
from trainkit.planning.advice import Advice, advise
from trainkit.planning.cost import CostModel
from trainkit.planning.reduce_plan import flat
from trainkit.topology.discover import merge, parse_nccl_xml, parse_topo_matrix
from trainkit.topology.discover.merge import View
from trainkit.topology.topology import Host, Topology

H100 = "NVIDIA H100 80GB HBM3"
SWITCH = "00000000:C0:00.0"


def of_matrix(num_gpus: int, cell, name: str = H100) -> Host:
    return parse_topo_matrix(matrix(num_gpus, cell), gpu_name=name)


def switched(source: str, counts: list[int]) -> Host:
    """A box with an NVSwitch, as a source shows it, of GPUs with so many NVLinks up."""
    if source == "matrix":
        return of_matrix(len(counts), lambda a, b: f"NV{n}" if (n := min(counts[a], counts[b])) else "PHB")
    if source == "xml":
        inside = [f'<nvlink target="0000:c0:00.0" count="{n}" tclass="0x068000"/>' if n else "" for n in counts]
        return parse_nccl_xml(nccl_xml(inside))
    up = {i: [SWITCH] * n for i, n in enumerate(counts)}
    gpus = [bus(i) for i in range(len(counts))]
    levels = {(a, b): 30 for a in range(len(counts)) for b in range(len(counts))}
    return nvml_host(FakeNvml(gpus, name=H100, capability=(9, 0), nvlinks=up, levels=levels))


def bus_gb_per_s(*hosts: Host) -> float:
    topology = Topology(hosts=hosts)
    return CostModel(topology).bus_bandwidth_gb_per_s(flat(topology.world_size), 2**36)


def said(*hosts: Host) -> list[Advice]:
    return [entry for entry in advise(Topology(hosts=hosts)) if "NVLink of" in entry.subject]


@pytest.mark.parametrize("source", ["matrix", "xml", "nvml"])
def test_a_gpu_with_two_nvlinks_down(source):
    host, healthy = switched(source, [18] * 3 + [16] + [18] * 4), switched(source, [18] * 8)
    rates = list(links(host, "nvswitch").values())
    assert rates == pytest.approx([18 * 20.6] * 3 + [16 * 20.6] + [18 * 20.6] * 4)
    assert not links(host, "nvlink")
    assert bus_gb_per_s(host) == pytest.approx(bus_gb_per_s(healthy) * 16 / 18, rel=1e-3)
    (found,) = said(host)
    assert found.severity == "warning"
    assert found.subject.startswith("NVLink of gpu3")
    assert found.problem.startswith("16 of the 18 NVLinks that the other GPUs have are up: ")
    assert "330 GB/s" in found.problem
    for command in ("nvidia-smi nvlink -s", "nvidia-fabricmanager", "dcgmi diag", "RMA"):
        assert command in found.remedy
    assert said(healthy) == []


@pytest.mark.parametrize("source", ["matrix", "xml", "nvml"])
def test_a_gpu_without_any_nvlink(source):
    host = switched(source, [18] * 7 + [0])
    assert list(links(host, "nvswitch")) == [(f"gpu{i}", "nvswitch") for i in range(7)]
    narrowest = min(links(host, "pcie").values())
    assert bus_gb_per_s(host) == pytest.approx(narrowest, rel=1e-3)
    (found,) = said(host)
    assert found.subject.startswith("NVLink of gpu7")
    assert found.problem.startswith("none of the 18 NVLinks that the other GPUs have is up: ")
    assert "goes over PCIe" in found.problem
    assert "CUDA_VISIBLE_DEVICES" in found.remedy


@pytest.mark.parametrize("source", ["matrix", "nvml"])
def test_every_gpu_has_fewer_than_its_card(source):
    (found,) = said(switched(source, [16] * 8))
    assert found.subject == f"NVLink of {', '.join(f'gpu{i}' for i in range(8))} ({H100})"
    assert found.problem.startswith("16 of the 18 NVLinks that this card has are up: ")


def test_nothing_is_said_of_an_unknown_card():
    assert said(of_matrix(8, lambda a, b: "NV16", name="")) == []
    assert said(of_matrix(8, lambda a, b: "NV8", name="NVIDIA H800")) == []  # as many as it was made with


def test_fabric_manager_does_not_run():
    (found,) = said(of_matrix(8, lambda a, b: "NODE"))
    assert found.problem.startswith("none of the 18 NVLinks that this card has is up: ")
    assert said(of_matrix(8, lambda a, b: "NODE", name="NVIDIA H100 PCIe")) == []
    assert said(of_matrix(1, lambda a, b: "")) == []


def test_a_source_that_does_not_show_nvlinks():
    """Neither a cloud's file, nor sysfs, nor an old driver says that they are down."""
    tree = nccl_xml([""] * 4, "80").replace("class=", 'vendor="0x10de" device="0x20b0" class=')
    old = FakeNvml([bus(i) for i in range(4)], lacking=("nvmlDeviceGetNvLinkState",))
    for host in (parse_nccl_xml(tree), nvml_host(old)):
        assert said(host) == []
        assert host.facts["nvlinks"] == "unknown"
        (found,) = [entry for entry in advise(Topology(hosts=(host,))) if entry.subject == "NVLink"]
        assert found.severity == "hint"
    shown = FakeNvml([bus(i) for i in range(4)], name="NVIDIA A10")
    assert "nvlinks" not in nvml_host(shown).facts
    without = tree.replace("0x20b0", "0x2684").replace('sm="80"', 'sm="89"')  # RTX 4090
    assert "nvlinks" not in parse_nccl_xml(without).facts


def test_half_of_the_gpus_are_visible():
    half = of_matrix(4, lambda a, b: "NV18", name="")
    assert list(links(half, "nvswitch").values()) == pytest.approx([18 * 20.0] * 4)
    weak = of_matrix(4, lambda a, b: "NV16" if b == 3 else "NV18", name="")
    assert list(links(weak, "nvswitch").values()) == pytest.approx([18 * 20.0] * 3 + [16 * 20.0])
    assert said(weak)[0].subject == "NVLink of gpu3"


def test_gpus_that_the_job_does_not_use():
    host = switched("nvml", [18] * 7 + [16])
    views = [View(host_id="a", device=d.bus_id, host=host) for d in host.devices[:4] if d.bus_id]
    assert advise(merge(views)) == []


def test_one_of_several_hosts_has_a_weak_gpu():
    good, weak = (replace(switched("matrix", counts), name=n) for n, counts in (("a", [18] * 8), ("b", [18] * 7 + [9])))
    (found,) = said(good, weak)
    assert found.subject.startswith("b: NVLink of gpu7")


# -- direct links: no switch -------------------------------------------------------------------------------------------

CROSSED = {(0, 1): "NV6", (0, 2): "NV6", (0, 3): "NV6", (1, 2): "NV6", (1, 3): "NV6", (2, 3): "NV5"}


@pytest.mark.parametrize(
    "name, num_gpus, cell, expected",
    [
        ("NVIDIA A100-SXM4-40GB", 4, lambda a, b: "NV4", 6),
        ("NVIDIA H100 80GB HBM3", 4, lambda a, b: "NV6", 6),
        ("", 4, lambda a, b: "NV6", 6),
        ("NVIDIA H200 NVL", 8, lambda a, b: "NV6" if a // 4 == b // 4 else "SYS", 12),
        ("NVIDIA A100 80GB PCIe", 4, lambda a, b: "NV12" if a // 2 == b // 2 else "NODE", 2),
        ("NVIDIA GeForce RTX 3090", 4, lambda a, b: "NV4" if a // 2 == b // 2 else "PHB", 2),
        ("Tesla V100-SXM2-32GB", 8, lambda a, b: f"NV{n}" if (n := CUBE_MESH.get((a, b))) else "SYS", 16),
        ("Tesla V100-SXM2-32GB", 4, lambda a, b: f"NV{CUBE_MESH[a, b]}", 6),  # half of a DGX-1, in a container
        ("", 4, lambda a, b: f"NV{CUBE_MESH[a, b]}", 6),
    ],
)
def test_direct_links_are_no_switch(name, num_gpus, cell, expected):
    host = of_matrix(num_gpus, cell, name)
    assert not links(host, "nvswitch")
    assert len(links(host, "nvlink")) == expected
    assert said(host) == []


@pytest.mark.parametrize(
    "name, num_gpus, cell, where, problem",
    [
        (H100, 4, lambda a, b: CROSSED[a, b], "gpu2 - gpu3", "5 of the 6 NVLinks that the other pairs have"),
        (
            "NVIDIA RTX A6000",
            4,
            lambda a, b: {(0, 1): "NV4", (2, 3): "NV2"}.get((a, b), "NODE"),
            "gpu2 - gpu3",
            "2 of the 4 NVLinks that the other pairs have",
        ),
        ("NVIDIA GeForce RTX 3090", 2, lambda a, b: "NV3", "gpu0 - gpu1", "3 of the 4 NVLinks that a pair of these"),
        ("NVIDIA A100 80GB PCIe", 2, lambda a, b: "NV8", "gpu0 - gpu1", "8 of the 12 NVLinks that a pair of these"),
    ],
)
def test_a_bridge_that_sits_badly(name, num_gpus, cell, where, problem):
    host = of_matrix(num_gpus, cell, name)
    assert not links(host, "nvswitch")
    (found,) = said(host)
    assert found.subject == f"NVLink of {where} ({name})"
    assert found.problem.startswith(problem)
    assert "bridge" in found.remedy


def test_a_gpu_of_a_board_with_direct_links_is_dark():
    host = of_matrix(8, lambda a, b: f"NV{CUBE_MESH[a, b]}" if b < 7 and (a, b) in CUBE_MESH else "SYS", name="")
    (found,) = said(host)
    assert found.subject == "NVLink of gpu7"
    assert found.problem.startswith("none of the 6 NVLinks that the other GPUs have is up: ")


def test_slices_have_no_nvlink():
    text = matrix(4, lambda a, b: "NV12" if b < 3 else "NODE")
    sliced = "GPU 3: NVIDIA A100-SXM4-80GB (UUID: GPU-3)\n  MIG 3g.40gb     Device  0: (UUID: MIG-3)\n"
    assert said(parse_topo_matrix(sliced + text)) == []
    assert len(said(parse_topo_matrix(text))) == 1


def test_a_link_is_up_where_both_of_its_ends_are():
    gpus = [bus(0), bus(1)]
    by_nvml = nvml_host(FakeNvml(gpus, nvlinks={0: [gpus[1]] * 4, 1: [gpus[0]] * 3}))
    assert links(by_nvml, "nvlink") == {("gpu0", "gpu1"): 60.0}
    inside = [f'<nvlink target="{bus(1 - i)}" count="{n}" tclass="0x030200"/>' for i, n in enumerate((3, 4))]
    assert links(parse_nccl_xml(nccl_xml(inside, "80")), "nvlink") == {("gpu0", "gpu1"): 60.0}
