import json

import pytest

from trainkit.errors import TopologyError
from trainkit.topology.presets import DIRECTORY, preset, preset_names
from trainkit.topology.topology import Topology

# GPUs, network cards, Gb/s of each, NVLink lanes of a GPU (each of 25 GB/s), from public data sheets
SHEETS = {
    "dgx-1": (8, 4, 100, 6),
    "dgx-2": (16, 8, 100, 6),
    "dgx-a100": (8, 8, 200, 12),
    "dgx-h100": (8, 8, 400, 18),
    "dgx-h200": (8, 8, 400, 18),
    "pcie-8": (8, 1, 100, 0),
    "pcie-8-nvlink-pairs": (8, 1, 100, 12),
    "workstation-2": (2, 1, 10, 0),
}


def test_all_presets_are_there():
    assert preset_names() == tuple(sorted(SHEETS))


@pytest.mark.parametrize("name", SHEETS)
def test_data_sheet(name):
    num_gpus, num_nics, gbit, lanes = SHEETS[name]
    host = preset(name).hosts[0]
    assert len(host.devices) == num_gpus
    assert len(host.nics) == num_nics
    assert {link.rated_gb_per_s for link in host.links if link.kind == "nic"} == {gbit / 8}
    for device in host.devices:
        mine = [k for k in host.links if device.id in (k.a, k.b) and k.kind in ("nvlink", "nvswitch")]
        assert sum(link.rated_gb_per_s or 0 for link in mine) == 25 * lanes
    for link in host.links:
        assert link.rated_gb_per_s is not None and link.rated_gb_per_s >= link.bandwidth_gb_per_s
        assert link.source == "nominal"


@pytest.mark.parametrize("name", SHEETS)
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_as_many_as_asked_for(name, num_nodes):
    topology = preset(name, num_nodes)
    assert len(topology.hosts) == num_nodes
    assert topology.world_size == num_nodes * SHEETS[name][0]
    assert topology.source.startswith("preset") or num_nodes > 1
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
    with pytest.raises(TopologyError, match=r"nowhere\.json cannot be read"):
        preset("nowhere.json")
    with pytest.raises(TopologyError, match="num_nodes=0"):
        preset("dgx-1", 0)


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_files_are_plain_topologies_of_one_host(path):
    assert list(json.loads(path.read_text())) == ["hosts"]
    assert len(Topology.read(path).hosts) == 1
