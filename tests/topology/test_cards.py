"""The table of GPUs, against figures typed from their makers' documents, and the PCI ID database of Debian."""

import re
from pathlib import Path

import pytest

from tests.topology.hosts import FakeNvml, bus, nvml_host
from trainkit.topology.cards import card_of, cards, find, nearest_card
from trainkit.topology.discover import nominal, parse_nccl_xml, parse_topo_matrix, read_sysfs
from trainkit.topology.topology import Device

PCI_IDS = Path("/usr/share/misc/pci.ids")  # of Debian's package pci.ids

# Typed from the documents, not from the table: compute capability (developer.nvidia.com/cuda-gpus), NVLink in both
# directions GB/s, PCIe generation, GB, dense 16-bit and float32 TFLOPS (data sheets and whitepapers of NVIDIA and AMD).
PUBLISHED = {
    "Tesla V100-SXM2-32GB": ("7.0", 300, 3, 32, 125, 15.7),
    "Tesla T4": ("7.5", 0, 3, 16, 65, 8.1),
    "Quadro RTX 5000": ("7.5", 50, 3, 16, 89.2, 11.2),
    "Quadro RTX 8000": ("7.5", 100, 3, 48, 130.5, 16.3),
    "NVIDIA A100-SXM4-80GB": ("8.0", 600, 4, 80, 312, 19.5),
    "NVIDIA A100-PCIE-40GB": ("8.0", 600, 4, 40, 312, 19.5),
    "NVIDIA A40": ("8.6", 112.5, 4, 48, 149.7, 37.4),
    "NVIDIA RTX A6000": ("8.6", 112.5, 4, 48, 154.8, 38.7),
    "NVIDIA A10": ("8.6", 0, 4, 24, 125, 31.2),
    "NVIDIA GeForce RTX 3090": ("8.6", 112.5, 4, 24, 71.2, 35.6),
    "NVIDIA GeForce RTX 4090": ("8.9", 0, 4, 24, 165.2, 82.6),
    "NVIDIA L40S": ("8.9", 0, 4, 48, 362, 91.6),
    "NVIDIA L4": ("8.9", 0, 4, 24, 121, 30.3),
    "NVIDIA RTX 6000 Ada Generation": ("8.9", 0, 4, 48, 364, 91.1),
    "NVIDIA H100 80GB HBM3": ("9.0", 900, 5, 80, 989.4, 67),
    "NVIDIA H100 NVL": ("9.0", 600, 5, 94, 835.5, 60),
    "NVIDIA H200": ("9.0", 900, 5, 141, 989.5, 67),
    "NVIDIA H200 NVL": ("9.0", 900, 5, 141, 835.5, 60),
    "NVIDIA B200": ("10.0", 1800, 5, 180, 2250, 80),
    "NVIDIA GeForce RTX 5090": ("12.0", 0, 5, 32, 209.5, 104.8),
    "AMD Instinct MI300X": (None, 896, 5, 192, 1307.4, 163.4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    card, (capability, nvlink, pcie, memory, half, single) = find(name), PUBLISHED[name]
    assert card is not None
    assert card.compute_capability == capability
    assert card.num_nvlinks is not None
    assert 2 * card.num_nvlinks * (card.nvlink_gb_per_s or 0) == nvlink
    assert (card.pcie_generation, card.pcie_lanes) == (pcie, 16)
    assert card.memory_bytes == memory * 10**9
    assert card.tflops["fp16"] == pytest.approx(half, rel=0.01)
    assert card.tflops["fp32"] == pytest.approx(single, rel=0.01)


def test_rows_are_plausible():
    ids = [(pci_id, card.name) for card in cards() for pci_id in card.pci_ids]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"(10de|1002):[0-9a-f]{4}", pci_id) for pci_id, _ in ids)
    assert len({card.name for card in cards()}) == len(cards()) > 120
    for card in cards():
        assert card.sources and card.pci_ids, card
        assert find(card.name) == card, card
        assert card.bridge_size in (None, 0, 2, 4), card
        assert "bf16" not in card.tflops or card.compute_capability is None or float(card.compute_capability) >= 8, card
        assert all(rate >= card.tflops.get("fp32", 0) for rate in card.tflops.values()), card
        # Of GeForce cards tensor cores that add in float32 are twice as fast as the others, not four times.
        if "GeForce RTX" in card.name and "bf16" in card.tflops:
            assert card.tflops["bf16"] == pytest.approx(2 * card.tflops["fp32"], rel=0.01), card


