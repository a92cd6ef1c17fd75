"""The text of `nvidia-smi topo -m` of real machines: the right topology, and where a malformed one is wrong."""

import random
import re
from collections import Counter
from typing import Any

import pytest

from tests.topology.hosts import DATA
from trainkit.errors import TopologyError
from trainkit.topology.discover import parse_topo_matrix
from trainkit.topology.topology import Device, Host, Nic, Topology

# NVLinks between pairs as (links each, how many pairs); what hangs on an NVSwitch and by how many links; PCIe switches
# with what is below each; sockets with the GPUs below each.
SHAPES: dict[str, dict[str, Any]] = {
    "dgx1_soc": dict(
        gpus=8,
        nics=4,
        nvlinks={1: 8, 2: 8},
        pcie=["gpu0 gpu1 nic0", "gpu2 gpu3 nic2", "gpu4 gpu5 nic1", "gpu6 gpu7 nic3"],
        sockets=["gpu0 gpu1 gpu2 gpu3 nic0 nic2", "gpu4 gpu5 gpu6 gpu7 nic1 nic3"],
    ),
    "v100x8_mlx5_ragged": dict(
        gpus=8,
        nics=2,
        nvlinks={1: 8, 2: 8},
        pcie=["gpu2 gpu3 nic0", "gpu6 gpu7 nic1"],
        sockets=["gpu0 gpu1 gpu2 gpu3 nic0", "gpu4 gpu5 gpu6 gpu7 nic1"],
    ),
    "dgx2": dict(
        gpus=16,
        nics=10,
        switch=6,
        pcie=[
            *[f"gpu{i} gpu{i + 1} nic{i // 2}" for i in range(0, 16, 2)],
            *[f"gpu{i} gpu{i + 1} gpu{i + 2} gpu{i + 3} nic{i // 2} nic{i // 2 + 1}" for i in range(0, 16, 4)],
            "nic8 nic9",
        ],
        sockets=[
            " ".join([*(f"gpu{i}" for i in range(8)), *(f"nic{i}" for i in range(4))]),
            " ".join([*(f"gpu{i}" for i in range(8, 16)), *(f"nic{i}" for i in range(4, 10))]),
        ],
    ),
    "dgx_a100": dict(
        gpus=8,
        nics=12,
        switch=12,
        pcie=[
            "gpu0 gpu1 nic0 nic1",
            "gpu2 gpu3 nic2 nic3",
            "gpu4 gpu5 nic6 nic7",
            "gpu6 gpu7 nic8 nic9",
            "nic10 nic11",
            "nic4 nic5",
        ],
        sockets=[
            "gpu2 gpu3 nic2 nic3",
            "gpu0 gpu1 nic0 nic1",
            "gpu6 gpu7 nic8 nic9",
            "gpu4 gpu5 nic6 nic7",
            "nic4 nic5",
            "nic10 nic11",
        ],
    ),
    "hgx_h100": dict(
        gpus=8,
        nics=10,
        switch=18,
        pcie=[*(f"gpu{i} nic{n}" for i, n in enumerate((0, 1, 2, 5, 6, 7, 8, 9))), "nic3 nic4"],
        sockets=["gpu0 gpu1 gpu2 gpu3 nic0 nic1 nic2 nic5", "gpu4 gpu5 gpu6 gpu7 nic6 nic7 nic8 nic9", "nic3 nic4"],
    ),
    "a800_glued": dict(
        gpus=8,
        nics=2,
        switch=8,
        pcie=["gpu0 gpu1 nic0", "gpu4 gpu5 nic1"],
        sockets=["gpu4 gpu5 gpu6 gpu7 nic1", "gpu0 gpu1 gpu2 gpu3 nic0"],
    ),
    "h100x4": dict(
        gpus=4,
        nics=4,
        nvlinks={6: 6},
        pcie=[f"gpu{i} nic{i}" for i in range(4)],
        sockets=["gpu1 nic1", "gpu0 nic0", "gpu3 nic3", "gpu2 nic2"],
    ),
    "h100_vm": dict(
        gpus=4, nics=8, switch=18, sockets=["gpu0 gpu1 gpu2 gpu3 " + " ".join(f"nic{i}" for i in range(8))]
    ),
    "p4d": dict(gpus=8, switch=12, sockets=["gpu0 gpu1 gpu2 gpu3", "gpu4 gpu5 gpu6 gpu7"]),
    "p3_vm": dict(gpus=8, nvlinks={1: 8, 2: 8}, sockets=[" ".join(f"gpu{i}" for i in range(8))]),
    "a6000_pairs": dict(gpus=8, nvlinks={4: 4}, sockets=["gpu0 gpu1 gpu2 gpu3", "gpu4 gpu5 gpu6 gpu7"]),
    "titan_v_pcie": dict(
        gpus=8,
        pcie=[f"gpu{i} gpu{i + 1}" for i in range(0, 8, 2)],
        sockets=["gpu0 gpu1 gpu2 gpu3", "gpu4 gpu5 gpu6 gpu7"],
    ),
    "rtx4090x8": dict(
        gpus=8, nics=2, pcie=["nic0 nic1"], sockets=["gpu0 gpu1 gpu2 gpu3", "gpu4 gpu5 gpu6 gpu7 nic0 nic1"]
    ),
    "five_cards": dict(gpus=5, sockets=["gpu1 gpu2 gpu3 gpu4", "gpu0"]),
    "two_cards": dict(gpus=2, sockets=["gpu0 gpu1"]),
    "one_gpu_bonds": dict(gpus=1, nics=5, pcie=["gpu0 nic3"], sockets=["gpu0 nic3 nic4", "nic0 nic1 nic2"]),
    "mig": dict(gpus=4, nvlinks={4: 1}, sockets=["gpu0 gpu1 gpu2 gpu3"]),
}


