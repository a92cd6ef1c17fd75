import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from trainkit.errors import TopologyError
from trainkit.planning.advice import advise
from trainkit.planning.simulate import what_if, workload
from trainkit.topology.cards import card_of
from trainkit.topology.graph import Graph
from trainkit.topology.paths import path
from trainkit.topology.presets import DIRECTORY, preset, preset_names
from trainkit.topology.topology import GPU_LINKS, Host, Topology

PAGE = Path(__file__).parents[2] / "docs" / "links.md"
PCIE_16_RATED = {3: 15.75, 4: 31.5, 5: 63.0}  # GB/s of 16 lanes

# GPUs, network cards, Gb/s of each, links of a GPU to others, rated GB/s of each in one direction: public data sheets
SHEETS = {
    "2x3090-nvlink": (2, 1, 10, 4, 14.0625),
    "4x4090": (4, 1, 10, 0, 0),
    "8x-l40s": (8, 1, 400, 0, 0),
    "aws-p4d": (8, 4, 100, 12, 25),
    "aws-p5": (8, 32, 100, 18, 25),
    "dgx-1": (8, 4, 100, 6, 25),
    "dgx-2": (16, 8, 100, 6, 25),
    "dgx-a100": (8, 8, 200, 12, 25),
    "dgx-b200": (8, 8, 400, 18, 50),
    "dgx-h100": (8, 8, 400, 18, 25),
    "dgx-h200": (8, 8, 400, 18, 25),
    "gb200-nvl72": (4, 4, 400, 18, 50),
    "gh200": (4, 4, 200, 18, 25),
    "h200-nvl": (8, 2, 400, 18, 25),
    "mi300x": (8, 8, 400, 7, 64),
    "pcie-8": (8, 1, 100, 0, 0),
    "pcie-8-nvlink-pairs": (8, 1, 100, 12, 25),
    "workstation-2": (2, 1, 10, 0, 0),
}


def test_all_presets_are_there():
    assert preset_names() == tuple(sorted(SHEETS))


@pytest.mark.parametrize("name", SHEETS)
def test_data_sheet(name):
    num_gpus, num_nics, gbit, num_links, link_gb_per_s = SHEETS[name]
    host = preset(name).hosts[0]
    assert len(host.devices) == num_gpus
    assert len(host.nics) == num_nics
    assert {link.rated_gb_per_s for link in host.links if link.kind == "nic"} == {gbit / 8}
    for device in host.devices:
        mine = [k for k in host.links if device.id in (k.a, k.b) and k.kind in GPU_LINKS]
        assert sum(link.rated_gb_per_s or 0 for link in mine) == num_links * link_gb_per_s
    for link in host.links:
        assert link.rated_gb_per_s is not None and link.rated_gb_per_s >= link.bandwidth_gb_per_s
        assert link.source == "nominal"


@pytest.mark.parametrize("name", SHEETS)
def test_presets_and_cards_agree(name):
    host = preset(name).hosts[0]
    assert len(host.facts["published"]) > 20  # where its figures are from
    for device in host.devices:
        card = card_of(device)
        assert card is not None and card.name == device.name.removeprefix("NVIDIA "), device.name
        assert (card.tflops or {}).get("fp16"), device.name
        mine = [k for k in host.links if device.id in (k.a, k.b) and k.kind in GPU_LINKS]
        if mine:
            rated = sum(link.rated_gb_per_s or 0 for link in mine)
            assert card.num_nvlinks is not None and card.num_nvlinks * (card.nvlink_gb_per_s or 0) == rated
        slots = {k.rated_gb_per_s for k in host.links if k.a == device.id and k.kind == "pcie"}
        if card.pcie_generation is not None:  # a GPU on a Grace processor has none
            assert slots <= {PCIE_16_RATED[card.pcie_generation]}
        assert (host.facts.get("p2p") is False) == (card.peer_access == "off"), "peer access"


@pytest.mark.parametrize("name", SHEETS)
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_as_many_as_asked_for(name, num_nodes):
    topology = preset(name, num_nodes)
    assert len(topology.hosts) == num_nodes
    assert topology.world_size == num_nodes * SHEETS[name][0]
    assert topology.source == f"preset {name}"
    assert [place.host for place in topology.places] == sorted(place.host for place in topology.places)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(preset("dgx-1").to_json())
    assert preset(str(path), 2).world_size == 16
    path.write_text(preset("dgx-1", 2).to_json())
    with pytest.raises(TopologyError, match="has 2 hosts"):
        preset(str(path))


