"""Network cards and PCIe links whose speed is not stated: the same figure from every source, and marked as assumed."""

import io

import pytest
from rich.console import Console

from tests.topology.hosts import FakeNvml, bus, links, nccl_xml, sources
from trainkit.topology.discover import discover_host, parse_nccl_xml, parse_topo_matrix, read_sysfs
from trainkit.topology.discover.merge import cpu_host
from trainkit.topology.discover.nics import kind_of
from trainkit.topology.picture import text
from trainkit.topology.topology import NETWORK, Host, Link, Nic, Topology

CARDS = """<system version="1"><cpu numaid="0" arch="x86_64">
<pci busid="0000:10:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16"><gpu dev="0" sm="90"/></pci>
{}</cpu></system>"""
NAMED = """<pci busid="0000:51:00.0" class="0x020000" link_speed="32.0 GT/s PCIe" link_width="16">
<nic><net name="{}" dev="0" {} port="1" gdr="1"/></nic></pci>"""
UNNAMED = '<pci busid="0000:51:00.0" class="{}" {} link_speed="32.0 GT/s PCIe" link_width="16"/>'
ONE_CARD = "\tGPU0\tNIC0\nGPU0\t X \tPIX\nNIC0\tPIX\t X \n\nNIC Legend:\n\n  NIC0: mlx5_0\n"


def wire(host: Host) -> Link:
    (found,) = [link for link in host.links if link.kind == "nic"]
    return found


def of_xml(card: str) -> Host:
    return parse_nccl_xml(CARDS.format(card))


def by_sysfs(machine) -> Host:
    root, proc = machine
    (root / "class/infiniband/mlx5_0/ports/1/rate").write_text("\n")
    (root / "class/net/eth0/operstate").write_text("down\n")
    host = read_sysfs(root, proc)
    assert host is not None
    return host


def test_one_card_is_the_same_from_every_source(machine):
    """A ConnectX card of unknown rate, as InfiniBand and as RoCE."""
    hosts = [
        of_xml(NAMED.format("mlx5_0", "")),
        of_xml(NAMED.format("mlx5_0", 'speed="0"')),
        of_xml(NAMED.format("mlx5_0", 'speed="-1"')),
        of_xml(UNNAMED.format("0x020700", "")),
        of_xml(UNNAMED.format("0x020000", 'vendor="0x15b3" device="0x101e"')),
        parse_topo_matrix(ONE_CARD),
        parse_topo_matrix(ONE_CARD.partition("NIC Legend")[0]),
        parse_topo_matrix(ONE_CARD.partition("NIC Legend")[0].replace("NIC0", "mlx5_0")),
        by_sysfs(machine),
    ]
    assert {host.nics[0].kind for host in hosts} == {"infiniband"}
    assert {(wire(host).bandwidth_gb_per_s, wire(host).latency_us) for host in hosts} == {(1.2, 2.5)}
    assert {wire(host).source for host in hosts} == {"assumed"}
    assert {host.facts["nic_speed"] for host in hosts} == {"unknown"}


def test_a_stated_speed_is_used():
    known = wire(of_xml(NAMED.format("mlx5_0", 'speed="400000"')))
    assert (known.bandwidth_gb_per_s, known.source) == (48.0, "nominal")
    assert wire(cpu_host("a", 1, Nic(id="nic0", name="eth0"), None)).source == "assumed"
    assert wire(cpu_host("a", 1, Nic(id="nic0", name="eth0"), 25.0)).source == "nominal"


@pytest.mark.parametrize(
    "name, pci_class, pci_id, expected",
    [
        ("mlx5_bond_0", "", "", "infiniband"),
        ("rocep23s0f0", "", "", "infiniband"),
        ("rdmap16s27", "0x020000", "1d0f:efa1", "infiniband"),
        ("efa_0", "", "", "infiniband"),
        ("ibp12s0", "", "", "infiniband"),
        ("NIC3", "", "", "infiniband"),
        ("eth0", "0x020000", "15b3:101e", "ethernet"),
        ("enp5s0", "", "", "ethernet"),
        ("bond0", "", "", "ethernet"),
        ("", "0x020700", "15b3:101b", "infiniband"),
        ("", "0x020000", "1d0f:efa0", "infiniband"),
        ("", "0x020000", "1d0f:ec20", "unknown"),
        ("", "0x020000", "8086:1593", "unknown"),
        ("", "", "", "unknown"),
    ],
)
def test_the_kind_of_a_card(name, pci_class, pci_id, expected):
    assert kind_of(name, pci_class=pci_class, pci_id=pci_id) == expected


def test_sysfs_knows_the_speed_and_kind_of_a_card_of_the_file(machine, tmp_path):
    root, proc = machine
    file = tmp_path / "topo.xml"
    card = UNNAMED.format("0x020000", 'vendor="0x8086" device="0x1593"').replace("51:00", "1b:00")
    file.write_text(CARDS.format(card))
    module = FakeNvml([bus(0)], capability=(9, 0))
    host = discover_host("cuda", 1, sources=sources(root, proc, module=module, NCCL_TOPO_FILE=str(file)))
    assert [(n.name, n.kind) for n in host.nics] == [("mlx5_0", "infiniband"), ("eth0", "ethernet")]
    assert links(host, "nic") == {("nic0", NETWORK): 24.0, ("nic1", NETWORK): 3.0}
    assert {link.source for link in host.links} == {"nominal"}


def shown(host: Host) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    text.show(Topology(hosts=(host,)), console)
    return console.export_text()


def test_an_assumed_figure_is_marked_where_it_is_shown():
    words = shown(parse_topo_matrix(ONE_CARD))
    assert "⇄ 1.2?" in words
    assert "1.2? GB/s" in words
    assert "trainkit topo probe" in words.partition("?: of unknown speed")[2]
    known = shown(of_xml(NAMED.format("mlx5_0", 'speed="400000"')))
    assert "?" not in known


def test_json_keeps_what_is_assumed():
    topology = Topology(hosts=(parse_topo_matrix(ONE_CARD), of_xml(UNNAMED.format("0x020000", ""))))
    assert Topology.from_json(topology.to_json()) == topology
    assert topology.hosts[1].nics[0].kind == "unknown"


def test_lanes_that_a_guest_does_not_show():
    """As on IBM's H100 guests: a speed, and no width."""
    hidden = parse_nccl_xml(nccl_xml(["", ""]).replace('link_width="16"', 'link_width="0"'))
    assert set(links(hidden, "pcie").values()) == {48.0}  # PCIe 5, 16 lanes
    assert hidden.facts["pcie_lanes"] == "unknown"
    # Azure's NCv4 shows neither: by the generation of the GPU
    neither = nccl_xml(["", ""], "80").replace('link_width="16"', 'link_width="0"').replace("32.0 GT/s PCIe", "")
    assert set(links(parse_nccl_xml(neither), "pcie").values()) == {24.0}
    assert "pcie_lanes" not in parse_nccl_xml(nccl_xml(["", ""])).facts
