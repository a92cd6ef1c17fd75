"""Reads the machines of a job from the user's file, or from NVML, NCCL's XML, sysfs, nvidia-smi and hostnames.

A later source only adds what the earlier ones do not contain; NCCL's XML also says where the GPUs are.
"""

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit.errors import TopologyError
from trainkit.json_text import read_bounded
from trainkit.topology.discover import build, nccl_xml, nvml, smi, sysfs, texts
from trainkit.topology.discover.merge import CPU, View, bare_host, cpu_host, merge
from trainkit.topology.discover.nccl_xml import parse_nccl_xml
from trainkit.topology.discover.nvml import read_nvml
from trainkit.topology.discover.parts import Parts
from trainkit.topology.discover.smi import parse_topo_matrix
from trainkit.topology.discover.sources import Sources
from trainkit.topology.discover.sysfs import read_sysfs
from trainkit.topology.topology import Host, Nic, Topology

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from trainkit.distributed.cluster import Cluster

__all__ = [
    "Sources",
    "View",
    "discover",
    "discover_host",
    "host_id",
    "look",
    "merge",
    "parse_nccl_xml",
    "parse_topo_matrix",
    "read_nvml",
    "read_sysfs",
]


def discover(
    device: "torch.device",
    cluster: "Cluster",
    *,
    group: "dist.ProcessGroup | None" = None,
    path: str | Path | None = None,
) -> Topology:
    """Reads the topology of the job. Collective: every rank must call.

    Args:
        device: of this process.
        cluster: the processes of the job.
        group: of all processes; None: this is the only one.
        path: a file that `texts.read_files` reads, which is used in place of all other sources.

    Returns:
        The topology, the same on all ranks.

    Raises:
        TopologyError: on all ranks, where a file cannot be used.
    """
    view = look(device, cluster)
    if group is None:
        return _decided([view], path)
    import torch.distributed as dist

    views: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(views, view, group=group)
    answer: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            answer = [_decided(views, path).to_dict()]
        except Exception as error:  # the others wait for an answer
            answer = [str(error)]
    dist.broadcast_object_list(answer, group=group, group_src=0)
    if isinstance(answer[0], str):
        raise TopologyError(answer[0])
    return Topology.from_dict(answer[0])


def discover_host(
    device_kind: Literal["cuda", "cpu"],
    num_ranks: int,
    *,
    sources: Sources | None = None,
) -> Host:
    """Reads this host.

    Args:
        device_kind: `cuda`: the devices are the GPUs that CUDA_VISIBLE_DEVICES leaves; `cpu`: one for each rank.
        num_ranks: on this host. With `cuda` it is only used as the number of GPUs where none can be read.
        sources: in place of those of this machine.
    """
    sources = sources or Sources()
    if device_kind == "cpu":
        return _cpu_host(num_ranks, sources)
    parts, problem = read_gpus(sources)
    if parts is None:
        bare = bare_host(_host_name(sources), [None] * num_ranks)
        return replace(bare, facts={**bare.facts, "unread": {"this host": problem}})
    visible = nvml.visible(sources.environment, sources.nvml)
    if visible is not None:
        parts = parts.only(d.id for d in parts.devices if d.bus_id in visible) if visible else parts
    return build.host_of(parts, _host_name(sources))


def look(device: "torch.device", cluster: "Cluster", sources: Sources | None = None) -> View:
    """Reads the host of this rank, with all its GPUs, also those that the rank does not use.

    Args:
        device: of this process.
        cluster: the processes of the job.
        sources: in place of those of this machine.

    Returns:
        The view, with a problem in place of an exception.
    """
    sources = sources or Sources()
    view = View(host_id=host_id(sources), device=CPU, host=None, host_name=_host_name(sources))
    if device.type != "cuda":
        return replace(view, host=_cpu_host(cluster.local_world_size, sources))
    view = replace(view, device=_bus_id_of(device))
    try:
        parts, problem = read_gpus(sources)
    except Exception as error:  # an error on one rank must not end the job
        return replace(view, problem=f"{type(error).__name__}: {error}")
    host = None if parts is None else build.host_of(parts, view.host_name)
    return replace(view, host=host, problem=problem)