def test_a_name_that_is_not_there():
    with pytest.raises(TopologyError, match=r"no preset 'dgx-a10'.*pcie-8.*Did you mean 'dgx-a100'"):
        preset("dgx-a10")
    with pytest.raises(TopologyError, match=r"no preset 'gb200'.*Did you mean 'gb200-nvl72'\?$"):
        preset("gb200")
    with pytest.raises(TopologyError, match=r"Did you mean 'dgx-h200' or 'h200-nvl'\?$"):
        preset("H200")
    with pytest.raises(TopologyError, match=r"Did you mean '8x-l40s'\?$"):
        preset("8xL40S")
    with pytest.raises(TopologyError, match=r"nowhere\.json cannot be read"):
        preset("nowhere.json")
    with pytest.raises(TopologyError, match="num_nodes=0"):
        preset("dgx-1", 0)


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_files_are_plain_topologies_of_one_host(path):
    assert list(json.loads(path.read_text())) == ["hosts"]
    assert len(Topology.read(path).hosts) == 1


def test_infinity_fabric_is_said_to_be_nominal():
    host = preset("mi300x").hosts[0]
    ways = [path(host, a.id, b.id) for a, b in combinations(host.devices, 2)]
    assert {(way.kind, way.bandwidth_gb_per_s) for way in ways if way} == {("XGM", 48.0)} and len(ways) == 28
    assert Graph(host).islands([device.id for device in host.devices]) == (tuple(f"gpu{i}" for i in range(8)),)
    assert (
        "no prediction" in next(each for each in advise(preset("mi300x")) if each.subject == "Infinity Fabric").problem
    )
    changes = {entry.change for entry in what_if(preset("mi300x"), workload("bert-large"), 1)}
    assert changes == {"without Infinity Fabric"}


# -- an NVLink domain of several hosts -------------------------------------------------------------------------------


def test_racks_are_nvlink_domains():
    topology = preset("gb200-nvl72", 20)
    nodes = [topology.nvlink_node(i) for i in range(20)]
    assert nodes == ["gb200-nvl72-domain-0"] * 18 + ["gb200-nvl72-domain-1"] * 2
    assert [len(ranks) for ranks in topology.ranks_by_nvlink_node()] == [72, 8]
    assert Topology.from_json(topology.to_json()).ranks_by_nvlink_node() == topology.ranks_by_nvlink_node()
    assert [topology.nvlink_node(0) for topology in (preset("gb200-nvl72"), preset("dgx-h100", 2))] == [0, 0]
    apart = [replace(host, facts={"nvlink_domain": f"{i}"}) for i, host in enumerate(topology.hosts)]
    assert replace(topology, hosts=tuple(apart)).fingerprint() != topology.fingerprint()
    read = replace(
        topology.hosts[0], facts={"nvlink_domain": "a"}
    )  # of NVML, which does not say how many hosts are in it
    assert len(Topology(hosts=(read,)).times(3).ranks_by_nvlink_node()) == 3


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"nvlink_domain_hosts": 0}, "nvlink_domain_hosts=0: must be a number of hosts from 1 on"),
        ({"nvlink_domain_hosts": "18"}, "nvlink_domain_hosts='18'"),
        ({"nvlink_domain": 3}, "nvlink_domain=3: must be the name of a domain"),
    ],
)
def test_domains_that_are_none(facts, message):
    plain = preset("gb200-nvl72").to_dict()
    plain["hosts"][0]["facts"] = facts
    with pytest.raises(TopologyError, match=message):
        Topology.from_dict(plain)


# -- the table of the documentation ----------------------------------------------------------------------------------


def test_the_table_of_the_page_is_that_of_the_files():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `") and line.count("|") == 5]
    told = {row.split("`")[1]: row for row in rows if row.split("`")[1] in SHEETS}
    assert told == {name: _row(name, preset(name).hosts[0]) for name in preset_names()}


def _row(name: str, host: Host) -> str:
    words = {"nvlink": "NVLink", "nvswitch": "NVSwitch", "xgmi": "Infinity Fabric"}
    gpu = host.devices[0].name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    between = [link for link in host.links if link.kind in GPU_LINKS and host.devices[0].id in (link.a, link.b)]
    total = sum(link.rated_gb_per_s or 0 for link in between)
    slot = next(k for k in host.links if k.kind == "pcie" and host.devices[0].id in (k.a, k.b))
    links = f"{words[between[0].kind]}, {total:g} GB/s" if between else f"PCIe, {slot.rated_gb_per_s:g} GB/s"
    hosts = host.facts.get("nvlink_domain_hosts")
    links += f", over {hosts} hosts" if hosts else ""
    wires = [link for link in host.links if link.kind == "nic"]
    network = f"{len(wires)} x {8 * (wires[0].rated_gb_per_s or 0):g} Gb/s"
    return f"| `{name}` | {len(host.devices)} x {gpu} | {links} | {network} |"
