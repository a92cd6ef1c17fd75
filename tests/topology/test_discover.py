"""One topology from what all ranks see, and the same on all of them."""

import random
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.topology.hosts import (
    DATA,
    NOWHERE,
    FakeNvml,
    bus,
    links,
    matrix,
    nccl_xml,
    nvml_host,
    nvswitch_host,
    paired_host,
    sources,
)
from trainkit.distributed.cluster import Cluster
from trainkit.errors import TopologyError
from trainkit.testing import run_ranks
from trainkit.topology import discover as discovery
from trainkit.topology.discover import Sources, View, discover_host, look, merge, parse_topo_matrix
from trainkit.topology.discover.parts import bus_id
from trainkit.topology.topology import NETWORK, Host, Topology

CPU, GPU = torch.device("cpu"), torch.device("cuda")


# -- one topology of all ranks' views --------------------------------------------------------------------------------


def view(host: Host | None, device: int | str, at: str = "a", problem: str = "") -> View:
    bus_or_cpu = bus_id(bus(device)) if isinstance(device, int) else device
    return View(host_id=at, device=bus_or_cpu, host=host, host_name=f"node-{at}", problem=problem)


def test_ranks_sit_where_their_gpus_are():
    host = nvml_host(nvswitch_host())
    topology = merge([view(host, i, at) for at in "ab" for i in (3, 2, 1, 0)])
    assert [(place.host, place.device) for place in topology.places] == [
        (h, f"gpu{i}") for h in (0, 1) for i in (3, 2, 1, 0)
    ]
    assert [h.name for h in topology.hosts] == ["node-a", "node-b"]
    assert topology.source == "nvml"
    # GPUs that no rank uses are left out, and with them their switches and their socket.
    assert [d.id for d in topology.hosts[0].devices] == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert topology.hosts[0].switches == ("nvswitch", "pcie0", "pcie1", "socket0")
    # Two hosts need a way to one another.
    assert links(topology.hosts[1], "nic") == {("nic0", NETWORK): 1.2}
    assert topology.hosts[1].facts["nic_speed"] == "unknown"