def host_id(sources: Sources | None = None) -> str:
    """A text that identifies this host: $NCCL_HOSTID, otherwise the hostname and boot id.

    Containers with different hostnames are different hosts, as they are to NCCL.
    """
    sources = sources or Sources()
    given = sources.environment.get("NCCL_HOSTID")
    if given:
        return given
    try:
        boot = (sources.proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}".strip()


def read_gpus(sources: Sources) -> tuple[Parts | None, str]:
    """Reads the GPUs and network cards of this host from all sources.

    NCCL's XML is a supplement, as it is to NCCL: it says where parts are on PCI, and adds network cards; GPUs and their
    NVLinks are those of the driver.

    Args:
        sources: to read.

    Returns:
        The parts and an empty text, or None and the reason why there is no GPU. `topo_file` in their facts is the
        reason why $NCCL_TOPO_FILE is not used.
    """
    settings = sources.settings
    parts, problem = nvml.read(sources.nvml)
    below = sysfs.read(sources.root, sources.proc)
    if parts is None and not below.devices:
        text = sources.smi_text if sources.smi_text is not None else smi.run()
        parts = None if text is None else smi.parts_of(text)
    whole = parts or below
    facts: dict[str, Any] = {"environment": settings} if settings else {}
    if given := settings.get("NCCL_TOPO_FILE"):
        try:
            known = whole if whole is below else whole.filled_by(below)
            whole = _supplemented(whole, _read_xml(Path(given).expanduser(), known), given)
        except TopologyError as error:
            facts["topo_file"] = str(error)
    if whole is not below:
        whole = whole.filled_by(below)
    if not whole.devices:
        return None, problem
    return replace(whole, facts={**whole.facts, **facts}), problem


def _supplemented(whole: Parts, xml: Parts, name: str) -> Parts:
    if not whole.devices:
        return xml.filled_by(whole)
    here, there = ({device.bus_id for device in parts.devices} - {None} for parts in (whole, xml))
    if here and there and not here & there:
        raise TopologyError(f"{name} contains none of this host's GPUs: it describes another machine")
    return whole.placed_by(xml)


def _decided(views: Sequence[View], path: str | Path | None) -> Topology:
    if path is None:
        return merge(views)
    topology = texts.read_files([path])
    if topology.world_size != len(views):
        raise TopologyError(
            f"{path}: it has places for {topology.world_size} ranks, and this job has {len(views)}: "
            f"give `places` one entry for each rank, or start {topology.world_size} processes"
        )
    return topology


def _cpu_host(num_ranks: int, sources: Sources) -> Host:
    interface = sysfs.socket_interface(sources.environment, sources.proc)
    nic, gbit = None, None
    if interface is not None and interface != "lo":
        bus, numa = sysfs.interface_place(interface, sources.root)
        nic = Nic(id="nic0", name=interface, bus_id=bus, numa=numa)
        gbit = sysfs.interface_gbit(interface, sources.root)
    host = cpu_host(_host_name(sources), num_ranks, nic, gbit)
    settings = sources.settings
    facts = {"sources": ["sysfs"], **host.facts, **({"environment": settings} if settings else {})}
    hypervisor = sysfs.read_hypervisor(sources.root, sources.proc)
    return replace(host, facts=facts if hypervisor is None else {**facts, "hypervisor": hypervisor})


def _read_xml(path: Path, of: Parts) -> Parts:
    try:
        text = read_bounded(path).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TopologyError(f"{path} cannot be read: {reason}") from error
    return nccl_xml.parts_of(text, str(path), of=of)


def _host_name(sources: Sources) -> str:
    return sources.environment.get("NCCL_HOSTID") or socket.gethostname()


def _bus_id_of(device: "torch.device") -> str:
    import torch

    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