@pytest.mark.skipif(not PCI_IDS.is_file(), reason="needs /usr/share/misc/pci.ids: apt-get install pci.ids")
def test_pci_ids_are_those_of_the_database():
    names: dict[str, str] = {}
    vendor = ""
    for line in PCI_IDS.read_text(errors="replace").splitlines():
        if match := re.match(r"(\t?)([0-9a-f]{4})  (.*)", line):
            vendor = vendor if match[1] else match[2]
            names[f"{vendor}:{match[2]}" if match[1] else vendor] = match[3]
    # Its names for these are other ones, or were in older versions.
    others = {"TITAN X (Pascal)", "A800 40GB Active", "H100 NVL", "H20-3e", "H100 80GB HBM3", "H100 SXM5 94GB"}
    checked = 0
    for card in cards():
        for pci_id in card.pci_ids:
            # A database of Debian is older than the newest cards, and of some it knows the chip alone.
            named = re.search(r"\[(.*)\]", names.get(pci_id, ""))
            if named and card.name not in others and not re.search(r"Lite Hash|SKU|PG\d|CMP|Reserved", named[1]):
                words = set(re.findall(r"[a-z0-9]+", named[1].lower()))
                own = re.findall(r"[a-z0-9]+", card.name.lower())
                assert [word for word in own if word not in words | {"geforce", "tesla", "amd"}] == [], (card, named[1])
                checked += 1
    assert checked > 60


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("Quadro RTX 5000", "7.5"),
        ("NVIDIA RTX 5000 Ada Generation", "8.9"),
        ("NVIDIA RTX 5000 Ada", "8.9"),
        ("NVIDIA GeForce RTX 5090", "12.0"),
        ("Quadro RTX 4000", "7.5"),
        ("NVIDIA GeForce RTX 4090", "8.9"),
        ("RTX 4090", "8.9"),
        ("NVIDIA A2", "8.6"),
        ("NVIDIA A16", "8.6"),
        ("NVIDIA A100-SXM4-40GB", "8.0"),
        ("A100", "8.0"),
        ("NVIDIA L20", "8.9"),
        ("NVIDIA GB10", "12.1"),
        ("NVIDIA GB200", "10.0"),
        ("NVIDIA B200", "10.0"),
        ("NVIDIA H20", "9.0"),
        ("NVIDIA Corporation GA102 [GeForce RTX 3090]", "8.6"),
        ("A100 PCIe 80GB", "8.0"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "12.0"),
    ],
)
def test_names_are_matched_by_whole_words(name, capability):
    card = find(name)
    assert card is not None and card.compute_capability == capability


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 2080 with Max-Q Design",
        "NVIDIA GeForce RTX 3070 SUPER",  # there is none
        "GA104M [GeForce RTX 3080 Mobile / Max-Q 8GB/16GB]",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA RTX A6000-48Q",
        "GRID A100D-80C",
        "NVIDIA H900",
        "RTX 5000",  # of Turing or of Ada
        "NVIDIA",
        "AMD Radeon",
        "",
    ],
)
def test_other_products_are_unknown(name):
    assert find(name) is None


def test_the_more_words_of_a_card_the_better():
    names = ["NVIDIA GeForce RTX 4070", "NVIDIA GeForce RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER"]
    assert [find(name).name for name in names] == [name.removeprefix("NVIDIA ") for name in names]  # type: ignore[union-attr]
    assert find("NVIDIA H200 NVL").bridge_size == 4 and find("NVIDIA H200").bridge_size == 0  # type: ignore[union-attr]


def test_a_part_of_a_name_gives_what_its_cards_have_in_common():
    card = find("A100")
    assert card is not None and (card.num_nvlinks, card.pcie_generation, card.memory_bytes) == (12, 4, None)
    assert card.tflops["bf16"] == 312 and "A100-PCIE-40GB or A100 80GB PCIe" in card.name
    several = find("H100")  # SXM and PCIe differ
    assert several is not None and several.compute_capability == "9.0" and not several.tflops


def test_a_name_that_is_almost_one():
    assert nearest_card("RTX A600") == " Did you mean 'RTX A6000'?"
    assert nearest_card("EPYC 7763") == ""


# -- what decides ------------------------------------------------------------------------------------------------------


