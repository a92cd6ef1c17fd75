"""A machine from the text that names its GPUs, such as `4x3090` or `2xA6000+nvlink`: what one would build from them."""

import re
from collections.abc import Sequence
from itertools import combinations

from trainkit.errors import TopologyError, nearest
from trainkit.topology.cards import Card, cards
from trainkit.topology.discover import nominal
from trainkit.topology.topology import Device, Host, Link, LinkKind, Topology

MOST = 16
PER_SOCKET = 4
"""Slots with 16 lanes that one socket is assumed to have."""
HOST_BRIDGE = 5 / 6
"""The share of a slot's bandwidth that passes a PCIe host bridge: see benchmarks/predictions.py."""
SOCKETS_GB_PER_S = 20.0
OLDEST_SWITCHED_NVLINK = 3
"""The generation of NVLink from which on boards for GPUs have NVSwitches: those of V100 are meshes, too."""
_BRANDS = {"nvidia", "amd", "geforce", "tesla", "instinct", "quadro"}
_MOST_LISTED = 8


def gpus(text: str) -> Topology:
    """One machine with the GPUs that a text names: cards in slots, four a socket, or a board with NVSwitches.

    Args:
        text: a number, `x` and the name of a card, with `+nvlink` for bridges between cards: `4x3090`, `8xL40S`,
            `2x3090+nvlink`. Of a name, the words that tell it from others suffice, in upper or lower case; `sxm` is
            one on a board.

    Raises:
        TopologyError: for other text, an unknown or ambiguous name, and links that are not known.

    Example:
        >>> gpus("2x3090+nvlink").source
        '2x GeForce RTX 3090, bridged'
    """
    where = f"--gpus={text!r}"
    found = re.fullmatch(r"(\d{1,4})\s*[x*]\s*(.+?)(\s*\+\s*nvlink)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise TopologyError(f"{where}: must be a number, x and a card, such as 4x3090, 8xL40S or 2x3090+nvlink")
    card, count = card_named(found[2], where), int(found[1])
    return machine_of(card, count, is_bridged=found[3] is not None, where=where)


def machine_of(card: Card, count: int, *, is_bridged: bool = False, where: str = "gpus") -> Topology:
    """One machine with some cards of one kind.

    Args:
        card: of the table.
        count: 1 to 16.
        is_bridged: with NVLink bridges.
        where: they were named, for the message of an error.

    Raises:
        TopologyError: for a number out of range, and links that the card cannot have or that are not known.
    """
    if not 1 <= count <= MOST:
        raise TopologyError(f"{where}: must be 1 to {MOST} cards, those of one machine; for more, give --topology")
    if card.pcie_generation is None or (card.num_nvlinks and not card.bridge_size and not is_switched(card)):
        raise TopologyError(f"{where}: how machines join {card.name} differs: give --preset or --topology")
    if is_bridged and not has_bridges(card):
        reason = (
            "is joined by its board's NVSwitches" if is_switched(card) else "has no NVLink bridges, as far as is known"
        )
        raise TopologyError(f"{where}: {card.name} {reason}: leave out +nvlink")
    if is_bridged and count % 2:
        raise TopologyError(f"{where}: bridges join pairs: must be an even number of cards")
    host = _host(card, count, is_bridged)
    return Topology(hosts=(host,), source=f"{count}x {card.name}{', bridged' if is_bridged else ''}")


def card_named(given: str, where: str) -> Card:
    """The card that a name means. Of several that are linked alike, the one with the most memory.

    Args:
        given: such as `3090`, `rtx 6000 ada` or `A100-PCIe`.
        where: it was given, for the message of an error.

    Raises:
        TopologyError: for an unknown or ambiguous name.

    Example:
        >>> card_named("rtx 6000 ada", "--gpus").name
        'RTX 6000 Ada Generation'
    """
    wanted = _words(given)
    is_on_board = "sxm" in wanted
    wanted -= {"sxm"}
    fitting = [card for card in cards() if wanted and wanted <= _words(card.name)]
    if is_on_board:
        fitting = [card for card in fitting if card.num_nvlinks and not card.bridge_size]
    if not any(letter.isdigit() for letter in "".join(wanted)) or not fitting:
        raise TopologyError(f"{where}: there is no such card in trainkit/topology/cards.csv.{_nearest(given)}")
    exact = [card for card in fitting if _words(card.name) - wanted <= {"rtx", "gtx", "generation"}]
    possible = exact or [card for card in fitting if card.tflops] or fitting
    if len({_links_of(card) for card in possible}) > 1:
        names = ", ".join(card.name for card in possible[:_MOST_LISTED])
        raise TopologyError(f"{where}: {given} may be one of {names}; they are linked in different ways")
    return max(possible, key=lambda card: card.memory_bytes or 0)


def has_bridges(card: Card) -> bool:
    """Whether NVLink bridges join such cards, and of how many links they are is known."""
    return bool(card.bridge_size and card.num_nvlinks)


def is_switched(card: Card) -> bool:
    """Whether NVSwitches join such GPUs, on the board that they come on."""
    return bool(card.num_nvlinks and card.bridge_size == 0 and (card.nvlink_generation or 0) >= OLDEST_SWITCHED_NVLINK)


def nvlink_gb_per_s(card: Card) -> float:
    """Of all NVLinks of a card together, in one direction; 0: it has none, or how many is not known."""
    each = nominal.nvlink_gb_per_s(_device(card, 0, 0))
    return (card.num_nvlinks or 0) * (each or 0.0)


def bridges(card: Card, devices: Sequence[str]) -> tuple[Link, ...]:
    """NVLink bridges between the first devices, the next ones and so on.

    Args:
        card: all of them are of, which has bridges.
        devices: their ids.
    """
    size, links = card.bridge_size or 2, []
    for first in range(0, len(devices), size):
        group = devices[first : first + size]
        each = nvlink_gb_per_s(card) / max(1, len(group) - 1)
        links += [_link(a, b, "nvlink", each) for a, b in combinations(group, 2)]
    return tuple(links)


def _nearest(given: str) -> str:
    words = {word for card in cards() for word in _words(card.name) if any(letter.isdigit() for letter in word)}
    alike = {word for word in words if word.isdigit()} if given.isdigit() else words
    return nearest(given, alike) or nearest(given, [card.name for card in cards()])


def _words(name: str) -> frozenset[str]:
    apart = re.sub(r"\b(rtx|gtx)(?=\d)|(?<=\d)(ti|super)\b", r" \g<0> ", name.lower())  # rtx2080ti
    return frozenset(re.findall(r"[a-z0-9]+", apart)) - _BRANDS


def _links_of(card: Card) -> tuple[object, ...]:
    return card.compute_capability, card.num_nvlinks, card.bridge_size, card.pcie_generation, card.peer_access


def _device(card: Card, number: int, numa: int) -> Device:
    name = card.name if card.name.startswith("AMD") else f"NVIDIA {card.name}"
    return Device(id=f"gpu{number}", name=name, numa=numa, compute_capability=card.compute_capability)


def _host(card: Card, count: int, is_bridged: bool) -> Host:
    sockets = 1 if count <= PER_SOCKET else 2
    place = [i * sockets // count for i in range(count)]
    slot = nominal.pcie_gb_per_s(card.pcie_generation or nominal.ASSUMED_PCIE_GENERATION, card.pcie_lanes or 16)
    links = [_link(f"gpu{i}", f"socket{place[i]}", "pcie", slot * HOST_BRIDGE) for i in range(count)]
    if sockets > 1:
        links.append(_link("socket0", "socket1", "socket", SOCKETS_GB_PER_S))
    if is_switched(card):
        links += [_link(f"gpu{i}", "nvswitch", "nvswitch", nvlink_gb_per_s(card)) for i in range(count)]
    if is_bridged:
        links += bridges(card, [f"gpu{i}" for i in range(count)])
    return Host(
        name=f"{count}x {card.name}",
        devices=tuple(_device(card, i, place[i]) for i in range(count)),
        switches=(*(f"socket{i}" for i in range(sockets)), *(("nvswitch",) if is_switched(card) else ())),
        links=tuple(links),
        facts={"p2p": False} if card.peer_access == "off" else {},
    )


def _link(a: str, b: str, kind: LinkKind, gb_per_s: float) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=nominal.LATENCY_US[kind])