def read(name: str, **given) -> Host:
    return parse_topo_matrix((DATA / f"{name}.txt").read_text(), name, **given)


def below(host: Host, switch: str) -> str:
    """The devices and cards that reach `switch` by PCIe without going through a socket, in the host's order."""
    found, queue = {switch}, [switch]
    while queue:
        at = queue.pop()
        for link in host.links:
            if link.kind == "pcie" and link.b == at and link.a not in found:
                found.add(link.a)
                queue.append(link.a)
    parts: list[Device | Nic] = [*host.devices, *host.nics]
    return " ".join(part.id for part in parts if part.id in found)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_real_machine(name):
    host, shape = read(name), SHAPES[name]
    each = 20.0
    assert [d.id for d in host.devices] == [f"gpu{i}" for i in range(shape["gpus"])]
    assert [n.id for n in host.nics] == [f"nic{i}" for i in range(shape.get("nics", 0))]
    direct = Counter(round(link.bandwidth_gb_per_s / each) for link in host.links if link.kind == "nvlink")
    assert direct == shape.get("nvlinks", {})
    switched = [(way.a, way.b, way.bandwidth_gb_per_s) for way in host.links if way.kind == "nvswitch"]
    if "switch" in shape:
        assert switched == [(d.id, "nvswitch", shape["switch"] * each) for d in host.devices]
    else:
        assert not switched
        assert "nvswitch" not in host.switches
    assert sorted(below(host, s) for s in host.switches if s.startswith("pcie")) == sorted(shape.get("pcie", []))
    sockets = [s for s in host.switches if s.startswith("socket")]
    assert [below(host, s) for s in sockets] == shape["sockets"]
    assert sum(link.kind == "socket" for link in host.links) == len(sockets) * (len(sockets) - 1) // 2
    assert sum(link.kind == "nic" for link in host.links) == len(host.nics)
    topology = Topology(hosts=(host,))
    assert Topology.from_json(topology.to_json()) == topology


def test_all_fixtures_are_of_a_shape():
    assert {path.stem for path in DATA.glob("*.txt")} == SHAPES.keys()


def test_no_gpu_has_more_nvlinks_than_the_hybrid_cube_mesh():
    host = read("dgx1_soc")
    for device in host.devices:
        ways = [link for link in host.links if link.kind == "nvlink" and device.id in (link.a, link.b)]
        assert sum(link.bandwidth_gb_per_s for link in ways) == pytest.approx(6 * 20.0)


