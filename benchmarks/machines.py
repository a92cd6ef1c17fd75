"""Topologies of machines of which only a few figures are published."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from trainkit.topology import NETWORK, Device, Host, Link, Nic, Topology

UPLINK = 5 / 6
"""The share of a slot's speed that a PCIe switch or host bridge passes on. Fitted to 4 x RTX PRO 6000."""
NVLINK_GB_PER_S = {"8.0": 19.5, "9.0": 20.6, "10.0": 40.1}
"""Of one NVLink into an NVSwitch, by compute capability. That of the A100 is fitted; nominal: 20."""
SLOT_GB_PER_S = {"7": 12.0, "8": 24.0, "9": 48.0, "10": 48.0, "12": 48.0}


def machine(
    *,
    num_gpus: int,
    capability: str,
    nvswitch: int = 0,
    nvls: bool = True,
    nics: Sequence[float] = (),
    nic_kind: Literal["infiniband", "ethernet"] = "infiniband",
    nvlinks: Sequence[tuple[int, int, float]] = (),
    slot_gb_per_s: float | None = None,
    gpus_per_switch: int = 1,
    sockets: int = 1,
    socket_gb_per_s: float = 20.0,
    copy_engine: bool = False,
    **facts: Any,
) -> Topology:
    """A host from a few figures.

    Args:
        num_gpus: GPUs.
        capability: their compute capability.
        nvswitch: NVLinks of each GPU into an NVSwitch; 0: there is none.
        nvls: whether the NVSwitch may add.
        nics: Gb/s of each network card; they sit evenly among the GPUs, at their PCIe switches.
        nic_kind: of the network cards.
        nvlinks: pairs of GPUs with direct NVLinks, and the GB/s of each pair.
        slot_gb_per_s: of a GPU's PCIe slot; None: by the generation of the GPU.
        gpus_per_switch: GPUs at one PCIe switch or host bridge, without network cards.
        sockets: of the host; the switches are spread over them evenly.
        socket_gb_per_s: between two sockets.
        copy_engine: NCCL_SHM_USE_CUDA_MEMCPY=1.
        **facts: of the host, such as `p2p`, `acs`, `cpu`, `hypervisor`.

    Returns:
        One host with one rank for each GPU.
    """
    slot = slot_gb_per_s or SLOT_GB_PER_S[capability.split(".")[0]]
    num_switches = max(1, min(len(nics), num_gpus)) if nics else num_gpus // gpus_per_switch
    links = []
    for i in range(num_gpus):
        links.append(_link(f"gpu{i}", f"pcie{i * num_switches // num_gpus}", "pcie", slot))
        if nvswitch:
            links.append(_link(f"gpu{i}", "nvswitch", "nvswitch", NVLINK_GB_PER_S[capability] * nvswitch))
    links += [_link(f"gpu{a}", f"gpu{b}", "nvlink", gb_per_s) for a, b, gb_per_s in nvlinks]
    for i, gbit in enumerate(nics):
        links.append(_link(f"nic{i}", f"pcie{i * num_switches // len(nics)}", "pcie", 48.0))
        links.append(_link(f"nic{i}", NETWORK, "nic", 0.12 * gbit))
    for i in range(num_switches):
        links.append(_link(f"pcie{i}", f"socket{i * sockets // num_switches}", "pcie", slot * UPLINK))
    links += [_link("socket0", f"socket{i}", "socket", socket_gb_per_s) for i in range(1, sockets)]
    if copy_engine:
        facts["environment"] = {"NCCL_SHM_USE_CUDA_MEMCPY": "1"}
    shown = capability if nvls else "8.0"  # an NVSwitch that adds needs Hopper
    host = Host(
        name="host",
        devices=tuple(Device(id=f"gpu{i}", compute_capability=shown) for i in range(num_gpus)),
        nics=tuple(Nic(id=f"nic{i}", kind=nic_kind) for i in range(len(nics))),
        switches=("nvswitch", *(f"pcie{i}" for i in range(num_switches)), *(f"socket{i}" for i in range(sockets))),
        links=tuple(links),
        facts=facts,
    )
    return Topology(hosts=(host,))


def part(topology: Topology, num_gpus: int) -> Topology:
    """The first GPUs of each host only."""
    wanted = {f"gpu{i}" for i in range(num_gpus)}
    return replace(topology, places=tuple(p for p in topology.places if p.device in wanted))


def _link(
    a: str, b: str, kind: Literal["nvlink", "nvswitch", "pcie", "socket", "loopback", "nic"], gb_per_s: float
) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=1.0)
