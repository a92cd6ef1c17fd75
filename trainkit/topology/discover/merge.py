"""Merges the views of all ranks into the Topology of the job. Pure: the same on every rank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from trainkit.errors import TopologyError
from trainkit.topology.discover import nominal
from trainkit.topology.discover.build import link, nic_link
from trainkit.topology.topology import GPU_LINKS, NETWORK, Device, Host, Link, Nic, RankPlacement, Topology

CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class View:
    """The host as one rank sees it.

    Args:
        host_id: the same for all ranks of a host, and different for other hosts.
        device: the PCI bus id of this rank's GPU; `cpu` for a rank on the CPU.
        host: all that this rank can read of its host; None where it can read nothing.
        host_name: of the host.
        problem: the reason where `host` is None.
        error: of a file that the user named and that cannot be used: then no topology is built.
    """

    host_id: str
    device: str
    host: Host | None
    host_name: str = ""
    problem: str = ""
    error: str = ""


def merge(views: Sequence[View]) -> Topology:
    """Merges the views of all ranks.

    Of several descriptions of a host, the one with the highest `richness` is used; GPUs that it lacks are added from
    the others, and GPUs that no rank uses are removed. `facts["unread"]` of a host names ranks that could read nothing.

    Args:
        views: in the order of the ranks.

    Returns:
        The topology of the job.

    Raises:
        TopologyError: for the error of a view.
    """
    for rank, view in enumerate(views):
        if view.error:
            raise TopologyError(f"rank {rank} on {view.host_name or view.host_id}: {view.error}")
    by_host: dict[str, list[int]] = {}
    for rank, view in enumerate(views):
        by_host.setdefault(view.host_id, []).append(rank)
    hosts: list[Host] = []
    places: dict[int, RankPlacement] = {}
    for number, ranks in enumerate(by_host.values()):
        seen = [views[rank] for rank in ranks]
        host, devices = _merged(seen)
        unread = {f"rank {rank}": views[rank].problem for rank in ranks if views[rank].host is None}
        if unread:
            host = replace(host, facts={**host.facts, "unread": unread})
        hosts.append(host)
        places |= {rank: RankPlacement(host=number, device=device) for rank, device in zip(ranks, devices, strict=True)}
    if len(hosts) > 1:
        hosts = [host if host.nics else _with_unknown_nic(host) for host in hosts]
    source = "+".join(dict.fromkeys(name for host in hosts for name in host.facts.get("sources", ["hostnames"])))
    in_order = tuple(places[rank] for rank in range(len(views)))
    return Topology(hosts=tuple(_named_apart(hosts)), places=in_order, source=source)


def richness(host: Host) -> tuple[int, ...]:
    """A key to compare descriptions of a host; the one with more information has the larger key.

    It counts devices, then NVLinks, network cards, links, known properties of devices, and facts.
    """
    known = sum(value not in (None, "") for device in host.devices for value in vars(device).values())
    nvlinks = sum(way.kind in GPU_LINKS for way in host.links)
    return len(host.devices), nvlinks, len(host.nics), len(host.links), known, len(host.facts)


def bare_host(name: str, bus_ids: Sequence[str | None]) -> Host:
    """A host with GPUs of these bus ids on one socket, of which nothing else is known."""
    devices = tuple(Device(id=f"gpu{i}", bus_id=bus) for i, bus in enumerate(bus_ids))
    ways = tuple(link(d.id, "socket0", "pcie", nominal.pcie_gb_per_s(3)) for d in devices)
    return Host(name=name, devices=devices, switches=("socket0",), links=ways, facts={"sources": ["hostnames"]})


def cpu_host(name: str, num_ranks: int, nic: Nic | None, gbit_per_s: float | None) -> Host:
    """A host whose ranks run on the CPU and communicate through its memory."""
    nics: tuple[Nic, ...] = () if nic is None else (nic,)
    ways = [way for n in nics for way in (_to_memory(n), nic_link(n.id, n.kind, gbit_per_s, by_sockets=True))]
    host = Host(
        name=name,
        devices=(Device(id="cpu0", kind="cpu"),),
        nics=nics,
        switches=("memory",),
        links=tuple(ways),
        facts={"nic_speed": "unknown"} if nic is not None and gbit_per_s is None else {},
    )
    return _of_size(host, num_ranks)


def _to_memory(nic: Nic) -> Link:
    return link("memory", nic.id, "pcie", nominal.pcie_gb_per_s(3))


def _merged(views: Sequence[View]) -> tuple[Host, list[str]]:
    """One host, and the device of each of its ranks."""
    known = [view.host for view in views if view.host is not None]
    name = next((view.host_name for view in views if view.host_name), views[0].host_id)
    if all(view.device == CPU for view in views):
        best = _richest(known) if known else cpu_host(name, len(views), None, None)
        return replace(_of_size(best, len(views)), name=name), [f"cpu{i}" for i in range(len(views))]
    buses = list(dict.fromkeys(view.device for view in views))
    host = _richest(known) if known else bare_host(name, buses)
    for bus in buses:
        if _by_bus(host, bus) is None:
            host = _with_device(host, bus, known)
    ids = {bus: device.id for bus in buses if (device := _by_bus(host, bus)) is not None}
    return replace(_used(host, ids.values()), name=name), [ids[view.device] for view in views]


def _richest(hosts: Iterable[Host]) -> Host:
    # Ties are broken by content, so that all ranks choose the same.
    return max(hosts, key=lambda host: (richness(host), repr(host)))


def _by_bus(host: Host, bus: str) -> Device | None:
    return next((device for device in host.devices if device.bus_id == bus), None)


def _with_device(host: Host, bus: str, others: Sequence[Host]) -> Host:
    """The host with one more GPU, on the socket of its NUMA node, otherwise on the first."""
    seen = [device for other in others if (device := _by_bus(other, bus)) is not None]
    taken = {device.id for device in host.devices}
    free = next(f"gpu{i}" for i in count() if f"gpu{i}" not in taken)
    device = replace(max(seen, key=repr) if seen else Device(id=""), id=free, bus_id=bus)
    neighbours = [d.id for d in host.devices if d.numa == device.numa and d.numa is not None]
    sockets = [name for name in host.switches if name.startswith("socket")]
    near = next((s for s in sockets if host.below(s) & set(neighbours)), sockets[0] if sockets else "socket0")
    way = link(free, near, "pcie", nominal.slot_gb_per_s(device))
    switches = host.switches if near in host.switches else (*host.switches, near)
    return replace(host, devices=(*host.devices, device), switches=switches, links=(*host.links, way))


def _used(host: Host, devices: Iterable[str]) -> Host:
    """The host with only the GPUs in `devices`, and without switches that are then unused."""
    kept = set(devices) | {nic.id for nic in host.nics} | set(host.switches) | {NETWORK}
    links = [way for way in host.links if {way.a, way.b} <= kept]
    while True:
        ends = [end for way in links for end in (way.a, way.b)]
        idle = {name for name in host.switches if name in kept and ends.count(name) < 2}
        if not idle:
            break
        kept -= idle
        links = [way for way in links if {way.a, way.b} <= kept]
    return replace(
        host,
        devices=tuple(device for device in host.devices if device.id in kept),
        switches=tuple(name for name in host.switches if name in kept),
        links=tuple(links),
    )


def _of_size(host: Host, num_ranks: int) -> Host:
    """A host without GPUs, with a device for each of its ranks."""
    devices = tuple(Device(id=f"cpu{i}", kind="cpu") for i in range(num_ranks))
    ways = tuple(link(d.id, "memory", "loopback", nominal.LOOPBACK_GB_PER_S) for d in devices)
    others = tuple(way for way in host.links if way.kind != "loopback")
    return replace(host, devices=devices, links=(*ways, *others))


def _with_unknown_nic(host: Host) -> Host:
    """Adds a network card: there must be one, because there are other hosts."""
    nic = Nic(id="nic0")
    by_sockets = host.devices[0].kind == "cpu"
    near = "memory" if by_sockets else next((s for s in host.switches if s.startswith("socket")), host.devices[0].id)
    ways = (
        link(near, nic.id, "pcie", nominal.pcie_gb_per_s(3)),
        nic_link(nic.id, nic.kind, None, by_sockets=by_sockets),
    )
    return replace(host, nics=(nic,), links=(*host.links, *ways), facts={**host.facts, "nic_speed": "unknown"})


def _named_apart(hosts: Sequence[Host]) -> list[Host]:
    """Makes names unique: containers on different hosts can have the same name."""
    names = [host.name for host in hosts]
    return [
        replace(host, name=f"{host.name}-{names[:i].count(host.name)}") if names.count(host.name) > 1 else host
        for i, host in enumerate(hosts)
    ]
