"""Advice: properties of a topology that slow a job down, and the remedy for each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainkit.topology.cards import card_of
from trainkit.topology.topology import GPU_LINKS, NETWORK, Device, Host, Link, Nic, Topology

Severity = Literal["error", "warning", "hint"]
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")
_NARROW = 0.6
"""Fewer lanes or an older generation halve a link's bandwidth; protocols take up to a third of the rated one."""
_MUCH_SLOWER = 4.0
"""The ratio of the bandwidth within a host to that of its network above which a hint is given."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One problem of a topology.

    Args:
        severity: `error`: the job will fail or hang; `warning`: it is slower than the machine allows; `hint`: it could
            be faster.
        subject: the host, device or link.
        problem: what is wrong, and its cost.
        remedy: what to type or change.
    """

    severity: Severity
    subject: str
    problem: str
    remedy: str


def advise(topology: Topology) -> list[Advice]:
    """Finds the problems of a topology. Pure.

    Args:
        topology: of the job.

    Returns:
        The most severe first; one for hosts that have the same problem.
    """
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for advice in _of_job(topology):
        found.setdefault((advice.severity, advice.subject, advice.problem, advice.remedy), [])
    for number, host in enumerate(topology.hosts):
        mine = {place.device for place in topology.places if place.host == number}
        several = len(topology.hosts) > 1
        for advice in _of_host(host, mine, several):
            key = (advice.severity, advice.subject, advice.problem, advice.remedy)
            found.setdefault(key, []).append(host.name)
    every = [
        Advice(severity=severity, subject=_subject(subject, hosts, topology), problem=problem, remedy=remedy)  # type: ignore[arg-type]
        for (severity, subject, problem, remedy), hosts in found.items()
    ]
    return sorted(every, key=lambda advice: _SEVERITIES.index(advice.severity))


def _subject(subject: str, hosts: Sequence[str], topology: Topology) -> str:
    if not hosts or len(topology.hosts) == 1:
        return subject
    where = "every host" if len(hosts) == len(topology.hosts) else ", ".join(hosts[:3])
    where += f" and {len(hosts) - 3} more" if where != "every host" and len(hosts) > 3 else ""
    return f"{where}: {subject}"


# -- the job ---------------------------------------------------------------------------------------------------------


def _of_job(topology: Topology) -> Iterator[Advice]:
    of_hosts = [place.host for place in topology.places]
    crossings = sum(a != b for a, b in zip(of_hosts, [*of_hosts[1:], of_hosts[0]], strict=True))
    num_hosts = len(set(of_hosts))
    if num_hosts > 1 and crossings > num_hosts:
        yield Advice(
            severity="warning",
            subject="order of ranks",
            problem=f"a ring over the ranks in their order crosses hosts {crossings} times where {num_hosts} suffice, "
            f"and the crossings share the network",
            remedy="number the ranks host after host, as torchrun, mpirun --map-by slot and srun --distribution=block "
            "do; or set comm=auto, which orders the ring itself",
        )
    taken = Counter((place.host, place.device) for place in topology.places)
    for (host, device), ranks in taken.items():
        if ranks > 1 and topology.hosts[host].devices[0].kind == "cuda":
            yield Advice(
                severity="error",
                subject=f"{topology.hosts[host].name}: {device}",
                problem=f"{ranks} ranks share this GPU, which NCCL does not support, for MIG slices of one GPU neither",
                remedy="start one process for each GPU: --nproc-per-node at most the number of GPUs. For MIG slices "
                "start independent runs with strategy=single",
            )


# -- a host ------------------------------------------------------------------------------------------------------------


def _of_host(host: Host, mine: set[str], several: bool) -> Iterator[Advice]:
    gpus = [device for device in host.devices if device.kind == "cuda" and device.id in mine]
    yield from _unread(host)
    if gpus:
        yield from _unknown_models(host, gpus)
        yield from _amd(host)
        yield from _flat_guest(host, gpus)
        yield from _peer_access(host, gpus)
        yield from _narrow_links(host)
        yield from _slices(host, gpus)
    if several:
        if gpus:
            yield from _far_nics(host, gpus)
            yield from _gpudirect(host)
        yield from _idle_nics(host)
        yield from _slow_way_out(host, mine)


