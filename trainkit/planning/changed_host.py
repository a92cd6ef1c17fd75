"""A host with one change: other NVLinks, slots, switches or network cards. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from trainkit.topology.cards import card_of
from trainkit.topology.gpus import bridges, has_bridges
from trainkit.topology.topology import GPU_LINKS, Host, Link, LinkKind

NVSWITCH_GB_PER_S, NVSWITCH_RATED_GB_PER_S = 230.4, 300.0
COPY_ENGINES = "NCCL_SHM_USE_CUDA_MEMCPY"
BEHIND_SWITCH = 5 / 6
"""The share of a slot's bandwidth that passes a PCIe host bridge (benchmarks/predictions.py); a switch passes all."""


def part(host: Host, num_devices: int) -> Host:
    """The host with its first devices only."""
    gone = {device.id for device in host.devices[num_devices:]}
    links = tuple(link for link in host.links if not gone & {link.a, link.b})
    return replace(host, devices=host.devices[:num_devices], links=links)


def without_nvlink(host: Host) -> Host | None:
    """The host without NVLink or Infinity Fabric; None where it has none, or no other links."""
    others = tuple(link for link in host.links if link.kind not in GPU_LINKS)
    joined = {end for link in others for end in (link.a, link.b)}
    if len(others) == len(host.links) or not all(device.id in joined for device in host.devices):
        return None
    facts = {key: value for key, value in host.facts.items() if not key.startswith("nvlink_domain")}
    return replace(host, links=others, facts=facts)


def with_nvswitch(host: Host) -> Host:
    """The host with 12 NVLinks of an A100 from each device to an NVSwitch, in place of NVLinks between devices."""
    added = tuple(
        _link(device.id, "nvswitch", "nvswitch", NVSWITCH_GB_PER_S, NVSWITCH_RATED_GB_PER_S) for device in host.devices
    )
    kept = tuple(link for link in host.links if link.kind != "nvlink")
    return replace(host, switches=(*host.switches, "nvswitch"), links=(*kept, *added))


def with_bridges(host: Host) -> Host | None:
    """The host with NVLink bridges between its devices.

    None where it has NVLink, fewer than two devices, or devices that have no bridges as far as is known.
    """
    card = card_of(host.devices[0])
    if len(host.devices) < 2 or has_links(host) or card is None or not has_bridges(card):
        return None
    return replace(host, links=(*host.links, *bridges(card, [device.id for device in host.devices])))


def with_peer_access(host: Host) -> Host | None:
    """The host with copies between its devices; None where these are not known to be off."""
    is_off = host.facts.get("p2p") is False or host.facts.get("p2p_off")
    return replace(host, facts={**host.facts, "p2p": True, "p2p_off": {}}) if is_off else None


def with_copy_engines(host: Host) -> Host | None:
    """The host with messages through its memory copied by the GPUs' copy engines; None where none takes this way.

    Two of more than two cards are taken to share a host bridge where that is not known: it limits copy engines, which
    are faster than NCCL's kernels. Published of RTX 4090 in an EPYC host: 11.2 GB/s for two cards at one bridge, 19.4
    at two, and 10.6 for four at two (github.com/smolix/d2l-neu).
    """
    environment = host.facts.get("environment", {})
    if host.facts.get("p2p") is not False or environment.get(COPY_ENGINES) == "1":
        return None
    shared = _with_shared_bridges(host) if len(host.devices) > 2 else host
    return replace(shared, facts={**host.facts, "environment": {**environment, COPY_ENGINES: "1"}})


def _with_shared_bridges(host: Host) -> Host:
    """The host with each two of the cards that a nominal link joins to a socket at one bridge, as fast as that link."""
    direct = {
        link.a: link
        for link in host.links
        if link.kind == "pcie" and link.source == "nominal" and link.b.startswith("socket") and link.a.startswith("gpu")
    }
    links = [link for link in host.links if link not in direct.values()]
    bridges: list[str] = []
    for socket in dict.fromkeys(link.b for link in direct.values()):
        cards = [link for link in direct.values() if link.b == socket]
        for first in range(0, len(cards), 2):
            bridges.append(f"bridge{len(bridges)}")
            pair = cards[first : first + 2]
            links += [replace(link, b=bridges[-1]) for link in pair]
            links.append(replace(pair[0], a=bridges[-1], rated_gb_per_s=None))
    return replace(host, switches=(*host.switches, *bridges), links=tuple(links))


def without_acs(host: Host) -> Host | None:
    """The host without PCIe's access control services, which send messages up to the socket; None: they are not on."""
    return replace(host, facts={**host.facts, "acs": False}) if host.facts.get("acs") is True else None


def behind_switches(host: Host) -> Host | None:
    """The host with a PCIe switch on each socket, below which are all of the socket's devices.

    None where devices are behind switches already, or where the switch would have a single device.
    """
    sockets = [name for name in host.switches if name.startswith("socket")]
    mine = {device.id for device in host.devices}
    slots = {link.a: link for link in host.links if link.kind == "pcie" and link.a in mine and link.b in sockets}
    if set(slots) != mine or len(mine) <= len(sockets):
        return None
    used = list(dict.fromkeys(link.b for link in slots.values()))
    first = sum(name.startswith("pcie") for name in host.switches)
    switch_of = {socket: f"pcie{first + number}" for number, socket in enumerate(used)}
    links = [link for link in host.links if link not in slots.values()]
    for link in slots.values():
        full = link.bandwidth_gb_per_s / (1.0 if link.source == "measured" else BEHIND_SWITCH)
        links.append(replace(link, b=switch_of[link.b], bandwidth_gb_per_s=full))
    for socket in used:
        upwards = next(link for link in slots.values() if link.b == socket)
        links.append(replace(upwards, a=switch_of[socket]))
    return replace(host, switches=(*host.switches, *switch_of.values()), links=tuple(links))


def with_slots(host: Host, share: float) -> Host | None:
    """The host with a share of the PCIe lanes at each device; None where no device is known to be in a slot."""
    mine = {device.id for device in host.devices}

    def narrow(link: Link) -> Link:
        if link.kind != "pcie" or not mine & {link.a, link.b}:
            return link
        return replace(link, bandwidth_gb_per_s=link.bandwidth_gb_per_s * share)

    links = tuple(narrow(link) for link in host.links)
    return replace(host, links=links) if links != host.links else None


def with_faster_nics(host: Host, factor: int) -> Host:
    """The host with network cards that are `factor` times as fast, in such slots."""
    nics = {nic.id for nic in host.nics}

    def faster(link: Link) -> Link:
        if link.kind != "nic" and not nics & {link.a, link.b}:
            return link
        rated = link.rated_gb_per_s * factor if link.rated_gb_per_s else None
        return replace(link, bandwidth_gb_per_s=link.bandwidth_gb_per_s * factor, rated_gb_per_s=rated)

    return replace(host, links=tuple(faster(link) for link in host.links))


def has_links(host: Host, kinds: Sequence[LinkKind] = GPU_LINKS) -> bool:
    """Whether the host has any such link."""
    return any(link.kind in kinds for link in host.links)


def _link(a: str, b: str, kind: LinkKind, gb_per_s: float, rated: float | None = None) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=0.5, rated_gb_per_s=rated)
