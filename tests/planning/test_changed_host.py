"""Each change does what its name says to the links, and leaves every device within reach."""

from dataclasses import replace

import pytest

from trainkit.planning import CostModel, changed_host, flat
from trainkit.topology.gpus import gpus
from trainkit.topology.graph import Graph
from trainkit.topology.presets import preset, preset_names
from trainkit.topology.topology import Topology

BYTES = 100_000_000
CHANGES = {
    "nvswitch": changed_host.with_nvswitch,
    "bridges": changed_host.with_bridges,
    "peers": changed_host.with_peer_access,
    "switches": changed_host.behind_switches,
    "slots": lambda host: changed_host.with_slots(host, 0.5),
    "plain": changed_host.without_nvlink,
    "half": lambda host: changed_host.part(host, len(host.devices) // 2),
}


def _us(host):
    topology = Topology(hosts=(host,))
    return CostModel(topology).all_reduce_us(flat(topology.world_size), BYTES)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("change", CHANGES)
def test_every_device_stays_within_reach(name, change):
    host = CHANGES[change](preset(name).hosts[0])
    if host is not None:
        names = [device.id for device in host.devices]
        assert all(Graph(host).path(names[0], other) for other in names[1:])


@pytest.mark.parametrize("change", ["nvswitch", "bridges", "peers"])
def test_better_links_are_faster(change):
    host = gpus("2x3090").hosts[0]
    assert _us(CHANGES[change](host)) < _us(host)


@pytest.mark.parametrize(("change", "text"), [("slots", "4xL40S"), ("plain", "2x3090+nvlink"), ("plain", "8xH100-SXM")])
def test_poorer_links_are_slower(change, text):
    host = gpus(text).hosts[0]
    assert _us(CHANGES[change](host)) > _us(host)


def test_cards_below_switches_do_not_cross_the_host_bridge():
    host = gpus("8xL40S").hosts[0]
    changed = changed_host.behind_switches(host)
    assert changed is not None
    path = Graph(changed).path("gpu0", "gpu1")
    ends = {end for number, _ in path for end in (changed.links[number].a, changed.links[number].b)}
    assert ends == {"gpu0", "gpu1", "pcie0"}
    assert changed_host.behind_switches(changed) is None


def test_what_is_there_is_not_added():
    assert changed_host.with_bridges(gpus("2x3090+nvlink").hosts[0]) is None
    assert changed_host.with_bridges(gpus("1x3090").hosts[0]) is None
    assert changed_host.with_peer_access(gpus("4xL40S").hosts[0]) is None
    assert changed_host.without_nvlink(gpus("4x3090").hosts[0]) is None


@pytest.mark.parametrize(
    ("cards", "published"), [("4x4090", 10.6), ("2x4090", 19.4)]
)  # over two host bridges: github.com/smolix/d2l-neu
def test_copy_engines_are_not_told_better_than_published(cards, published):
    engines = changed_host.with_copy_engines(gpus(cards).hosts[0])
    assert engines is not None
    found = Graph(engines).rings_gb_per_s(tuple(device.id for device in engines.devices))
    assert 0.75 * published < found < published


def test_measured_links_have_no_other_bridges():
    host = gpus("4x4090").hosts[0]
    probed = replace(host, links=tuple(replace(link, source="measured") for link in host.links))
    engines = changed_host.with_copy_engines(probed)
    assert engines is not None and engines.links == probed.links


def test_settings_change_facts_and_no_links():
    host = gpus("4x4090").hosts[0]
    engines = changed_host.with_copy_engines(host)
    assert engines is not None
    assert engines.facts == {"p2p": False, "environment": {"NCCL_SHM_USE_CUDA_MEMCPY": "1"}}
    assert changed_host.with_copy_engines(engines) is None
    assert changed_host.with_copy_engines(gpus("8xL40S").hosts[0]) is None
    redirected = replace(host, facts={"acs": True})
    plain = changed_host.without_acs(redirected)
    assert plain is not None and plain.facts == {"acs": False} and changed_host.without_acs(plain) is None
