"""Hosts from NVML, NCCL's XML and sysfs, and from all of them together."""

import random
import re
import socket

import pytest

from tests.topology.hosts import (
    DATA,
    FakeNvml,
    bus,
    links,
    nvml_host,
    nvswitch_host,
    paired_host,
    sources,
    write,
)
from trainkit.errors import TopologyError
from trainkit.planning.advice import advise
from trainkit.topology.discover import (
    discover_host,
    host_id,
    nvml,
    parse_nccl_xml,
    read_nvml,
    read_sysfs,
    sysfs,
)
from trainkit.topology.discover.parts import bus_id
from trainkit.topology.topology import NETWORK, Device, Topology

# -- NVML ------------------------------------------------------------------------------------------------------------


def test_nvml_of_a_host_with_nvswitches():
    module = nvswitch_host()
    host = nvml_host(module)
    assert links(host, "nvswitch") == {(f"gpu{i}", "nvswitch"): 12 * 20.0 for i in range(8)}
    assert not links(host, "nvlink")
    pairs = {(f"gpu{i}", f"pcie{i // 2}"): 24.0 for i in range(8)}
    assert links(host, "pcie") == pairs | {(f"pcie{i}", f"socket{i // 2}"): 24.0 for i in range(4)}
    assert list(links(host, "socket")) == [("socket0", "socket1")]
    assert host.devices[7] == Device(
        id="gpu7", name="NVIDIA A100-SXM4-80GB", bus_id="0000:17:00.0", numa=1, compute_capability="8.0"
    )
    assert host.facts == {"sources": ["nvml"], "driver": "550.54.15", "p2p_off": {}}
    assert module.num_open == 0


def test_nvml_of_nvlink_pairs():
    host = nvml_host(paired_host(p2p={(0, 2): 1, (1, 3): 1}))
    assert links(host, "nvlink") == {("gpu0", "gpu1"): 4 * 12.0, ("gpu2", "gpu3"): 4 * 12.0}
    assert host.switches == ("socket0",)
    assert host.facts["p2p_off"] == {"gpu0 gpu2": "chipset not supported", "gpu1 gpu3": "chipset not supported"}
    assert "p2p" not in host.facts  # a ring 0 1 2 3 needs no other pair


def test_nvml_of_gpus_without_peer_access():
    between = {(a, b): 2 for a in (0, 1) for b in (2, 3)}
    assert nvml_host(paired_host(p2p=between)).facts["p2p"] is False
    assert nvml_host(FakeNvml([bus(0), bus(1)], p2p={(0, 1): 2})).facts["p2p"] is False


def test_nvml_numbers_gpus_by_bus_id():
    host = nvml_host(FakeNvml([bus(3), bus(1), bus(2)]))
    assert [device.bus_id for device in host.devices] == [bus_id(bus(i)) for i in (1, 2, 3)]


def test_links_to_switches_without_an_address():
    module = nvswitch_host(lacking=("nvmlDeviceGetNvLinkRemotePciInfo",))  # as in a guest
    assert links(nvml_host(module), "nvswitch") == {(f"gpu{i}", "nvswitch"): 240.0 for i in range(8)}


def test_links_to_gpus_that_this_process_does_not_see():
    class Hidden(FakeNvml):
        def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
            return 0

    host = nvml_host(Hidden([bus(0)], nvlinks={0: [bus(1)] * 4}))
    assert not links(host, "nvlink")
    assert "nvswitch" not in host.switches


def test_a_driver_that_knows_little():
    everything = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    needed = {"nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetPciInfo"}
    module = nvswitch_host(lacking=tuple(name for name in everything if name not in needed))
    host = nvml_host(module)
    assert len(host.devices) == 8
    assert host.switches == ("socket0",)
    assert {way.bandwidth_gb_per_s for way in host.links} == {12.0}
    assert host.facts == {"sources": ["nvml"], "assumed": {f"gpu{i}": "PCIe 3 with 16 lanes" for i in range(8)}}