def test_round_robin_ranks():
    host = nvml_host(paired_host())
    topology = merge([view(host, rank // 2, "ab"[rank % 2]) for rank in range(8)])
    assert topology.ranks_by_host() == ((0, 2, 4, 6), (1, 3, 5, 7))


def test_the_richest_description_wins_on_whichever_rank():
    rich, poor = nvml_host(nvswitch_host()), nvml_host(nvswitch_host(lacking=("nvmlDeviceGetNvLinkState",)))
    told = [poor, rich, None, poor, rich, None, poor, rich]
    topology = merge([view(host, i, problem="" if host else "no library") for i, host in enumerate(told)])
    expected = merge([view(rich, i) for i in range(8)])
    assert topology.fingerprint() == expected.fingerprint()
    assert topology.hosts[0].facts["unread"] == {"rank 2": "no library", "rank 5": "no library"}
    for seed in range(5):
        mixed = random.Random(seed).sample(told, len(told))
        again = merge([view(host, i, problem="" if host else "no library") for i, host in enumerate(mixed)])
        assert again.hosts[0].links == topology.hosts[0].links
        assert again.fingerprint() == expected.fingerprint()


def test_equally_rich_descriptions_do_not_depend_on_the_order():
    one = nvml_host(paired_host(), note="one")
    two = nvml_host(paired_host(), note="two")
    assert {
        merge([view(h, i) for i, h in enumerate(hosts)]).hosts[0].facts["note"] for hosts in ([one, two], [two, one])
    } == {"two"}


def test_gpus_that_one_rank_alone_sees_are_put_together():
    """Slurm shows each task its own GPU only."""
    alone = [nvml_host(FakeNvml([bus(i)], numa=[i // 2])) for i in range(4)]
    topology = merge([view(host, i) for i, host in enumerate(alone)])
    assert sorted(d.bus_id or "" for d in topology.hosts[0].devices) == [bus_id(bus(i)) for i in range(4)]
    assert len({place.device for place in topology.places}) == 4
    assert [topology.device_of(rank).bus_id for rank in range(4)] == [bus_id(bus(i)) for i in range(4)]
    assert [topology.device_of(rank).numa for rank in range(4)] == [0, 0, 1, 1]


def test_hosts_of_which_no_rank_can_read_anything():
    topology = merge([view(None, i, at, "no library") for at in "ab" for i in range(2)])
    assert [topology.device_of(rank).id for rank in range(4)] == ["gpu0", "gpu1", "gpu0", "gpu1"]
    assert topology.source == "hostnames"
    assert topology.hosts[1].facts["unread"] == {"rank 2": "no library", "rank 3": "no library"}


def test_cpu_ranks_get_a_place_each_whatever_the_launcher_says():
    host = discover_host("cpu", 1, sources=sources())
    topology = merge([view(host, "cpu", "ab"[rank // 3]) for rank in range(6)])
    assert [(place.host, place.device) for place in topology.places] == [
        (h, f"cpu{i}") for h in (0, 1) for i in range(3)
    ]
    assert links(topology.hosts[0], "nic") == {("nic0", NETWORK): 1.2}


def test_two_hosts_of_one_name_are_two():
    host = discover_host("cpu", 1, sources=sources())
    views = [replace(view(host, "cpu", at), host_name="localhost") for at in "ab"]
    assert [h.name for h in merge(views).hosts] == ["localhost-0", "localhost-1"]


def test_matrix_of_nvidia_smi_and_nvml_agree():
    by_text = parse_topo_matrix((DATA / "a6000_pairs.txt").read_text(), gpu_name="NVIDIA RTX A6000")
    module = paired_host(8, numa=[i // 4 for i in range(8)])
    module.levels = {(a, b): 40 if a // 4 == b // 4 else 50 for a in range(8) for b in range(8)}
    by_nvml = nvml_host(module)
    assert by_text.links == by_nvml.links
    assert by_text.switches == by_nvml.switches


# -- collectively ----------------------------------------------------------------------------------------------------


def _discover_on_every_rank(path, broken_rank):
    rank, size = dist.get_rank(), dist.get_world_size()
    node = f"node{rank // 2}"
    module = nvswitch_host(broken="Driver Not Loaded" if rank == broken_rank else "")
    given = Sources(environment={"NCCL_HOSTID": node}, root=NOWHERE, proc=NOWHERE, nvml=module, smi_text=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "Sources", lambda: given)
        patch.setattr(discovery.smi, "run", lambda: None)
        patch.setattr(discovery, "_bus_id_of", lambda device: bus_id(bus(rank % 2)))
        topology = discovery.discover(GPU, Cluster(rank, size, rank % 2, 2), group=dist.group.WORLD, path=path)
    return topology.fingerprint(), topology.to_json()


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("broken_rank", [None, 0, 1])
def test_all_ranks_get_one_topology(world_size, broken_rank):
    answers = run_ranks(_discover_on_every_rank, world_size, None, broken_rank)
    assert len(set(answers)) == 1
    topology = Topology.from_json(answers[0][1])
    assert topology.ranks_by_host() == tuple((i, i + 1) for i in range(0, world_size, 2))
    assert set(links(topology.hosts[0], "nvswitch")) == {("gpu0", "nvswitch"), ("gpu1", "nvswitch")}
    unread = topology.hosts[0].facts.get("unread", {})
    assert list(unread) == ([] if broken_rank is None else [f"rank {broken_rank}"])


def _discover_cpus():
    rank, size = dist.get_rank(), dist.get_world_size()
    topology = discovery.discover(CPU, Cluster(rank, size, rank, size), group=dist.group.WORLD)
    return topology.fingerprint(), topology.to_json()


def test_cpu_ranks_on_this_host():
    answers = run_ranks(_discover_cpus, 2)
    assert len(set(answers)) == 1
    topology = Topology.from_json(answers[0][1])
    assert [topology.device_of(rank).id for rank in range(2)] == ["cpu0", "cpu1"]
    assert len(topology.hosts) == 1


def test_a_users_file_stands_for_all_reading(tmp_path):
    file = tmp_path / "ours.json"
    file.write_text(merge([view(nvml_host(paired_host()), i) for i in range(2)]).to_json())
    (first, text), second = run_ranks(_discover_on_every_rank, 2, str(file), None)
    assert second == (first, text)
    assert Topology.from_json(text) == Topology.read(file)


@pytest.mark.parametrize("text", [matrix(2, lambda a, b: "NV4"), nccl_xml(["", ""])])
def test_a_users_file_may_be_of_any_form(tmp_path, text):
    file = tmp_path / "node1.txt"
    file.write_text(text)
    (first, found), second = run_ranks(_discover_on_every_rank, 2, str(file), None)
    assert second == (first, found)
    topology = Topology.from_json(found)
    assert topology.source == str(file)
    assert [topology.device_of(rank).id for rank in range(2)] == ["gpu0", "gpu1"]


def _what_discovery_says(path):
    try:
        return _discover_on_every_rank(path, None)
    except TopologyError as error:
        return str(error)


@pytest.mark.parametrize(
    "content, words",
    [("{", "ours.json:1:2: invalid JSON"), (None, "ours.json: it has places for 4 ranks, and this job has 2")],
)
def test_an_unusable_file_is_an_error_on_all_ranks(tmp_path, content, words):
    file = tmp_path / "ours.json"
    file.write_text(content or merge([view(nvml_host(paired_host()), i) for i in range(4)]).to_json())
    first, second = run_ranks(_what_discovery_says, 2, str(file))
    assert first == second
    assert words in first


def _discover_with_a_mistake():
    def decided(views, path):
        raise ZeroDivisionError("ours")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "_decided", decided)
        return _what_discovery_says(None)


def test_a_mistake_on_rank_0_does_not_leave_the_others_waiting():
    assert run_ranks(_discover_with_a_mistake, 2) == ["ours", "ours"]


def test_one_process_alone():
    topology = discovery.discover(CPU, Cluster())
    assert topology.world_size == 1
    assert topology.device_of(0).kind == "cpu"


def test_looking_raises_nothing(monkeypatch):
    monkeypatch.setattr(discovery, "_bus_id_of", lambda device: "0000:10:00.0")
    monkeypatch.setattr(discovery.smi, "run", lambda: None)

    class Odd(FakeNvml):
        def nvmlDeviceGetCount(self):
            raise RuntimeError("not what pynvml raises")

    seen = look(GPU, Cluster(), sources(module=Odd([])))
    assert (seen.host, seen.problem, seen.device) == (None, "RuntimeError: not what pynvml raises", "0000:10:00.0")
    wrong = look(GPU, Cluster(), sources(module=paired_host(2), NCCL_TOPO_FILE="/nowhere/t.xml"))
    assert wrong.host is not None
    assert "cannot be read" in wrong.host.facts["topo_file"]
