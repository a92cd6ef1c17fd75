"""A machine from the text that names its GPUs, such as `4x3090` or `2xA6000+nvlink`: what one would build from them."""

import re
from dataclasses import dataclass

from trainkit.errors import TopologyError, nearest
from trainkit.topology.discover import nominal
from trainkit.topology.topology import Device, Host, Link, LinkKind, Topology

MOST = 16
PER_SOCKET = 4
"""Slots with 16 lanes that one socket is assumed to have."""
HOST_BRIDGE = 5 / 6
"""The share of a slot's bandwidth that passes a PCIe host bridge: see benchmarks/predictions.py."""
SOCKETS_GB_PER_S = 20.0
PCIE_LANES = 16


@dataclass(frozen=True, kw_only=True)
class Card:
    """What decides how a GPU is connected.

    Args:
        name: of the device, as its driver calls it.
        bridge_links: NVLinks that a bridge between two cards uses; 0: it has no connector.
        switch_links: NVLinks into an NVSwitch, on its own board; 0: it is a PCIe card.
        has_peer_access: whether the driver copies between two such cards over PCIe.
    """

    name: str
    bridge_links: int = 0
    switch_links: int = 0
    has_peer_access: bool = True

    @property
    def bridge_gb_per_s(self) -> float:
        """Of a bridge, in one direction."""
        return self.bridge_links * nominal.nvlink_gb_per_s(self.name)


CARDS = {
    "RTX-3090": Card(name="NVIDIA GeForce RTX 3090", bridge_links=4, has_peer_access=False),
    "RTX-4090": Card(name="NVIDIA GeForce RTX 4090", has_peer_access=False),
    "RTX-A6000": Card(name="NVIDIA RTX A6000", bridge_links=4),
    "RTX-6000-Ada": Card(name="NVIDIA RTX 6000 Ada Generation"),
    "A40": Card(name="NVIDIA A40", bridge_links=4),
    "L40S": Card(name="NVIDIA L40S"),
    "A100-PCIe": Card(name="NVIDIA A100 80GB PCIe", bridge_links=12),
    "A100-SXM": Card(name="NVIDIA A100-SXM4-80GB", switch_links=12),
    "H100-PCIe": Card(name="NVIDIA H100 PCIe", bridge_links=12),
    "H100-SXM": Card(name="NVIDIA H100 80GB HBM3", switch_links=18),
    "B200": Card(name="NVIDIA B200", switch_links=18),
}


def gpus(text: str) -> Topology:
    """One machine with the GPUs that a text names: cards in slots of 16 lanes, four a socket, or a board with NVSwitch.

    Args:
        text: a number, `x` and the name of a card, with `+nvlink` for bridges between pairs: `4x3090`, `8xL40S`,
            `2x3090+nvlink`. Upper and lower case, blanks and hyphens in the name do not matter.

    Raises:
        TopologyError: for other text, an unknown or ambiguous name, and bridges that the card cannot have.

    Example:
        >>> gpus("2x3090+nvlink").world_size
        2
    """
    found = re.fullmatch(r"(\d{1,4})\s*[x*]\s*(.+?)(\s*\+\s*nvlink)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise TopologyError(
            f"--gpus={text!r}: must be a number, x and a card, such as 4x3090, 8xL40S or 2x3090+nvlink; cards: "
            f"{', '.join(CARDS)}"
        )
    count, key, has_bridges = int(found[1]), card_key(found[2], f"--gpus={text!r}"), found[3] is not None
    card = CARDS[key]
    if not 1 <= count <= MOST:
        raise TopologyError(f"--gpus={text!r}: must be 1 to {MOST} cards, those of one machine; for more, --topology")
    if has_bridges and not card.bridge_links:
        reason = "is joined by its board's NVSwitch" if card.switch_links else "has no NVLink connector"
        raise TopologyError(f"--gpus={text!r}: {key} {reason}: give {count}x{key}")
    if has_bridges and count % 2:
        raise TopologyError(f"--gpus={text!r}: bridges join pairs: must be an even number of cards")
    name = f"{count}x{key}" + ("+nvlink" if has_bridges else "")
    return Topology(hosts=(_host(name, card, count, has_bridges),), source=name)


def card_of(device_name: str) -> Card | None:
    """The card of a device; None: it is not known."""
    return next((card for card in CARDS.values() if card.name == device_name), None)


def card_key(given: str, where: str) -> str:
    """The key of CARDS that a name means.

    Args:
        given: such as `3090`, `rtx 3090` or `A100-PCIe`.
        where: it was given, for the message of an error.

    Raises:
        TopologyError: for an unknown or ambiguous name.

    Example:
        >>> card_key("rtx 6000 ada", "--gpus")
        'RTX-6000-Ada'
    """
    plain = {_plain(key): key for key in CARDS}
    wanted = _plain(given)
    if wanted in plain:
        return plain[wanted]
    ends = [key for short, key in plain.items() if short.endswith(wanted) or short.removesuffix("pcie") == wanted]
    starts = [key for short, key in plain.items() if short.startswith(wanted)]
    likely = starts if len(starts) > 1 else ends or starts
    if len(likely) == 1 and any(letter.isdigit() for letter in wanted):
        return likely[0]
    if likely:
        raise TopologyError(f"{where}: {given} is not one card: must be one of {', '.join(likely)}")
    short = [name.removeprefix("rtx") for name in plain]
    raise TopologyError(f"{where}: must be one of {', '.join(CARDS)}.{nearest(wanted, short)}")


def _plain(name: str) -> str:
    short = re.sub(r"[^a-z0-9]", "", name.lower())
    return short.removeprefix("nvidia").removeprefix("geforce")


def _host(name: str, card: Card, count: int, has_bridges: bool) -> Host:
    sockets = -(-count // PER_SOCKET)
    sockets = min(sockets, 2)
    slot = nominal.pcie_gb_per_s(nominal.pcie_generation(card.name), PCIE_LANES)
    place = [i * sockets // count for i in range(count)]
    links = [_link(f"gpu{i}", f"socket{place[i]}", "pcie", slot * HOST_BRIDGE) for i in range(count)]
    if sockets > 1:
        links.append(_link("socket0", "socket1", "socket", SOCKETS_GB_PER_S))
    if card.switch_links:
        each = card.switch_links * nominal.nvlink_gb_per_s(card.name)
        links += [_link(f"gpu{i}", "nvswitch", "nvswitch", each) for i in range(count)]
    if has_bridges:
        links += [_link(f"gpu{i}", f"gpu{i + 1}", "nvlink", card.bridge_gb_per_s) for i in range(0, count, 2)]
    capability = nominal.compute_capability(card.name)
    devices = tuple(
        Device(id=f"gpu{i}", name=card.name, numa=place[i], compute_capability=capability) for i in range(count)
    )
    switches = (*(f"socket{i}" for i in range(sockets)), *(("nvswitch",) if card.switch_links else ()))
    facts = {} if card.has_peer_access else {"p2p": False}
    return Host(name=name, devices=devices, switches=switches, links=tuple(links), facts=facts)


def _link(a: str, b: str, kind: LinkKind, gb_per_s: float) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=nominal.LATENCY_US[kind])