def test_numa_nodes_names_of_cards_and_of_gpus():
    host = read("dgx_a100")
    assert [d.numa for d in host.devices] == [3, 3, 1, 1, 7, 7, 5, 5]
    assert [n.name for n in host.nics] == [f"mlx5_{i}" for i in range(12)]
    assert {n.kind for n in host.nics} == {"infiniband"}
    assert [n.name for n in read("one_gpu_bonds").nics] == [*(f"mlx5_bond_{i}" for i in range(3)), "mlx5_bo", "NIC4"]
    assert [n.name for n in read("dgx1_soc").nics] == ["mlx5_0", "mlx5_2", "mlx5_1", "mlx5_3"]
    assert [d.numa for d in read("p3_vm").devices] == [None] * 8
    assert [d.numa for d in read("a800_glued").devices] == [None] * 4 + [1] * 4
    assert read("dgx_a100").facts["nic_speed"] == "unknown"


def test_slices_and_names_from_the_list_of_gpus():
    host = read("mig")
    assert host.facts["mig"] == {"gpu2": 2, "gpu3": 2}
    assert {d.name for d in host.devices} == {"NVIDIA A100-SXM4-80GB"}
    assert {link.bandwidth_gb_per_s for link in host.links if link.kind == "pcie"} == {24.0}  # an A100's slot


def test_the_generation_of_nvlink_is_given_by_the_caller():
    def of(**given) -> float:
        return next(way.bandwidth_gb_per_s for way in read("hgx_h100", **given).links if way.kind == "nvswitch")

    assert of() == pytest.approx(18 * 20.0)
    assert of(gpu_name="NVIDIA H100 80GB HBM3") == pytest.approx(18 * 20.6)
    assert of(gpu_name="NVIDIA B200") == pytest.approx(18 * 40.1)
    assert of(nvlink_gb_per_s=25.0) == pytest.approx(18 * 25.0)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_tabs_blanks_colours_and_a_cut_legend_do_not_matter(name):
    text = (DATA / f"{name}.txt").read_text()
    host = parse_topo_matrix(text)
    cut = re.sub(r"\nLegend:.*?(\nNIC Legend|\Z)", r"\n\1", text, flags=re.DOTALL)
    assert parse_topo_matrix(cut) == host
    assert parse_topo_matrix(text.replace("\t", "   ")) == host
    assert parse_topo_matrix(text.replace("NV", "\x1b[1mNV\x1b[0m").replace("\n", "\r\n")) == host


