"""Oracles: presets of the same machines, published lanes of NVLink, and one error line for what no card is."""

import pytest

from trainkit.errors import TopologyError
from trainkit.planning import CostModel, flat
from trainkit.planning.changed_host import with_peer_access
from trainkit.topology.cards import card_of, cards
from trainkit.topology.gpus import card_named, gpus, machine_of
from trainkit.topology.graph import Graph
from trainkit.topology.topology import Topology

BYTES = 256 << 20


def _bus(text):
    machine = gpus(text)
    return CostModel(machine).bus_bandwidth_gb_per_s(flat(machine.world_size), BYTES)


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_each_card_is_linked_or_said_to_need_a_file(card):
    try:
        host = machine_of(card, 8).hosts[0]
    except TopologyError as error:
        assert "give --preset or --topology" in str(error)
        assert card.pcie_generation is None or card.num_nvlinks
        return
    assert all(Graph(host).path("gpu0", device.id) for device in host.devices[1:])
    found = card_of(host.devices[0])
    assert found is not None and found.compute_capability == card.compute_capability
    assert (host.facts.get("p2p") is False) == (card.peer_access == "off")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("3090", "GeForce RTX 3090"),
        ("3090ti", "GeForce RTX 3090 Ti"),
        ("RTX3090Ti", "GeForce RTX 3090 Ti"),
        ("4070 ti super", "GeForce RTX 4070 Ti SUPER"),
        ("A6000", "RTX A6000"),
        ("6000-Ada", "RTX 6000 Ada Generation"),
        ("l40s", "L40S"),
        ("A100-SXM", "A100-SXM4-80GB"),
        ("A100 40GB PCIe", "A100-PCIE-40GB"),
        ("H100 SXM", "H100 80GB HBM3"),
        ("H200", "H200"),
        ("H200 NVL", "H200 NVL"),
        ("RTX 6000", "Quadro RTX 6000"),
    ],
)
def test_the_words_that_people_use_name_a_card(given, name):
    assert card_named(given, "--gpus").name == name


@pytest.mark.parametrize("text", ["4x3090", " 4 X rtx 3090", "4xGeForce-RTX-3090", "4*nvidia geforce rtx 3090"])
def test_spelling_does_not_matter(text):
    assert gpus(text).hosts == gpus("4xRTX-3090").hosts


def test_bridges_join_pairs_and_nothing_else():
    links = [link for link in gpus("4x3090+nvlink").hosts[0].links if link.kind == "nvlink"]
    assert [(link.a, link.b) for link in links] == [("gpu0", "gpu1"), ("gpu2", "gpu3")]
    assert gpus("4x3090+nvlink").source == "4x GeForce RTX 3090, bridged"


def test_a_four_way_bridge_divides_the_links_of_a_card():
    links = [link for link in gpus("8xH200 NVL+nvlink").hosts[0].links if link.kind == "nvlink"]
    assert len(links) == 2 * 6 and not any({link.a, link.b} == {"gpu3", "gpu4"} for link in links)
    of_one = [link.bandwidth_gb_per_s for link in links if "gpu0" in (link.a, link.b)]
    assert sum(of_one) == pytest.approx(18 * 20.6)


@pytest.mark.parametrize(("text", "gb_per_s"), [("2x3090+nvlink", 56.25), ("2xA100 PCIe+nvlink", 300.0)])
def test_a_bridge_reaches_most_of_what_is_rated(text, gb_per_s):
    """112.5 and 600 GB/s in both directions together, by NVIDIA's data sheets."""
    assert 0.7 * gb_per_s < _bus(text) <= gb_per_s


def test_links_are_ranked_as_everyone_finds_them():
    assert _bus("2x3090") < _bus("2x3090+nvlink") < _bus("2xA100-PCIe+nvlink") < _bus("2xH100-SXM")
    assert _bus("4x3090") <= _bus("4x3090+nvlink")


def test_six_4090_with_peer_access_reach_what_was_measured():
    """24.5 GB/s at 32 MiB, printed in the README of tinygrad/open-gpu-kernel-modules."""
    host = with_peer_access(gpus("6x4090").hosts[0])
    assert host is not None
    reached = CostModel(Topology(hosts=(host,))).bus_bandwidth_gb_per_s(flat(6), 32 << 20)
    assert reached == pytest.approx(24.5, rel=0.3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3090", "must be a number, x and a card, such as 4x3090"),
        ("4x3900", "Did you mean '3090'"),
        ("0x3090", "must be 1 to 16 cards"),
        ("99x3090", "must be 1 to 16 cards"),
        ("4xA100", "A100 may be one of A100-SXM4-40GB.*linked in different ways"),
        ("4x4090+nvlink", "GeForce RTX 4090 has no NVLink bridges"),
        ("8xH100-SXM+nvlink", "H100 80GB HBM3 is joined by its board's NVSwitches"),
        ("3x3090+nvlink", "bridges join pairs"),
        ("4xPCIe", "there is no such card"),
        ("8xV100-SXM", "how machines join Tesla V100-SXM.* give --preset"),
        ("8xMI300X", "how machines join AMD Instinct MI300X differs"),
    ],
)
def test_errors_say_what_to_give(text, says):
    with pytest.raises(TopologyError, match=f"--gpus='.*{says}"):
        gpus(text)


def test_a_price_names_its_own_option():
    with pytest.raises(TopologyError, match=r"--price=foo=3: there is no such card"):
        card_named("foo", "--price=foo=3")
