"""Topology: the devices and network cards of a job's hosts, their links, and where each rank runs. Pure data."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from trainkit.errors import TopologyError, nearest
from trainkit.json_text import parse_json, read_bounded

T = TypeVar("T")
LinkKind = Literal["nvlink", "nvswitch", "xgmi", "pcie", "socket", "loopback", "nic"]
GPU_LINKS: tuple[LinkKind, ...] = ("nvlink", "nvswitch", "xgmi")
"""The kinds of links that join GPUs alone: NVLink, and xgmi, the Infinity Fabric of AMD."""
NETWORK = "network"
"""The vertex that connects the network cards of all hosts."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device of one rank.

    Args:
        id: unique within its host, such as `gpu0` or `cpu0`.
        kind: `cuda` or `cpu`.
        name: of the model, such as `NVIDIA H100 80GB HBM3`.
        bus_id: of PCI, such as `0000:3b:00.0`.
        numa: its NUMA node.
        compute_capability: such as `9.0`.
        pci_id: of its model, vendor and device, such as `10de:2330`.
    """

    id: str
    kind: Literal["cuda", "cpu"] = "cuda"
    name: str = ""
    bus_id: str | None = None
    numa: int | None = None
    compute_capability: str | None = None
    pci_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A network card, or one port of a card.

    Args:
        id: unique within its host, such as `nic0`.
        name: of the operating system, such as `mlx5_0` or `eth0`.
        kind: `infiniband` (which includes RoCE) or `ethernet`.
        bus_id: of PCI.
        numa: its NUMA node.
    """

    id: str
    name: str = ""
    kind: Literal["infiniband", "ethernet"] = "ethernet"
    bus_id: str | None = None
    numa: int | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between two vertices of a host, in both directions at the same time.

    Args:
        a: the id of a device or network card, a name of `Host.switches`, or NETWORK for the cable of a network card.
        b: the same for the other end.
        kind: of the link.
        bandwidth_gb_per_s: of payload, in one direction, of all parallel lanes together; 1 GB is 1e9 bytes.
        latency_us: of one message.
        rated_gb_per_s: of the hardware, where that is known and differs.
        source: whether the figures were measured.
    """

    a: str
    b: str
    kind: LinkKind
    bandwidth_gb_per_s: float
    latency_us: float
    rated_gb_per_s: float | None = None
    source: Literal["nominal", "measured"] = "nominal"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine, or the part of it that a job sees.

    Args:
        name: of the host.
        devices: GPUs, or one for each process on the CPU.
        nics: network cards.
        switches: further vertices: PCIe switches (`pcie0`), sockets (`socket0`), NVSwitches (`nvswitch`), the memory of
            a machine without GPUs (`memory`).
        links: between the vertices.
        facts: other properties that advice needs: `hypervisor`, `driver`, `p2p` and so on. Hosts with the same
            `nvlink_domain` are joined by their NVSwitches; `nvlink_domain_hosts` is the number of hosts of a domain.
    """

    name: str
    devices: tuple[Device, ...]
    nics: tuple[Nic, ...] = ()
    switches: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    facts: Mapping[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", dict(self.facts or {}))

    def below(self, socket: str) -> set[str]:
        """The socket, and the vertices that PCIe links connect to it."""
        found, queue = {socket}, [socket]
        while queue:
            at = queue.pop()
            for link in self.links:
                other = link.b if link.a == at else link.a if link.b == at else None
                if link.kind == "pcie" and other is not None and other not in found:
                    found.add(other)
                    queue.append(other)
        return found


@dataclass(frozen=True, kw_only=True)
class RankPlacement:
    """Where a rank runs.

    Args:
        host: the index of its host in `Topology.hosts`.
        device: the id of its device there.
    """

    host: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The machines of a job.

    Args:
        hosts: the machines.
        places: where each rank runs; if empty, there is one rank for each device, host after host.
        source: from which it was read: `nvml`, `preset dgx-1`, the path of a file.

    Raises:
        TopologyError: naming the host and the link, where the arguments contradict each other.

    Example:
        >>> host = Host(name="a", devices=(Device(id="gpu0"), Device(id="gpu1")))
        >>> Topology(hosts=(host,)).ranks_by_host()
        ((0, 1),)
    """

    hosts: tuple[Host, ...]
    places: tuple[RankPlacement, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.hosts:
            raise TopologyError("a topology needs at least one host")
        for host in self.hosts:
            _check(host)
        if not self.places:
            every = tuple(RankPlacement(host=i, device=d.id) for i, host in enumerate(self.hosts) for d in host.devices)
            object.__setattr__(self, "places", every)
        for rank, place in enumerate(self.places):
            if not 0 <= place.host < len(self.hosts):
                raise TopologyError(f"places[{rank}].host={place.host}: must be from 0 to {len(self.hosts) - 1}")
            known = [device.id for device in self.hosts[place.host].devices]
            if place.device not in known:
                raise TopologyError(
                    f"places[{rank}].device={place.device!r}: must be a device of host "
                    f"{self.hosts[place.host].name!r}: {', '.join(known)}.{nearest(place.device, known)}"
                )

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return len(self.places)

    def ranks_by_host(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each host that has any, in ascending order; hosts in the order of their lowest rank."""
        by_host: dict[int, list[int]] = {}
        for rank, place in enumerate(self.places):
            by_host.setdefault(place.host, []).append(rank)
        return tuple(tuple(ranks) for ranks in by_host.values())

    def device_of(self, rank: int) -> Device:
        """The device of a rank."""
        place = self.places[rank]
        return next(d for d in self.hosts[place.host].devices if d.id == place.device)

    def nvlink_node(self, host: int) -> object:
        """What NCCL takes for one machine: the NVLink domain of a host, or the host itself."""
        return self.hosts[host].facts.get("nvlink_domain", host)

    def ranks_by_nvlink_node(self) -> tuple[tuple[int, ...], ...]:
        """`ranks_by_host`, where the hosts of one NVLink domain are one host."""
        by_node: dict[object, list[int]] = {}
        for rank, place in enumerate(self.places):
            by_node.setdefault(self.nvlink_node(place.host), []).append(rank)
        return tuple(tuple(ranks) for ranks in by_node.values())

    def times(self, num_nodes: int) -> "Topology":
        """A topology of `num_nodes` hosts like the first one, with one rank for each device, host after host.

        NVLink domains of `facts["nvlink_domain_hosts"]` hosts are filled one after another; without that number the
        hosts share none.
        """
        first, size = self.hosts[0], self.hosts[0].facts.get("nvlink_domain_hosts")
        if num_nodes == 1:
            return Topology(hosts=(first,), source=self.source)
        facts = {key: value for key, value in first.facts.items() if key != "nvlink_domain"}
        hosts = tuple(
            replace(
                first,
                name=f"{first.name}-{i}",
                facts=facts if size is None else {**facts, "nvlink_domain": f"{first.name}-domain-{i // size}"},
            )
            for i in range(num_nodes)
        )
        return Topology(hosts=hosts, source=self.source)

    def fingerprint(self) -> str:
        """A hash of the machines and the order of the ranks.

        It does not depend on the names of hosts, nor on measured figures, which differ between probes.
        """
        plain = self.to_dict()
        plain.pop("source")
        if (nodes := self.ranks_by_nvlink_node()) != self.ranks_by_host():
            plain["nvlink_nodes"] = nodes
        for host in plain["hosts"]:
            host.pop("name")
            host.pop("facts")
            for device in host["devices"]:
                device.pop("pci_id")  # the name says as much, and plans that were kept before stay valid
            for link in host["links"]:
                for key in ("latency_us", "source", "bandwidth_gb_per_s") if link["source"] == "measured" else ():
                    link.pop(key)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    # -- JSON --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, which `from_dict` reads."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def to_json(self) -> str:
        """The topology as JSON text, which `from_json` reads."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], where: str = "topology") -> "Topology":
        """The inverse of `to_dict`.

        Args:
            plain: JSON values.
            where: the name of their source, for the message of an error.

        Raises:
            TopologyError: naming the key of an invalid value.
        """
        known = _require(plain, cls, where)
        hosts = tuple(_host(entry, f"{where}.hosts[{i}]") for i, entry in enumerate(_list(known, "hosts", where)))
        places = tuple(
            _build(RankPlacement, entry, f"{where}.places[{i}]")
            for i, entry in enumerate(_list(known, "places", where))
        )
        return cls(hosts=hosts, places=places, source=str(known.get("source", "")))

    @classmethod
    def from_json(cls, text: str, where: str = "topology") -> "Topology":
        """The inverse of `to_json`.

        Args:
            text: JSON.
            where: the name of its source, for the message of an error.

        Raises:
            TopologyError: naming the key of an invalid value, or the line and column of a syntax error.
        """
        try:
            plain = parse_json(text)
        except json.JSONDecodeError as error:
            raise TopologyError(f"{where}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}") from error
        except ValueError as error:
            raise TopologyError(f"{where}: invalid JSON: {error}") from error
        return cls.from_dict(plain, where)

    @classmethod
    def read(cls, path: str | Path) -> "Topology":
        """Reads a JSON file.

        Args:
            path: of the file; `~` is expanded.

        Raises:
            TopologyError: where the file cannot be read, or is invalid.
        """
        path = Path(path).expanduser()
        try:
            text = read_bounded(path).decode()
        except (OSError, ValueError) as error:
            raise TopologyError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        topology = cls.from_json(text, str(path))
        return replace(topology, source=topology.source or str(path))


def _check(host: Host) -> None:
    if not host.devices:
        raise TopologyError(f"host {host.name!r} has no devices")
    ids = [d.id for d in host.devices] + [n.id for n in host.nics] + list(host.switches)
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise TopologyError(f"host {host.name!r}: the id {twice!r} is used twice")
    size = host.facts.get("nvlink_domain_hosts", 1)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise TopologyError(
            f"host {host.name!r}: facts.nvlink_domain_hosts={size!r}: must be a number of hosts from 1 on"
        )
    domain = host.facts.get("nvlink_domain", "")
    if not isinstance(domain, str) or ("nvlink_domain" in host.facts and not domain):
        raise TopologyError(f"host {host.name!r}: facts.nvlink_domain={domain!r}: must be the name of a domain")
    for link in host.links:
        for end in (link.a, link.b):
            if end not in ids and end != NETWORK:
                raise TopologyError(
                    f"host {host.name!r}, link {link.a} - {link.b}: there is no device, network card or "
                    f"switch {end!r}.{nearest(end, [*ids, NETWORK])}"
                )
        if not link.bandwidth_gb_per_s > 0 or not link.latency_us >= 0:
            raise TopologyError(
                f"host {host.name!r}, link {link.a} - {link.b}: bandwidth_gb_per_s={link.bandwidth_gb_per_s} and "
                f"latency_us={link.latency_us}: must be above 0, and at least 0"
            )


def _host(plain: Any, where: str) -> Host:
    known = _require(plain, Host, where)

    def parts(key: str, kind: type[T]) -> tuple[T, ...]:
        return tuple(_build(kind, entry, f"{where}.{key}[{i}]") for i, entry in enumerate(_list(known, key, where)))

    return Host(
        name=str(known.get("name", "")),
        devices=parts("devices", Device),
        nics=parts("nics", Nic),
        switches=tuple(str(name) for name in _list(known, "switches", where)),
        links=parts("links", Link),
        facts=known.get("facts") or {},
    )


def _list(plain: Mapping[str, Any], key: str, where: str) -> Iterable[Any]:
    value = plain.get(key, ())
    if not isinstance(value, (list, tuple)):
        raise TopologyError(f"{where}.{key}: must be a list, and is a {type(value).__name__}")
    return value


def _require(plain: Any, kind: type, where: str) -> Mapping[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(plain, Mapping):
        raise TopologyError(f"{where}: must be an object with {', '.join(names)}, and is a {type(plain).__name__}")
    for key in plain:
        if key not in names:
            raise TopologyError(f"{where}.{key}: unknown key; must be one of {', '.join(names)}.{nearest(key, names)}")
    return plain


def _build(kind: type[T], plain: Any, where: str) -> T:
    known = _require(plain, kind, where)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in known:
            _check_value(field.type, known[field.name], f"{where}.{field.name}")
    try:
        return kind(**known)
    except TypeError as error:
        missing = str(error).split(": ", 1)[-1]
        raise TopologyError(f"{where}: missing {missing}") from error


def _check_value(annotation: Any, value: Any, where: str) -> None:
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            known = ", ".join(choices)
            raise TopologyError(f"{where}={value!r}: must be one of {known}.{nearest(str(value), choices)}")
        return
    kinds = choices or (annotation,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or isinstance(value, bool):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TopologyError(f"{where}={value!r}: must be {names}")
