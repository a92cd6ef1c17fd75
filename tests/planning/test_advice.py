"""What is said of machines that are not as they should be, and that nothing is said of those that are."""

from dataclasses import replace
from typing import Any

import pytest

from tests.topology.hosts import DATA, FakeNvml, bus, nvml_host, nvswitch_host, paired_host
from trainkit.planning.advice import Advice, advise
from trainkit.topology.discover import merge, parse_nccl_xml, parse_topo_matrix
from trainkit.topology.discover.merge import View, cpu_host
from trainkit.topology.topology import Host, Nic, RankPlacement, Topology


def matrix(name: str, gpu_name: str = "NVIDIA A100", **facts) -> Host:
    host = parse_topo_matrix((DATA / f"{name}.txt").read_text(), name, gpu_name=gpu_name)
    return replace(host, name=name, facts={**host.facts, **facts})


def said(*hosts: Host, **given) -> list[Advice]:
    return advise(Topology(hosts=hosts, **given))


def only(advice: list[Advice], word: str) -> Advice:
    (found,) = [entry for entry in advice if word in entry.subject]
    return found


def twice(host: Host) -> tuple[Host, Host]:
    return replace(host, name="a"), replace(host, name="b")


def environment(**variables: str) -> dict[str, Any]:
    return {"environment": variables}


# -- nothing to say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "dgx1_soc",
        "dgx2",
        "dgx_a100",
        "hgx_h100",
        "h100x4",
        "p4d",
        "a6000_pairs",
        "titan_v_pcie",
        "two_cards",
        "five_cards",
    ],
)
def test_one_host_that_is_as_it_should_be(name):
    assert said(matrix(name)) == []


def test_gpus_of_unknown_model_are_named_with_what_is_assumed():
    hint = only(said(matrix("a6000_pairs", "NVIDIA H900")), "gpu0")
    assert hint.severity == "hint" and hint.subject.endswith("gpu7")
    assert hint.problem.startswith(
        "NVIDIA H900 is not in the table of GPUs: PCIe 3 with 16 lanes and 20 GB/s for an NVLink"
    )
    assert "topo probe" in hint.remedy
    assert "the model is unknown: PCIe 3" in only(said(matrix("titan_v_pcie", "")), "gpu0").problem
    known = nvml_host(paired_host(name="NVIDIA H900"))  # NVML says all that a prediction needs
    assert only(said(known), "gpu0").problem.endswith("as read, or those of its compute capability")


def test_two_hosts_that_are_as_they_should_be():
    assert said(*twice(matrix("dgx_a100", "NVIDIA A100", peermem=True))) == []
    assert said(*twice(cpu_host("a", 2, Nic(id="nic0", name="eth0"), 10.0))) == []


# -- one host --------------------------------------------------------------------------------------------------------


def test_a_guest_with_a_flat_pci_tree():
    found = only(said(matrix("h100_vm", hypervisor="Amazon EC2")), "PCI tree")
    assert found.subject == "PCI tree of a guest of Amazon EC2"
    assert found.severity == "warning"
    assert "NCCL_TOPO_FILE=/opt/amazon/ofi-nccl" in found.remedy
    assert "/opt/microsoft/" in only(said(matrix("h100_vm", hypervisor="Hyper-V")), "PCI tree").remedy
    assert "NCCL_TOPO_FILE=<" in only(said(matrix("two_cards", hypervisor="KVM")), "PCI tree").remedy


def test_a_guest_whose_tree_is_known_or_does_not_matter():
    assert said(matrix("p4d", hypervisor="Amazon EC2")) == []  # NVLink only
    assert said(matrix("one_gpu_bonds", hypervisor="KVM")) == []
    assert said(matrix("hgx_h100", hypervisor="KVM")) == []  # passed through, switches and all
    given = parse_nccl_xml((DATA / "nccl_pairs.xml").read_text())
    assert said(replace(given, facts={**given.facts, "hypervisor": "KVM"})) == []