def _unread(host: Host) -> Iterator[Advice]:
    unread = host.facts.get("unread")
    if unread:
        reasons = "; ".join(dict.fromkeys(unread.values()))
        yield Advice(
            severity="hint",
            subject=", ".join(unread),
            problem=f"could not read the links ({reasons}); those of other ranks or nominal figures are used",
            remedy="pip install nvidia-ml-py, and give the container the driver's libraries: "
            "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility. Or measure: trainkit topo probe",
        )
    if "topo_file" in host.facts:
        yield Advice(
            severity="warning",
            subject="NCCL_TOPO_FILE",
            problem=f"{host.facts['topo_file']}: it describes another machine, so NCCL plans for wrong links",
            remedy="unset NCCL_TOPO_FILE, or set it to the file of this machine type",
        )


def _unknown_models(host: Host, gpus: Sequence[Device]) -> Iterator[Advice]:
    """GPUs that are not in the table of cards, and the figures that were assumed for them."""
    assumed: dict[str, str] = host.facts.get("assumed", {})
    by_model: dict[tuple[str, str], list[str]] = {}
    for gpu in gpus:
        named = gpu.name or (f"PCI id {gpu.pci_id}" if gpu.pci_id else "")
        if gpu.id in assumed or (named and card_of(gpu) is None):
            by_model.setdefault((named, assumed.get(gpu.id, "")), []).append(gpu.id)
    for (named, figures), ids in by_model.items():
        model = f"{named} is not in the table of GPUs" if named else "the model is unknown"
        used = f"{figures} is assumed" if figures else "its links are as read, or those of its compute capability"
        yield Advice(
            severity="hint",
            subject=", ".join(ids),
            problem=f"{model}: {used}",
            remedy="trainkit topo probe measures its links; --tflops gives its speed to predictions",
        )


def _amd(host: Host) -> Iterator[Advice]:
    if any(link.kind == "xgmi" for link in host.links):
        yield Advice(
            severity="hint",
            subject="Infinity Fabric",
            problem="the links are nominal, RCCL's algorithms are taken to be NCCL's, and no prediction for such a "
            "machine was compared with a measurement",
            remedy="trainkit topo probe measures the links, trainkit topo bench the bus bandwidth",
        )


def _flat_guest(host: Host, gpus: Sequence[Device]) -> Iterator[Advice]:
    """A virtual machine that hides its PCIe switches."""
    guest_of = host.facts.get("hypervisor")
    tree = any(link.kind == "pcie" and link.a.startswith("pcie") for link in host.links)
    joined = any(link.kind in GPU_LINKS for link in host.links)
    if not guest_of or tree or len(gpus) < 2 or "nccl xml" in host.facts.get("sources", ()):
        return
    if joined and not host.nics:
        return  # NVLinks are visible, and PCIe is not used
    yield Advice(
        severity="warning",
        subject=f"PCI tree of a guest of {guest_of}",
        problem="it is flat: it hides which GPUs and network cards share a PCIe switch, and NCCL pairs the wrong "
        "ones (on an AWS g5.48xlarge this cost 6 of 16 hours: NVIDIA/nccl issue 1298)",
        remedy=_TOPO_FILES.get(guest_of, "NCCL_TOPO_FILE=<the provider's XML of this machine type>"),
    )


_TOPO_FILES = {
    "Amazon EC2": "install aws-ofi-nccl, which brings the files: NCCL_TOPO_FILE=/opt/amazon/ofi-nccl/share/"
    "aws-ofi-nccl/xml/<instance type>-topo.xml",
    "Hyper-V": "NCCL_TOPO_FILE=/opt/microsoft/<machine type>-topo.xml (from Azure/azhpc-images, in Azure's HPC images)",
    "Google Cloud": "use the NCCL plugin of the machine type, which sets NCCL_TOPO_FILE (GPUDirect-TCPX or -RDMA)",
}


