"""NCCL_TOPO_FILE as clouds set it: a supplement to what the driver says, and never fatal."""

from pathlib import Path

import pytest

from tests.topology.hosts import NOWHERE, FakeNvml, bus, links, nccl_xml, sources, write
from trainkit.planning.advice import advise
from trainkit.topology.discover import discover_host
from trainkit.topology.discover.parts import bus_id
from trainkit.topology.topology import Host, Topology


def four_gpus_in_bridged_pairs() -> FakeNvml:
    nvlinks = {i: [bus(i ^ 1)] * 12 for i in range(4)}
    levels = {(a, b): 40 for a in range(4) for b in range(4)}
    return FakeNvml([bus(i) for i in range(4)], nvlinks=nvlinks, levels=levels, numa=[0] * 4)


def with_topo_file(tmp_path, text: str, root: Path = NOWHERE, proc: Path = NOWHERE) -> Host:
    file = tmp_path / "topo.xml"
    file.write_text(text)
    given = sources(root, proc, module=four_gpus_in_bridged_pairs(), NCCL_TOPO_FILE=str(file))
    return discover_host("cuda", 4, sources=given)


BRIDGED = {("gpu0", "gpu1"): 240.0, ("gpu2", "gpu3"): 240.0}
TREE = """<system version="1"><cpu numaid="0" arch="x86_64" vendor="AuthenticAMD" familyid="25" modelid="1">
<pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">{}</pci></cpu></system>"""
CARD = '<pci busid="0000:51:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/>'


@pytest.mark.parametrize("named", [(), (0,), (0, 1), (0, 1, 2, 3)])
def test_a_file_does_not_hide_the_nvlinks_of_the_driver(tmp_path, named):
    """Whichever NVLinks it names: those of a dump may be of another day, and clouds leave them to the driver."""
    inside = [f'<nvlink target="{bus(i ^ 1)}" count="4" tclass="0x030200"/>' if i in named else "" for i in range(4)]
    host = with_topo_file(tmp_path, nccl_xml(inside, "80"))
    assert links(host, "nvlink") == BRIDGED


def test_a_file_does_not_raise_nvlinks_that_are_down(tmp_path):
    inside = [f'<nvlink target="{bus(i ^ 1)}" count="12" tclass="0x030200"/>' for i in range(2)]
    file = tmp_path / "topo.xml"
    file.write_text(nccl_xml(inside, "80"))
    dark = FakeNvml([bus(0), bus(1)])
    assert links(discover_host("cuda", 2, sources=sources(module=dark, NCCL_TOPO_FILE=str(file))), "nvlink") == {}
    old = FakeNvml([bus(0), bus(1)], lacking=("nvmlDeviceGetNvLinkState",))
    told = discover_host("cuda", 2, sources=sources(module=old, NCCL_TOPO_FILE=str(file)))
    assert links(told, "nvlink") == {("gpu0", "gpu1"): 240.0}


def test_a_file_of_network_cards_only(tmp_path, machine):
    root, proc = machine
    file = TREE.format(CARD + '<pci busid="0000:1b:00.0" class="0x020700" link_speed="16 GT/s" link_width="16"/>')
    host = with_topo_file(tmp_path, file, root, proc)
    assert [d.bus_id for d in host.devices] == [bus_id(bus(i)) for i in range(4)]
    assert links(host, "nvlink") == BRIDGED
    assert [(n.bus_id, n.name) for n in host.nics] == [
        ("0000:51:00.0", ""),
        ("0000:1b:00.0", "mlx5_0"),
        ("0000:99:00.0", "eth0"),
    ]
    assert {("nic0", "pcie0"), ("nic1", "pcie0")} <= links(host, "pcie").keys()
    assert advise(Topology(hosts=(host,))) == []


def test_a_file_of_bus_ids_without_classes(tmp_path, machine):
    """As that of AWS's g5.48xlarge."""
    root, proc = machine
    gpus = [f'<pci busid="{bus_id(bus(i))}"/>' for i in range(4)]
    text = (
        f'<system version="1"><cpu numaid="0">{"".join(gpus[2:])}</cpu>'
        f'<cpu numaid="1">{"".join(gpus[:2])}<pci busid="0000:1b:00.0"/></cpu></system>'
    )
    host = with_topo_file(tmp_path, text, root, proc)
    assert [d.numa for d in host.devices] == [1, 1, 0, 0]
    assert [(n.name, n.numa) for n in host.nics] == [("mlx5_0", 1), ("eth0", 1)]
    below = [{end for end, top in links(host, "pcie") if top == socket} for socket in ("socket0", "socket1")]
    assert {"gpu2", "gpu3"} <= below[0]
    assert {"gpu0", "gpu1", "nic0"} <= below[1]
    assert {link.bandwidth_gb_per_s for link in host.links if link.a in ("gpu0", "gpu3")} == {240.0, 24.0}


