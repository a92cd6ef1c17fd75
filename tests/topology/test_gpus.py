"""Oracles: presets of the same machines, published lanes of NVLink, and one error line for what no card is."""

import pytest

from trainkit.errors import TopologyError
from trainkit.planning import CostModel, flat
from trainkit.planning.changed_host import with_peer_access
from trainkit.topology.gpus import CARDS, card_key, card_of, gpus
from trainkit.topology.graph import Graph
from trainkit.topology.topology import Topology

BYTES = 256 << 20


def _bus(text):
    machine = gpus(text)
    return CostModel(machine).bus_bandwidth_gb_per_s(flat(machine.world_size), BYTES)


@pytest.mark.parametrize("text", [f"{count}x{key}" for key in CARDS for count in (1, 2, 4, 8)])
def test_every_card_has_a_path_to_every_other(text):
    host = gpus(text).hosts[0]
    names = [device.id for device in host.devices]
    assert all(Graph(host).path(names[0], other) for other in names[1:])
    assert {device.compute_capability for device in host.devices} != {None}
    assert card_of(host.devices[0].name) is CARDS[text.partition("x")[2]]


@pytest.mark.parametrize("text", ["4x3090", " 4 X rtx 3090", "4xGeForce-RTX-3090", "4*nvidia geforce rtx 3090"])
def test_spelling_does_not_matter(text):
    assert gpus(text).hosts == gpus("4xRTX-3090").hosts


def test_bridges_join_pairs_and_nothing_else():
    links = [link for link in gpus("4x3090+nvlink").hosts[0].links if link.kind == "nvlink"]
    assert [(link.a, link.b) for link in links] == [("gpu0", "gpu1"), ("gpu2", "gpu3")]
    assert gpus("4x3090+nvlink").source == "4xRTX-3090+nvlink"


@pytest.mark.parametrize(("text", "gb_per_s"), [("2x3090+nvlink", 56.25), ("2xA100-PCIe+nvlink", 300.0)])
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
        ("4xA100", "A100 is not one card: must be one of A100-PCIe, A100-SXM"),
        ("4x4090+nvlink", "RTX-4090 has no NVLink connector"),
        ("8xH100-SXM+nvlink", "H100-SXM is joined by its board's NVSwitch"),
        ("3x3090+nvlink", "bridges join pairs"),
        ("4xPCIe", "PCIe is not one card"),
    ],
)
def test_errors_say_what_to_give(text, says):
    with pytest.raises(TopologyError, match=f"--gpus='.*{says}"):
        gpus(text)


def test_a_price_names_its_own_option():
    with pytest.raises(TopologyError, match=r"--price=foo=3: must be one of RTX-3090"):
        card_key("foo", "--price=foo=3")