def test_the_pci_id_decides_before_the_name():
    assert find("NVIDIA Graphics Device", pci_id="10DE:2684").name == "GeForce RTX 4090"  # type: ignore[union-attr]
    assert find("NVIDIA GeForce RTX 4090", pci_id="10de:2204").name == "GeForce RTX 3090"  # type: ignore[union-attr]
    assert find("NVIDIA GeForce RTX 4090", pci_id="10de:0001").name == "GeForce RTX 4090"  # type: ignore[union-attr]
    shared = [find(name, pci_id="10de:25b6") for name in ("NVIDIA A2", "NVIDIA A16", "")]
    assert [card.name for card in shared if card] == ["A2", "A16", "A16 or A2"]


def test_the_compute_capability_decides_before_both():
    device = Device(id="gpu0", name="NVIDIA A100-SXM4-80GB", pci_id="10de:20b2", compute_capability="10.0")
    assert card_of(device) is None
    assert nominal.nvlink_gb_per_s(device) == 40.1
    assert nominal.pcie_generation(device) == 5


@pytest.mark.parametrize(
    ("device", "nvlink", "pcie"),
    [
        (Device(id="gpu0", compute_capability="10.0"), 40.1, 5),  # a B200 without its name
        (Device(id="gpu0", pci_id="10de:2901"), 40.1, 5),
        (Device(id="gpu0", name="NVIDIA B200"), 40.1, 5),
        (Device(id="gpu0", compute_capability="10.3"), 40.1, 5),
        (Device(id="gpu0", compute_capability="9.0"), 20.6, 5),
        (Device(id="gpu0", name="NVIDIA A40"), 12.0, 4),
        (Device(id="gpu0", name="Quadro RTX 5000"), 20.0, 3),
        (Device(id="gpu0", name="NVIDIA H900"), None, None),
        (Device(id="gpu0"), None, None),
    ],
)
def test_links_by_what_is_known_of_a_gpu(device, nvlink, pcie):
    assert (nominal.nvlink_gb_per_s(device), nominal.pcie_generation(device)) == (nvlink, pcie)


# -- where it is read --------------------------------------------------------------------------------------------------


def test_nvml_reads_the_pci_id():
    class WithIds(FakeNvml):
        def nvmlDeviceGetPciInfo(self, handle):
            info = super().nvmlDeviceGetPciInfo(handle)
            info.pciDeviceId = 0x290110DE
            return info

    host = nvml_host(WithIds([bus(0), bus(1)], name="", capability=(10, 0)))
    assert [device.pci_id for device in host.devices] == ["10de:2901"] * 2
    assert [card_of(device).name for device in host.devices] == ["B200"] * 2  # type: ignore[union-attr]


def test_sysfs_reads_the_pci_id(tmp_path):
    path = tmp_path / "devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    path.mkdir(parents=True)
    for name, text in {"vendor": "0x10de", "device": "0x2204", "class": "0x030000", "numa_node": "0"}.items():
        (path / name).write_text(text + "\n")
    (tmp_path / "bus/pci/devices").mkdir(parents=True)
    (tmp_path / "bus/pci/devices/0000:01:00.0").symlink_to(path)
    host = read_sysfs(tmp_path, tmp_path)
    assert host is not None and host.devices[0].pci_id == "10de:2204"
    assert "assumed" not in host.facts and host.facts["p2p"] is False  # a GeForce RTX 3090
    assert [link.bandwidth_gb_per_s for link in host.links] == [24.0]


def test_the_xml_of_nccl_has_the_pci_id():
    text = """<system version="1"><cpu numaid="0"><pci busid="0000:01:00.0" class="0x030200" vendor="0x10de"
        device="0x2331" link_speed="32.0 GT/s PCIe" link_width="16"><gpu dev="0" rank="0"/></pci></cpu></system>"""
    device = parse_nccl_xml(text).devices[0]
    assert device.pci_id == "10de:2331" and card_of(device).name == "H100 PCIe"  # type: ignore[union-attr]


def test_a_slot_has_the_lanes_of_the_card():
    names = ["NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4090", "NVIDIA H900"]
    assert [nominal.slot_gb_per_s(Device(id="gpu0", name=name)) for name in names] == [12.0, 24.0, 12.0]


def test_assumed_figures_are_marked():
    text = "\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV4\tX\n"
    facts = parse_topo_matrix(text).facts
    assert facts["assumed"] == {f"gpu{i}": "PCIe 3 with 16 lanes and 20 GB/s for an NVLink" for i in (0, 1)}
    host = parse_topo_matrix(text, gpu_name="NVIDIA GeForce RTX 3090")
    assert "assumed" not in host.facts
    assert {link.bandwidth_gb_per_s for link in host.links if link.kind == "nvlink"} == {48.0}