def _peer_access(host: Host, gpus: Sequence[Device]) -> Iterator[Advice]:
    environment = host.facts.get("environment", {})
    if environment.get("NCCL_P2P_DISABLE", "0") not in ("", "0"):
        yield Advice(
            severity="warning",
            subject="NCCL_P2P_DISABLE",
            problem="it is set: GPUs copy through host memory, not directly and not over NVLink",
            remedy="unset NCCL_P2P_DISABLE; if the job then hangs, look for access control on PCIe bridges: "
            "sudo lspci -vvv | grep ACSCtl",
        )
    known = {device.id for device in gpus}
    off = {ends: why for ends, why in host.facts.get("p2p_off", {}).items() if set(ends.split()) <= known}
    if not off:
        return
    models = [card_of(gpu) for gpu in gpus]
    consumer = any(card is not None and card.peer_access == "off" for card in models)
    consumer = consumer or any({"GeForce", "TITAN"} & set(gpu.name.split()) for gpu in gpus)
    reason = ", ".join(sorted(set(off.values())))
    pairs = len(known) * (len(known) - 1) // 2
    if consumer and "GPU not supported" in reason:
        remedy = "none: the driver of these cards has no peer access. Use fewer, larger messages: "
        remedy += "larger batches, or comm=auto"
    elif host.facts.get("hypervisor"):
        remedy = "ask the provider for peer access (the hypervisor sets it), or use a machine type with NVLink"
    elif host.facts.get("iommu"):
        remedy = "turn the IOMMU off (BIOS: VT-d or AMD IOMMU; or iommu=pt on the kernel's command line) and access "
        remedy += "control on PCIe bridges (sudo setpci -s <bridge> ECAP_ACS+0x6.w=0000)"
    else:
        remedy = (
            "nvidia-smi topo -p2p r prints the reason; put the cards under one root complex where the board allows it"
        )
    yield Advice(
        severity="warning",
        subject="peer access between GPUs",
        problem=f"off for {len(off)} of {pairs} pairs ({reason}): their messages are copied through host memory, twice",
        remedy=remedy,
    )


def _narrow_links(host: Host) -> Iterator[Advice]:
    parts: dict[str, Device | Nic] = {device.id: device for device in host.devices}
    parts |= {nic.id: nic for nic in host.nics}
    for link in host.links:
        rated = link.rated_gb_per_s
        if link.kind != "pcie" or link.source != "nominal" or rated is None or link.a not in parts:
            continue
        if link.bandwidth_gb_per_s < _NARROW * rated:
            part = parts[link.a]
            address = f" -s {part.bus_id}" if part.bus_id else ""
            yield Advice(
                severity="warning",
                subject=f"PCIe link of {link.a}{f' ({part.name})' if part.name else ''}",
                problem=f"carries {link.bandwidth_gb_per_s:g} GB/s of its rated {rated:g}",
                remedy=f"compare LnkSta with LnkCap: sudo lspci -vv{address}. Reseat the card, use the slot with "
                f"the most lanes, set the highest PCIe generation in the BIOS, replace a riser cable",
            )


def _slices(host: Host, gpus: Sequence[Device]) -> Iterator[Advice]:
    cut = {gpu.id: host.facts.get("mig", {}).get(gpu.id) for gpu in gpus}
    named = ", ".join(f"{name} ({n} slices)" for name, n in cut.items() if n is not None)
    if named:
        yield Advice(
            severity="error" if len(gpus) > 1 else "hint",
            subject=f"MIG: {named}",
            problem="a process sees one slice, slices have no NVLink, and NCCL does not connect them",
            remedy="start an independent run on each slice (strategy=single, CUDA_VISIBLE_DEVICES=MIG-<uuid>); "
            "or disable MIG: sudo nvidia-smi -i <GPU> -mig 0",
        )


# -- the network -----------------------------------------------------------------------------------------------------


def _far_nics(host: Host, gpus: Sequence[Device]) -> Iterator[Advice]:
    """GPUs with no network card on their socket, where there is more than one socket."""
    if any(not nic.name and not nic.bus_id for nic in host.nics):
        return  # an assumed network card: where it is, is unknown
    sockets = [name for name in host.switches if name.startswith("socket")]
    below = {name: host.below(name) for name in sockets}
    at = {part: name for name in sockets for part in below[name]}
    with_cards = {at[nic.id] for nic in _used_nics(host) if nic.id in at}
    far = [gpu.id for gpu in gpus if gpu.id in at and at[gpu.id] not in with_cards]
    if with_cards and far:
        cards = ", ".join(nic.name or nic.id for nic in _used_nics(host))
        yield Advice(
            severity="warning",
            subject=f"network cards {cards}",
            problem=f"on another socket than {', '.join(far)}: their messages cross the link between sockets first",
            remedy="put a card into a slot of each socket (nvidia-smi topo -m shows SYS between a GPU and a far card), "
            "or use only the near GPUs: CUDA_VISIBLE_DEVICES="
            + ",".join(gpu.id.removeprefix("gpu") for gpu in gpus if gpu.id not in far),
        )