def test_peer_access_that_the_drivers_of_consumer_cards_lack():
    off = {"gpu0 gpu1": "GPU not supported"}
    found = only(said(matrix("two_cards", "NVIDIA GeForce RTX 5090", p2p_off=off)), "peer access")
    assert "off for 1 of 1 pairs (GPU not supported)" in found.problem
    assert "no peer access. Use fewer" in found.remedy


def test_peer_access_that_the_iommu_or_the_board_forbids():
    host = nvml_host(paired_host(p2p={(0, 2): 1, (0, 3): 1, (1, 2): 1, (1, 3): 1}))
    found = only(said(host), "peer access")
    assert "off for 4 of 6 pairs (chipset not supported)" in found.problem
    assert "nvidia-smi topo -p2p r" in found.remedy
    assert "iommu=pt" in only(said(replace(host, facts={**host.facts, "iommu": True})), "peer access").remedy
    assert "provider" in only(said(replace(host, facts={**host.facts, "hypervisor": "KVM"})), "peer access").remedy


def test_peer_access_between_gpus_that_the_job_does_not_use():
    host = nvml_host(paired_host(p2p={(0, 2): 1}))
    views = [View(host_id="a", device=f"0000:1{i}:00.0", host=host) for i in (0, 1)]
    assert advise(merge(views)) == []


def test_peer_access_that_the_user_has_turned_off():
    found = only(said(matrix("a6000_pairs", **environment(NCCL_P2P_DISABLE="1"))), "NCCL_P2P_DISABLE")
    assert found.remedy.startswith("unset NCCL_P2P_DISABLE")
    assert said(matrix("a6000_pairs", **environment(NCCL_P2P_DISABLE="0"))) == []


def test_a_link_below_its_rated_width():
    host = nvml_host(nvswitch_host(pcie={5: (4, 4, 4, 16), 6: (3, 4, 16, 16)}))
    narrow, slow = said(host)
    assert narrow.subject == "PCIe link of gpu5 (NVIDIA A100-SXM4-80GB)"
    assert narrow.problem == "carries 6 GB/s of its rated 24"
    assert "lspci -vv -s 0000:15:00.0" in narrow.remedy
    assert slow.problem == "carries 12 GB/s of its rated 24"


def test_slices():
    found = only(said(matrix("mig")), "MIG")
    assert found.subject == "MIG: gpu2 (2 slices), gpu3 (2 slices)"
    assert found.severity == "error"
    assert "CUDA_VISIBLE_DEVICES=MIG-" in found.remedy
    alone = merge([View(host_id="a", device="0000:10:00.0", host=nvml_host(FakeNvml([bus(0)], slices={0: 7})))])
    assert only(advise(alone), "MIG: gpu0 (7 slices)").severity == "hint"


def test_two_ranks_on_one_gpu():
    host = nvml_host(paired_host(2))
    shared = RankPlacement(host=0, device="gpu0")
    found = only(said(host, places=(shared, shared, RankPlacement(host=0, device="gpu1"))), "gpu0")
    assert found.severity == "error"
    assert found.problem.startswith("2 ranks share this GPU")


def test_a_host_that_could_not_be_read():
    views = [View(host_id="a", device=f"0000:1{i}:00.0", host=None, problem="NVML: no driver") for i in (0, 1)]
    found = only(advise(merge(views)), "rank 0, rank 1")
    assert "(NVML: no driver)" in found.problem
    assert found.severity == "hint"
    wrong = only(said(matrix("two_cards", topo_file="t.xml names none of this host's GPUs")), "NCCL_TOPO_FILE")
    assert wrong.problem.startswith("t.xml names none")


# -- several hosts -----------------------------------------------------------------------------------------------------


def places(order: str) -> tuple[RankPlacement, ...]:
    return tuple(RankPlacement(host=int(h), device=f"gpu{order[:i].count(h)}") for i, h in enumerate(order))