def test_hoppers_links_are_asked_for_by_field():
    class Hopper(FakeNvml):
        NVML_FI_DEV_NVLINK_GET_STATE = 1

        def nvmlDeviceGetFieldValues(self, handle, fields):
            (_, link), *_ = fields
            value = type("Value", (), {"uiVal": int(link < 18)})
            return [type("Field", (), {"nvmlReturn": 0, "value": value})]

    module = Hopper([bus(0), bus(1)], capability=(9, 0), nvlinks={i: ["00000000:C0:00.0"] * 18 for i in (0, 1)})
    module.lacking = ("nvmlDeviceGetNvLinkState",)
    assert list(links(nvml_host(module), "nvswitch").values()) == pytest.approx([18 * 20.6] * 2)


def test_lanes_and_generation_that_are_missing():
    host = nvml_host(FakeNvml([bus(0), bus(1)], pcie={0: (3, 4, 8, 16)}))
    first, second = (next(way for way in host.links if way.a == f"gpu{i}") for i in (0, 1))
    assert (first.bandwidth_gb_per_s, first.rated_gb_per_s) == (6.0, 24.0)
    assert (second.bandwidth_gb_per_s, second.rated_gb_per_s) == (24.0, None)


def test_no_nvml():
    assert read_nvml(FakeNvml([], broken="Driver Not Loaded")) is None
    assert nvml.read(FakeNvml([], broken="Driver Not Loaded")) == (None, "NVML: Driver Not Loaded")
    assert nvml.read(FakeNvml([])) == (None, "NVML shows no GPU")
    assert nvml.read(FakeNvml([bus(0)], lacking=("nvmlDeviceGetPciInfo",))) == (None, "NVML: Not Supported")


def test_nvml_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert read_nvml() is None
    assert "pip install nvidia-ml-py" in nvml.read()[1]


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, None),
        ("2,0", [2, 0]),
        ("0,9,1", [0]),
        ("-1", []),
        ("", []),
        ("GPU-0001-aaaa,GPU-0003", [1, 3]),
        ("GPU-000", []),
        ("MIG-2-some-uuid,MIG-2-other", [2]),
        ("MIG-GPU-0001-aaaa/1/0", [1]),
    ],
)
def test_visible_devices(given, expected):
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    found = nvml.visible(environment, paired_host())
    assert found == (None if expected is None else [bus_id(bus(i)) for i in expected])


def test_a_host_has_the_gpus_that_cuda_shows():
    host = discover_host("cuda", 2, sources=sources(module=nvswitch_host(), CUDA_VISIBLE_DEVICES="1,GPU-0004"))
    assert [device.id for device in host.devices] == ["gpu1", "gpu4"]
    assert set(links(host, "nvswitch")) == {("gpu1", "nvswitch"), ("gpu4", "nvswitch")}
    cut = discover_host("cuda", 1, sources=sources(module=paired_host(slices={2: 3}), CUDA_VISIBLE_DEVICES="MIG-2-x"))
    assert [device.id for device in cut.devices] == ["gpu2"]
    assert cut.facts["mig"] == {"gpu2": 3}


# -- NCCL's XML ------------------------------------------------------------------------------------------------------


def test_xml_of_two_sockets():
    host = parse_nccl_xml((DATA / "nccl_two_sockets.xml").read_text())
    assert [(d.id, d.bus_id, d.numa, d.compute_capability) for d in host.devices] == [
        ("gpu0", "0000:07:00.0", 0, "8.0"),
        ("gpu1", "0000:0f:00.0", 0, "8.0"),
    ]
    assert [(n.name, n.kind, n.numa) for n in host.nics] == [("mlx5_0", "infiniband", 0), ("eth0", "ethernet", 1)]
    assert links(host, "nvswitch") == {("gpu0", "nvswitch"): 240.0, ("gpu1", "nvswitch"): 240.0}
    # The card is behind the first switch, the GPUs behind a second one below it.
    assert links(host, "pcie") == {
        ("pcie0", "socket0"): 24.0,
        ("pcie1", "pcie0"): 24.0,
        ("gpu0", "pcie1"): 24.0,
        ("gpu1", "pcie1"): 12.0,
        ("nic0", "pcie0"): 24.0,
        ("nic1", "socket1"): 6.0,
    }
    assert links(host, "socket") == {("socket0", "socket1"): 24.0}
    assert links(host, "nic") == {("nic0", NETWORK): 24.0, ("nic1", NETWORK): 1.2}
    assert host.facts == {"sources": ["nccl xml"], "gpudirect": True, "cpu": "AuthenticAMD"}