def _gpudirect(host: Host) -> Iterator[Advice]:
    infiniband = [nic for nic in host.nics if nic.kind == "infiniband"]
    facts = host.facts
    off = facts.get("gpudirect") is False or ("gpudirect" not in facts and facts.get("peermem") is False)
    if infiniband and off:
        yield Advice(
            severity="warning",
            subject="GPUDirect RDMA",
            problem="not available: messages to other hosts are copied through host memory",
            remedy="sudo modprobe nvidia-peermem, and load it at each boot: echo nvidia-peermem | sudo tee "
            "/etc/modules-load.d/nvidia-peermem.conf. The open kernel module on Linux 5.12 or later does not need it",
        )


def _idle_nics(host: Host) -> Iterator[Advice]:
    used = {nic.id for nic in _used_nics(host)}
    idle = [nic for nic in host.nics if nic.id not in used]
    fast = max((_wire(host, nic).bandwidth_gb_per_s for nic in host.nics if nic.id in used), default=0.0)
    worth = [nic for nic in idle if _wire(host, nic).bandwidth_gb_per_s >= fast]
    if used and worth:
        setting = "NCCL_IB_HCA" if "NCCL_IB_HCA" in host.facts.get("environment", {}) else "NCCL_SOCKET_IFNAME"
        everything = ",".join(nic.name for nic in host.nics if nic.name)
        yield Advice(
            severity="warning",
            subject=f"{setting}={host.facts['environment'][setting]}",
            problem=f"{len(worth)} of {len(host.nics)} network cards are idle although they are as fast: "
            f"{', '.join(nic.name or nic.id for nic in worth)}",
            remedy=f"unset {setting}, or {setting}={everything}",
        )
    if host.facts.get("environment", {}).get("NCCL_IB_DISABLE", "0") not in ("", "0") and any(
        nic.kind == "infiniband" for nic in host.nics
    ):
        yield Advice(
            severity="warning",
            subject="NCCL_IB_DISABLE",
            problem="it is set, and there are InfiniBand or RoCE cards: NCCL uses sockets over Ethernet instead",
            remedy="unset NCCL_IB_DISABLE",
        )


def _slow_way_out(host: Host, mine: set[str]) -> Iterator[Advice]:
    """A network that is much slower than the links within the host, both as a ring over hosts uses them."""
    used = _used_nics(host)
    out = sum(_wire(host, nic).bandwidth_gb_per_s for nic in used)
    inside = [link.bandwidth_gb_per_s for link in host.links if link.a in mine and link.kind in GPU_LINKS]
    inside = inside or [link.bandwidth_gb_per_s for link in host.links if link.a in mine and link.kind == "pcie"]
    if used and inside and min(inside) > _MUCH_SLOWER * out:
        unknown = " (assumed)" if host.facts.get("nic_speed") == "unknown" else ""
        yield Advice(
            severity="hint",
            subject="network",
            problem=f"it carries {out:g} GB/s{unknown} per host, and the links between its GPUs {min(inside):g}: "
            f"the all-reduce between hosts limits the speed",
            remedy="compress gradients between hosts: comm.wire_dtype=bf16 or int8; or use larger batches; `trainkit "
            "topo simulate` predicts the effect of faster cards",
        )


def _used_nics(host: Host) -> list[Nic]:
    """The network cards that NCCL uses under its settings.

    `NCCL_IB_HCA=mlx5_0:1,mlx5_1` lists prefixes of names; a leading ^ excludes them, a leading = means full names.
    """
    environment: dict[str, Any] = host.facts.get("environment", {})
    infiniband = [nic for nic in host.nics if nic.kind == "infiniband"]
    setting, cards = ("NCCL_IB_HCA", infiniband) if infiniband else ("NCCL_SOCKET_IFNAME", list(host.nics))
    text = environment.get(setting, "")
    inverted, text = text.startswith("^"), text.removeprefix("^")
    whole, text = text.startswith("="), text.removeprefix("=")
    names = [entry.split(":")[0] for entry in text.split(",") if entry]
    if not names:
        return cards

    def listed(nic: Nic) -> bool:
        own = nic.name.split(":")[0]
        return any(own == name if whole else own.startswith(name) for name in names)

    return [nic for nic in cards if listed(nic) != inverted]


def _wire(host: Host, nic: Nic) -> Link:
    return next(link for link in host.links if {link.a, link.b} == {nic.id, NETWORK})