def test_rows_of_cards_may_be_left_out():
    text = (DATA / "h100x4.txt").read_text()
    upper = "\n".join(line for line in text.splitlines() if not re.match(r"NIC\d ", line))
    shortened = parse_topo_matrix(upper, "h100x4")
    assert [d.id for d in shortened.devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert sorted(below(shortened, s) for s in shortened.switches if s.startswith("pcie")) == [
        f"gpu{i} nic{i}" for i in range(4)
    ]


TOGETHER = """\tGPU0\tGPU1\tNIC11\tNIC12\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\tX\tNV4\tPIX\tNODE\t0-27\t0\tN/A
GPU1\tNV4\tX\tSYS\tSYS\t0-27\t0\tN/A
NIC11\tPIX\tSYS\tX\tNODE
NIC12\tNODE\tSYS\tNODE\tX
"""


@pytest.mark.parametrize(
    "apart, glued",
    [
        ("NIC11\tNIC12\tCPU", "NIC11NIC12\tCPU"),
        (
            "\tGPU0\tGPU1\tNIC11\tNIC12\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID",
            "GPU0GPU1NIC11NIC12CPU AffinityNUMA AffinityGPU NUMA ID",  # a terminal that drops tabs
        ),
        ("PIX\tNODE", "PIXNODE"),
        ("X\tNODE\n", "XNODE\n"),
        ("SYS\t0-27", "SYS0-27"),
        ("SYS\t0-27", "SYSN/A0-27"),
        ("SYS\tSYS", "SYSSYS"),
        ("NV4\tPIX", "NV4PIX"),
    ],
)
def test_columns_that_run_together(apart, glued):
    expected = parse_topo_matrix(TOGETHER)
    assert apart in TOGETHER
    found = parse_topo_matrix(TOGETHER.replace(apart, glued))
    assert (found.links, found.switches) == (expected.links, expected.switches)
    assert [nic.name for nic in found.nics] == ["NIC11", "NIC12"]


PAIR = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tPHB\t0-7\nGPU1\tPHB\t X \t0-7\n"


@pytest.mark.parametrize(
    "text, place, words",
    [
        ("", "1:1", "there is no matrix"),
        ("bash: nvidia-smi: command not found\n", "1:1", "there is no matrix"),
        (
            PAIR.replace("GPU1\tPHB", "GPU1\tPHX"),
            "3:6",
            "'PHX': must be one of X, NV#, PIX, PXB, PHB, NODE, SYS. Did you",
        ),
        (PAIR.replace("GPU1\tPHB", "GPU1\tNV"), "3:6", "'NV': must be"),
        ("some text\n\n" + PAIR.replace("GPU0\t X \tPHB", "GPU0\t X \tnv1"), "4:10", "'nv1': must be"),
        (PAIR.replace("\t X \t0-7\n", "\n"), "3:9", "the row of GPU1 has 1 of 2 cells"),
        (PAIR.replace("\tPHB\t X \t0-7\n", ""), "3:5", "the row of GPU1 has 0 of 2 cells"),
        (PAIR.replace("GPU1\tPHB\t X \t0-7\n", ""), "1:7", "the column of GPU1 has no row"),
        (PAIR.split("\n", 1)[1], "1:1", "the row of GPU0 comes before any header"),
        (PAIR.replace("GPU1\tPHB", "GPU1\tSYS"), "3:6", "SYS between GPU1 and GPU0, and PHB at 2:10"),
        (PAIR.replace("GPU1\tPHB", "GPU2\tPHB"), "3:1", "a row of 'GPU2'; the header has GPU0, GPU1"),
        (PAIR.replace("GPU1\tPHB\t X ", "GPU0\t X \tPHB"), "3:1", "a second row of GPU0"),
        (PAIR.replace("\tGPU0\tGPU1", "\tGPU0\tGPU0"), "1:7", "two columns are called 'GPU0'"),
        (PAIR.replace("\t X \tPHB", "\tPHB\tPHB"), "2:6", "'PHB' between GPU0 and GPU0: X marks"),
        (PAIR.replace("\t X \tPHB", "\t X \t X "), "2:11", "'X' between GPU0 and GPU1: X marks"),
        ("\tGPU0\tGPU1\nGPU0\t X \tNV180-27\nGPU1\tNV180-27\t X \n", "2:10", "'NV180-27': must be"),
        (PAIR + "\n" + PAIR, "5:2", "a second matrix of this kind: give one text for each host"),
        ("\tGPU0\tNIC0\nGPU0\t X \tPIXNODE\n", "2:10", "'PIXNODE': must be"),
        ("\x1b[4mGPU0\x1b[0m\tGPU1\nGPU0\t X \tOK\n", "1:1", "a matrix of `nvidia-smi topo -p2p`"),
        ("\tGPU0\tNIC0\tNIC1\nGPU0\t X \tPIX\tPIX\nNIC0\tPIX\t X \tPIX\n", "1:12", "the column of NIC1 has no row"),
    ],
)
def test_malformed_text_names_line_and_column(text, place, words):
    with pytest.raises(TopologyError) as caught:
        parse_topo_matrix(text, "topo.txt")
    assert str(caught.value).startswith(f"topo.txt:{place}: ")
    assert words in str(caught.value)


def test_damaged_text_is_read_or_refused():
    text = (DATA / "h100x4.txt").read_text()
    for seed in range(300):
        generator = random.Random(seed)
        at = generator.randrange(len(text) // 2)
        damaged = (
            text[:at]
            + generator.choice(["", " ", "\n", "\t", "X", "NV0", "GPU1"])
            + text[at + generator.randrange(9) :]
        )
        try:
            Topology(hosts=(parse_topo_matrix(damaged, "topo.txt"),))
        except TopologyError as error:
            assert re.match(r"topo.txt:\d+:\d+: ", str(error)), error