def test_a_file_of_rccl_is_told(tmp_path):
    inside = '<xgmi target="0000:11:00.0" count="1" tclass="0x038000"/>'
    host = with_topo_file(tmp_path, nccl_xml([inside, ""]))
    assert "<xgmi>: a file of RCCL" in host.facts["topo_file"]
    assert links(host, "nvlink") == BRIDGED


def test_a_file_of_some_gpus_places_these_and_drops_none(tmp_path):
    gpu = f'<pci busid="{bus_id(bus(2))}" class="0x030200" link_speed="16 GT/s" link_width="16"/>'
    host = with_topo_file(tmp_path, TREE.format(CARD + gpu))
    assert [d.id for d in host.devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert links(host, "nvlink") == BRIDGED
    assert {end for end in links(host, "pcie") if end[1] == "pcie0"} == {("gpu2", "pcie0"), ("nic0", "pcie0")}


def test_the_file_knows_better_than_a_guest_where_gpus_are(tmp_path):
    pairs = [f'<pci busid="{bus_id(bus(i))}" class="0x030200" link_speed="16 GT/s" link_width="16"/>' for i in range(4)]
    two = TREE.format("".join(pairs[:2])).replace("</system>", "") + TREE.format("".join(pairs[2:])).partition(">")[2]
    host = with_topo_file(tmp_path, two.replace('numaid="0"', 'numaid="1"', 1))
    below = [{end for end, top in links(host, "pcie") if top == switch} for switch in ("pcie0", "pcie1")]
    assert below == [{"gpu0", "gpu1"}, {"gpu2", "gpu3"}] or below == [{"gpu2", "gpu3"}, {"gpu0", "gpu1"}]
    assert [d.numa for d in host.devices] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "topo.xml:1:1: invalid XML"),
        ("<system>\n <cpu>\n</system>", "topo.xml:3:3: invalid XML: mismatched tag"),
        ("<graphs/>", "NCCL writes <system>"),
        (nccl_xml([""]).replace("0000:10", "0000:77"), "contains none of this host's GPUs"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_unusable_file_is_told_and_never_fatal(tmp_path, text, words):
    file = tmp_path / "topo.xml"
    if text is not None:
        file.write_text(text)
    module = four_gpus_in_bridged_pairs()
    host = discover_host("cuda", 4, sources=sources(module=module, NCCL_TOPO_FILE=str(file)))
    assert links(host, "nvlink") == BRIDGED
    assert [d.bus_id for d in host.devices] == [bus_id(bus(i)) for i in range(4)]
    (found,) = [entry for entry in advise(Topology(hosts=(host,))) if entry.subject == "NCCL_TOPO_FILE"]
    assert found.severity == "warning"
    assert words in found.problem
    assert str(found).count("\n") == 0


def test_a_host_of_which_only_the_file_is_known(tmp_path):
    file = tmp_path / "topo.xml"
    file.write_text(nccl_xml(["", ""]))
    host = discover_host("cuda", 2, sources=sources(NCCL_TOPO_FILE=str(file)))
    assert [d.bus_id for d in host.devices] == [bus_id(bus(i)) for i in range(2)]
    file.write_text(TREE.format(CARD))
    bare = discover_host("cuda", 2, sources=sources(NCCL_TOPO_FILE=str(file)))
    assert bare.facts["unread"] == {"this host": "NVML: Driver Not Loaded"}


def test_settings_in_nccls_configuration_files(tmp_path):
    """As Azure's images set NCCL_TOPO_FILE."""
    etc = write(tmp_path / "etc", **{"nccl.conf": "# ours\nNCCL_TOPO_FILE=/etc/a.xml\nNCCL_IB_HCA==mlx5_0\nPATH=x"})
    write(tmp_path / "home", **{".nccl.conf": "NCCL_TOPO_FILE=/home/b.xml\nNCCL_TOPO_FILE=/home/c.xml"})
    own = write(tmp_path, own="NCCL_IB_DISABLE=1") / "own"
    home = str(tmp_path / "home")
    assert sources(etc=etc).settings == {"NCCL_IB_HCA": "=mlx5_0", "NCCL_TOPO_FILE": "/etc/a.xml"}
    assert sources(etc=etc, HOME=home).settings["NCCL_TOPO_FILE"] == "/home/b.xml"
    assert sources(etc=etc, HOME=home, NCCL_TOPO_FILE="/d.xml").settings["NCCL_TOPO_FILE"] == "/d.xml"
    named = sources(etc=etc, HOME=home, NCCL_CONF_FILE=str(own)).settings
    assert (named["NCCL_IB_DISABLE"], named["NCCL_TOPO_FILE"]) == ("1", "/etc/a.xml")
    host = discover_host("cuda", 4, sources=sources(etc=etc, module=four_gpus_in_bridged_pairs()))
    assert "/etc/a.xml cannot be read" in host.facts["topo_file"]