def test_xml_of_nvlink_pairs_and_a_card_that_is_not_on_pci():
    host = parse_nccl_xml((DATA / "nccl_pairs.xml").read_text())
    assert links(host, "nvlink") == {("gpu0", "gpu1"): 40.0, ("gpu0", "gpu2"): 20.0}
    assert host.switches == ("socket0",)
    assert {device.numa for device in host.devices} == {None}
    assert host.facts["gpudirect"] is False


def test_xml_of_a_provider_has_the_tree_and_nvml_the_rest(tmp_path):
    file = DATA / "nccl_tree_only.xml"
    module = FakeNvml(["00000001:00:00.0", "00000002:00:00.0"], nvlinks={0: ["00000002:00:00.0"] * 12})
    host = discover_host("cuda", 2, sources=sources(module=module, NCCL_TOPO_FILE=str(file)))
    assert links(host, "nvlink") == {("gpu0", "gpu1"): 240.0}
    assert [d.name for d in host.devices] == ["NVIDIA A100-SXM4-80GB"] * 2
    assert ("gpu0", "pcie0") in links(host, "pcie")
    assert ("nic0", "pcie0") in links(host, "pcie")
    assert host.facts["sources"] == ["nvml", "nccl xml", "sysfs"]
    assert host.facts["environment"] == {"NCCL_TOPO_FILE": str(file)}
    module = FakeNvml(["00000002:00:00.0"])
    half = discover_host("cuda", 1, sources=sources(module=module, NCCL_TOPO_FILE=str(file)))
    assert [d.bus_id for d in half.devices] == ["0002:00:00.0"]


def test_grace_and_its_gpu_meet_over_their_own_link():
    text = """<system version="1"><cpu numaid="0" arch="arm64" vendor="ARM"><pci busid="000f:01:00.0" class="0x030200"
    link_speed="2.5 GT/s PCIe" link_width="16"><gpu dev="0" sm="121" rank="0" gdr="0"><c2c bw="43125" count="8"/></gpu>
    </pci></cpu></system>"""
    assert links(parse_nccl_xml(text), "pcie") == {("gpu0", "socket0"): 345.0}
    assert parse_nccl_xml(text).devices[0].compute_capability == "12.1"


@pytest.mark.parametrize(
    "text, place, words",
    [
        ("", "1:1", "invalid XML"),
        ("<system>\n <cpu>\n</system>", "3:3", "invalid XML: mismatched tag"),
        ("<graphs/>", "1:1", "<graphs>; NCCL writes <system>"),
        ("<system>\n</system>", "1:1", "there is no <gpu>"),
        ('<system>\n  <cpu numaid="0">\n    <gpu dev="0"/>\n  </cpu>\n</system>', "3:5", "<gpu> stands in <cpu>"),
        ('<system><cpu numaid="x"><pci busid="0:1:0.0"><gpu dev="0"/></pci></cpu></system>', "1:9", "numaid='x'"),
        ('<system><cpu><pci class="0x0302"><gpu dev="0"/></pci></cpu></system>', "1:14", "<pci> has no busid"),
        (
            '<system><cpu><pci busid="0:1:0.0"><gpu dev="0">\n<nvlink target="0:2:0.0"/></gpu></pci></cpu></system>',
            "2:1",
            "<nvlink> has no count",
        ),
        (
            '<system><cpu><pci busid="0:1:0.0"><gpu dev="0">\n<nvlink target="0:2:0.0" count="0"/></gpu></pci></cpu>'
            "</system>",
            "2:1",
            "must be at least 1",
        ),
        (
            '<system><cpu numaid="inf"><pci busid="0:1:0.0"><gpu dev="0"/></pci></cpu></system>',
            "1:9",
            "must be a number",
        ),
    ],
)
def test_malformed_xml_names_line_and_column(text, place, words):
    with pytest.raises(TopologyError) as caught:
        parse_nccl_xml(text, "topo.xml")
    assert str(caught.value).startswith(f"topo.xml:{place}: ")
    assert words in str(caught.value)