@pytest.mark.parametrize(
    "order, crossings",
    [("0011", None), ("1100", None), ("0110", None), ("0101", 4), ("001221", 4), ("012012", 6), ("0", None)],
)
def test_order_of_ranks(order, crossings):
    hosts = tuple(replace(matrix("two_cards"), name=n) for n in "abc"[: int(max(order)) + 1])
    found = [entry for entry in said(*hosts, places=places(order)) if entry.subject == "order of ranks"]
    assert bool(found) == (crossings is not None)
    if crossings is not None:
        assert f"crosses hosts {crossings} times where {len(set(order))} suffice" in found[0].problem


def test_a_card_on_the_wrong_socket():
    hosts = twice(matrix("rtx4090x8"))
    found = only(said(*hosts), "network cards")
    assert found.subject == "every host: network cards NIC0, NIC1"
    assert "gpu0, gpu1, gpu2, gpu3" in found.problem
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in found.remedy
    assert not [entry for entry in said(hosts[0]) if "network cards" in entry.subject]  # one host needs no card


def test_cards_that_stay_idle():
    host = matrix("dgx_a100", **environment(NCCL_IB_HCA="=mlx5_0,mlx5_1"))
    found = only(said(*twice(host)), "NCCL_IB_HCA")
    assert found.subject == "every host: NCCL_IB_HCA==mlx5_0,mlx5_1"
    assert "10 of 12 network cards" in found.problem
    all_but = matrix("dgx_a100", **environment(NCCL_IB_HCA="^mlx5_4"))
    assert "1 of 12" in only(said(*twice(all_but)), "NCCL_IB_HCA").problem
    beginnings = matrix("dgx_a100", **environment(NCCL_IB_HCA="mlx5"))
    assert not [entry for entry in said(*twice(beginnings)) if "NCCL_IB_HCA" in entry.subject]


def test_infiniband_that_is_turned_off():
    found = only(said(*twice(matrix("dgx_a100", **environment(NCCL_IB_DISABLE="1")))), "NCCL_IB_DISABLE")
    assert found.remedy == "unset NCCL_IB_DISABLE"


def test_gpudirect():
    assert "modprobe nvidia-peermem" in only(said(*twice(matrix("dgx_a100", peermem=False))), "GPUDirect").remedy
    assert only(said(*twice(matrix("dgx_a100", gpudirect=False, peermem=True))), "GPUDirect")
    assert not [a for a in said(*twice(matrix("dgx_a100", gpudirect=True, peermem=False))) if "GPUDirect" in a.subject]


def test_a_network_much_slower_than_the_gpus():
    host = nvml_host(nvswitch_host())
    views = [
        View(host_id=at, device=d.bus_id, host=host, host_name=at) for at in "ab" for d in host.devices if d.bus_id
    ]
    (found,) = advise(merge(views))
    assert found.subject == "every host: network"
    assert found.problem.startswith("it carries 0.12 GB/s (assumed) per host, and the links between its GPUs 240")
    assert found.severity == "hint"


def test_the_worst_comes_first_in_the_same_order():
    host = matrix("mig", **environment(NCCL_P2P_DISABLE="1"), unread={"rank 1": "why"})
    found = said(host)
    assert [entry.severity for entry in found] == ["error", "warning", "hint"]
    assert found == said(host)


def test_hosts_that_are_alike_are_spoken_of_once():
    hosts = tuple(replace(matrix("two_cards"), name=f"n{i}") for i in range(6))
    bad = tuple(replace(h, facts={**h.facts, **environment(NCCL_P2P_DISABLE="1")}) for h in hosts)
    assert only(said(*bad), "NCCL_P2P_DISABLE").subject == "every host: NCCL_P2P_DISABLE"
    assert only(said(*hosts[:1], *bad[1:]), "NCCL_P2P_DISABLE").subject == "n1, n2, n3 and 2 more: NCCL_P2P_DISABLE"
