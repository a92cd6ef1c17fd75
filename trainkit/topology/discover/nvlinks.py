"""NVLinks: which of them lead to an NVSwitch, what they carry, and which GPUs have fewer than they should."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainkit.topology.cards import card_of
from trainkit.topology.discover import nominal
from trainkit.topology.discover.parts import NVSWITCH, Pair, Parts, joined, pair
from trainkit.topology.topology import Device

FEWEST_OF_A_BRIDGE = 3
"""Pairs with fewer NVLinks are of boards with Pascal or Volta, whose pairs have one or two by design."""


def islands(parts: Parts) -> tuple[list[dict[str, int]], dict[Pair, int]]:
    """The NVLinks of a host.

    Args:
        parts: of the host. `nvidia-smi topo -m` shows the NVLinks to an NVSwitch as NVLinks between all pairs, for each
            pair as many as the GPU with fewer has. They are told from direct ones by their sum, which no GPU has.

    Returns:
        For each NVSwitch (all chips of a board are one) the number of NVLinks of each GPU to it; and the number of
        direct ones of each pair.
    """
    to_switch = {d.id: n for d in parts.devices if (n := parts.nvlinks.get(pair(d.id, NVSWITCH)))}
    switched = [to_switch] if to_switch else []
    direct = {ends: count for ends, count in parts.nvlinks.items() if NVSWITCH not in ends}
    by_id = {device.id: device for device in parts.devices}
    for members in joined(list(by_id), direct):
        ends_of = {a: [direct.get(pair(a, b), 0) for b in members if b != a] for a in members}
        if any(sum(counts) > _most(by_id[member]) for member, counts in ends_of.items()):
            switched.append({member: max(counts) for member, counts in ends_of.items()})
            direct = {ends: count for ends, count in direct.items() if not set(ends) & set(members)}
    return switched, direct


def missing(parts: Parts) -> dict[str, dict[str, Any]]:
    """The GPUs that have fewer NVLinks than they should, as far as that can be known.

    Returns:
        By GPU (`gpu3`), or by pair (`gpu0 gpu1`) where they are connected directly: how many NVLinks are `up`, how many
        are `expected`, and `of`: what that number is of, in words.
    """
    if not parts.nvlinks_known:
        return {}
    cut = parts.facts.get("mig", {})
    devices = [device for device in parts.devices if device.id not in cut]  # MIG turns NVLink off
    switched, direct = islands(parts)
    found: dict[str, dict[str, Any]] = {}
    for switch in switched:
        usual = max(switch.values())
        for device in devices:
            modules = _of_module(device)
            expected = max(usual, modules or 0)
            alike = device.id in switch or _is_alike(device, parts.devices, switch)
            if alike and switch.get(device.id, 0) < expected:
                of = "that the other GPUs have" if usual == expected else "that this card has"
                found[device.id] = {"up": switch.get(device.id, 0), "expected": expected, "of": of}
    found |= dict(_weak_pairs(devices, direct))
    return found if switched else found | dict(_unlinked(devices, direct))


def may_be_hidden(parts: Parts) -> bool:
    """Whether the source shows no NVLinks although the GPUs may have some."""
    may_have = any(card is None or card.num_nvlinks != 0 for card in map(card_of, parts.devices))
    return may_have and not parts.nvlinks_known and not parts.nvlinks


def _weak_pairs(devices: Sequence[Device], direct: Mapping[Pair, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    by_id = {device.id: device for device in devices}
    for (a, b), count in direct.items():
        if a not in by_id or b not in by_id:
            continue
        name = by_id[a].name
        alike = [n for (c, _), n in direct.items() if c in by_id and by_id[c].name == name]
        usual = max(alike) if max(alike) >= FEWEST_OF_A_BRIDGE else count
        bridged = _of_a_bridge(by_id[a]) if name == by_id[b].name else None
        expected = max(usual, bridged or 0)
        if count < expected:
            of = "that the other pairs have" if usual == expected else "that a pair of these cards has"
            yield f"{a} {b}", {"up": count, "expected": expected, "of": of}


def _unlinked(devices: Sequence[Device], direct: Mapping[Pair, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """GPUs of a board without any NVLink: always wrong, where cards without a bridge are not."""
    linked = {end for ends in direct for end in ends}
    boards = [group for group in joined([device.id for device in devices], direct) if len(group) > 2]
    for device in devices:
        if device.id in linked:
            continue
        on_board = [other for group in boards for other in group if _is_alike(device, devices, group)]
        expected = _of_module(device)
        if on_board:
            totals = (sum(n for ends, n in direct.items() if other in ends) for other in on_board)
            yield device.id, {"up": 0, "expected": max(totals), "of": "that the other GPUs have"}
        elif expected is not None and len(devices) > 1 and not linked:
            yield device.id, {"up": 0, "expected": expected, "of": "that this card has"}


def _is_alike(device: Device, devices: Sequence[Device], others: Sequence[str] | Mapping[str, int]) -> bool:
    """Whether one of `others` is the same card as `device`."""
    return any(other.id in others and other.name == device.name for other in devices)


def _most(device: Device) -> int:
    card = card_of(device)
    return (card.num_nvlinks if card else None) or nominal.MOST_NVLINKS


def _of_module(device: Device) -> int | None:
    """The NVLinks of a GPU on a carrier board, which are all in use; None for a card, and where it is unknown."""
    card = card_of(device)
    return card.num_nvlinks or None if card is not None and card.bridge_size == 0 else None


def _of_a_bridge(device: Device) -> int | None:
    """The NVLinks between two cards with all bridges in place; None for other GPUs, and where it is unknown."""
    card = card_of(device)
    return card.num_nvlinks if card is not None and card.bridge_size == 2 else None