def test_damaged_xml_is_read_or_refused():
    text = (DATA / "nccl_two_sockets.xml").read_text()
    for seed in range(300):
        generator = random.Random(seed)
        at = generator.randrange(len(text))
        damaged = (
            text[:at] + generator.choice(["", '"', "<", "x", "-1", "</pci>"]) + text[at + generator.randrange(9) :]
        )
        try:
            Topology(hosts=(parse_nccl_xml(damaged, "topo.xml"),))
        except TopologyError as error:
            assert re.match(r"topo.xml:\d+:\d+: ", str(error)), error


# -- sysfs -----------------------------------------------------------------------------------------------------------


def test_sysfs(machine):
    host = read_sysfs(*machine)
    assert host is not None
    assert [(d.bus_id, d.numa) for d in host.devices] == [
        ("0000:19:00.0", 0),
        ("0000:1a:00.0", 0),
        ("0000:98:00.0", 1),
    ]
    assert [(n.id, n.name, n.kind, n.bus_id, n.numa) for n in host.nics] == [
        ("nic0", "mlx5_0", "infiniband", "0000:1b:00.0", 0),
        ("nic1", "eth0", "ethernet", "0000:99:00.0", 1),
    ]
    assert links(host, "pcie") == {
        ("pcie0", "socket0"): 24.0,
        ("gpu0", "pcie0"): 24.0,
        ("gpu1", "pcie0"): 24.0,
        ("nic0", "pcie0"): 12.0,
        ("gpu2", "socket1"): 12.0,
        ("nic1", "socket1"): 24.0,
    }
    assert {way.a: way.rated_gb_per_s for way in host.links if way.rated_gb_per_s} == {"nic0": 24.0, "gpu2": 24.0}
    assert links(host, "nic") == {("nic0", NETWORK): 24.0, ("nic1", NETWORK): 3.0}
    assert links(host, "socket") == {("socket0", "socket1"): 10.0}
    known = {"sources": ["sysfs"], "cpu": "GenuineIntel", "iommu": False, "peermem": False}
    assert host.facts == known | {"nvlinks": "unknown"}


@pytest.mark.parametrize("redirects", [True, False])
def test_sysfs_says_whether_switches_redirect(machine, redirects):
    """ACS, as root sees it: the first extended capability, whose control follows what the port could do."""
    root, _ = machine
    port = (root / "bus/pci/devices/0000:19:00.0").resolve().parent
    capability = bytes([0x0D, 0, 1, 0, 0xFF, 0, 0b100 if redirects else 0, 0])
    (port / "config").write_bytes(bytes(256) + capability + bytes(64))
    host = read_sysfs(*machine)
    assert host is not None
    assert host.facts["acs"] is redirects


def test_sysfs_of_a_machine_without_numa_nodes(machine):
    root, proc = machine
    for path in (root / "devices").rglob("numa_node"):
        path.write_text("-1\n")
    host = read_sysfs(root, proc)
    assert host is not None
    assert [s for s in host.switches if s.startswith("socket")] == ["socket0"]
    assert ("pcie0", "socket0") in links(host, "pcie")
    assert not [entry for entry in advise(Topology(hosts=(host, host))) if "on another socket" in entry.problem]


def test_sysfs_adds_cards_and_paths_to_nvmls_gpus(machine):
    root, proc = machine
    module = FakeNvml(["00000000:19:00.0", "00000000:1A:00.0"], nvlinks={0: ["00000000:1A:00.0"] * 4})
    module.lacking = ("nvmlDeviceGetTopologyCommonAncestor",)
    host = discover_host("cuda", 2, sources=sources(root, proc, module=module))
    assert [d.name for d in host.devices] == ["NVIDIA A100-SXM4-80GB"] * 2
    assert links(host, "nvlink") == {("gpu0", "gpu1"): 80.0}
    assert {("gpu0", "pcie0"), ("gpu1", "pcie0"), ("nic0", "pcie0")} <= links(host, "pcie").keys()
    assert [n.name for n in host.nics] == ["mlx5_0", "eth0"]
    assert host.facts["sources"] == ["nvml", "sysfs"]
    assert host.facts["driver"] == "550.54.15"


def test_nvidia_smi_is_asked_last(machine, tmp_path):
    root, proc = machine
    text = (DATA / "two_cards.txt").read_text()
    found = discover_host("cuda", 2, sources=sources(tmp_path, proc, smi_text=text))
    assert [d.id for d in found.devices] == ["gpu0", "gpu1"]
    assert found.facts["sources"] == ["nvidia-smi", "sysfs"]
    assert discover_host("cuda", 2, sources=sources(root, proc, smi_text=text)).facts["sources"] == ["sysfs"]


@pytest.mark.parametrize(
    "cpuinfo, vendor, product, expected",
    [
        ("flags : fpu", "QEMU", "Standard PC", None),
        ("flags : fpu hypervisor", "Amazon EC2", "g5.48xlarge", "Amazon EC2"),
        ("flags : fpu", "Amazon EC2", "p4d.metal", None),
        ("flags : fpu hypervisor", "Microsoft Corporation", "Virtual Machine", "Hyper-V"),
        ("flags : fpu hypervisor", "Google", "Google Compute Engine", "Google Cloud"),
        ("flags : fpu hypervisor", "", "", "a hypervisor"),
        ("Features : fp asimd", "Amazon EC2", "g5g.metal", None),
        ("Features : fp asimd", "Amazon EC2", "g5g.xlarge", "Amazon EC2"),
        ("", "", "", None),
    ],
)
def test_hypervisor(tmp_path, cpuinfo, vendor, product, expected):
    write(tmp_path / "proc", cpuinfo=cpuinfo)
    write(tmp_path / "class/dmi/id", sys_vendor=vendor, product_name=product)
    assert sysfs.read_hypervisor(tmp_path, tmp_path / "proc") == expected


# -- hosts without GPUs ----------------------------------------------------------------------------------------------


def test_a_host_of_cpu_ranks(machine):
    host = discover_host("cpu", 3, sources=sources(*machine))
    assert [(d.id, d.kind) for d in host.devices] == [("cpu0", "cpu"), ("cpu1", "cpu"), ("cpu2", "cpu")]
    assert host.switches == ("memory",)
    assert list(links(host, "loopback")) == [(f"cpu{i}", "memory") for i in range(3)]
    assert list(links(host, "pcie")) == [("memory", "nic0")]
    assert links(host, "nic") == {("nic0", NETWORK): 3.0}
    assert (host.nics[0].name, host.nics[0].bus_id) == ("eth0", "0000:99:00.0")
    assert "nic_speed" not in host.facts


def test_the_interface_of_gloo(machine):
    root, proc = machine
    chosen = discover_host("cpu", 1, sources=sources(root, proc, GLOO_SOCKET_IFNAME="eth1"))
    assert chosen.nics[0].name == "eth1"
    assert links(chosen, "nic") == {("nic0", NETWORK): 1.2}  # its speed is -1
    assert chosen.facts["nic_speed"] == "unknown"
    assert discover_host("cpu", 1, sources=sources(root, proc, GLOO_SOCKET_IFNAME="lo")).nics == ()
    assert discover_host("cpu", 1, sources=sources()).nics == ()


def test_a_gpu_host_of_which_nothing_can_be_read():
    host = discover_host("cuda", 4, sources=sources())
    assert [d.id for d in host.devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert host.facts["unread"] == {"this host": "NVML: Driver Not Loaded"}


def test_what_this_machine_is():
    """Its own /sys, /proc and NVML, whatever they hold, come to a description that JSON takes and gives back."""
    on_cpu, on_gpus = (Topology(hosts=(discover_host(kind, 2),)) for kind in ("cpu", "cuda"))
    assert [device.id for device in on_cpu.hosts[0].devices] == ["cpu0", "cpu1"]
    assert {device.kind for device in on_gpus.hosts[0].devices} == {"cuda"}
    for topology in (on_cpu, on_gpus):
        assert topology.hosts[0].name == socket.gethostname()
        assert Topology.from_json(topology.to_json()) == topology


def test_host_id(tmp_path, monkeypatch):
    write(tmp_path / "sys/kernel/random", boot_id="6f7e")
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert host_id(sources(proc=tmp_path)) == "node7 6f7e"
    assert host_id(sources(proc=tmp_path, NCCL_HOSTID="mine")) == "mine"
    monkeypatch.setattr("socket.gethostname", lambda: "pod1")  # another container of the same boot
    assert host_id(sources(proc=tmp_path)) == "pod1 6f7e"
    assert host_id(sources()) == "pod1"
