"""Card: what is published about a GPU model, found by its PCI id or its name."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from trainkit.errors import nearest
from trainkit.topology.topology import Device

PeerAccess = Literal["on", "off", "unknown"]
Precision = Literal["bf16", "fp16", "tf32", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FILE = Path(__file__).parent / "cards.csv"

_BRANDS = {"nvidia", "amd", "geforce", "tesla", "instinct", "corporation"}
_OTHER_PRODUCTS = {"laptop", "mobile", "notebook", "embedded", "max", "q", "mig", "grid"}
"""Words that make another product of a name: parts for laptops, slices, and virtual GPUs."""
_CHIP = re.compile(r"(gp|gv|tu|ga|gh|ad|gb)\d{2,3}(gl)?$")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU model. None is a figure that is not known.

    Args:
        name: as NVML writes it, without `NVIDIA`.
        pci_ids: vendor and device, such as `10de:2684`.
        compute_capability: such as `8.9`.
        nvlink_generation: 1 to 5.
        num_nvlinks: of one GPU; 0: it has none. Infinity Fabric for AMD.
        nvlink_gb_per_s: rated, of one link in one direction.
        bridge_size: GPUs that bridges between cards join; 0: there are no bridges.
        pcie_generation: of its slot.
        pcie_lanes: of its slot.
        memory_bytes: as advertised, 1 GB being 1e9 bytes.
        peer_access: over PCIe, in the driver.
        tflops: dense peak by precision, with sums in float32.
        sources: keys that are explained in cards.csv.
    """

    name: str
    pci_ids: tuple[str, ...] = ()
    compute_capability: str | None = None
    nvlink_generation: int | None = None
    num_nvlinks: int | None = None
    nvlink_gb_per_s: float | None = None
    bridge_size: int | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    memory_bytes: int | None = None
    peer_access: PeerAccess = "unknown"
    tflops: Mapping[Precision, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@cache
def cards() -> tuple[Card, ...]:
    """All cards of the table, in its order."""
    with FILE.open(encoding="utf-8") as lines:
        return tuple(_card(row) for row in csv.DictReader(line for line in lines if not line.startswith("#")))


def find(name: str = "", *, pci_id: str | None = None, compute_capability: str | None = None) -> Card | None:
    """Finds a GPU model.

    A compute capability excludes cards that have another one. Of the rest a PCI id decides before the name. All words
    of a card's name must be in `name`, the card with the most words wins, and `name` may not contain words that make
    another product of it, such as `Ti` or `Laptop`. A part of a name, such as `A100`, finds all cards that have it: the
    figures in which they agree.

    Args:
        name: of NVML, of the PCI ID database, or a user's.
        pci_id: vendor and device, such as `10de:2684`.
        compute_capability: such as `8.9`.

    Returns:
        The card, or None for an unknown one, and for a part of a name of cards with different compute capabilities.

    Example:
        >>> find("NVIDIA RTX 5000 Ada Generation").compute_capability, find("Quadro RTX 5000").compute_capability
        ('8.9', '7.5')
        >>> find("NVIDIA GeForce RTX 4090 Laptop GPU") is None
        True
    """
    possible = [card for card in cards() if not _differ(card.compute_capability, compute_capability)]
    same = [card for card in possible if pci_id is not None and pci_id.lower() in card.pci_ids]
    if len(same) == 1:
        return same[0]
    return _named(name, same) or _common(same) if same else _named(name, possible)


def card_of(device: Device) -> Card | None:
    """The model of a device; None where it is unknown."""
    if device.kind != "cuda":
        return None
    return find(device.name, pci_id=device.pci_id, compute_capability=device.compute_capability)


def nearest_card(name: str) -> str:
    """` Did you mean 'RTX A6000'?` for a name that is almost that of a card, otherwise an empty text."""
    return nearest(name, [card.name for card in cards()])


# -- names -------------------------------------------------------------------------------------------------------------


def _named(name: str, possible: Sequence[Card]) -> Card | None:
    words = _words(name)
    if not any(char.isdigit() for char in "".join(words)) and "titan" not in words:
        return None
    inside = [card for card in possible if _words(card.name) <= words]
    if inside:
        most = max(len(_words(card.name)) for card in inside)
        best = [card for card in inside if len(_words(card.name)) == most]
        rest = words - _words(best[0].name)
        return _common(best) if not any(_tells_apart(word) for word in rest) else None
    return _common([card for card in possible if words <= _words(card.name)])


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower())) - _BRANDS


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(word for card in cards() for word in _words(card.name)) | _OTHER_PRODUCTS


def _tells_apart(word: str) -> bool:
    """Whether a word beside a card's name makes another product of it; the name of its chip does not."""
    return word in _vocabulary() or (any(char.isdigit() for char in word) and not _CHIP.match(word))


def _common(found: Sequence[Card]) -> Card | None:
    """The figures in which cards agree."""
    if len(found) < 2:
        return found[0] if found else None
    if len({card.compute_capability for card in found}) > 1:
        return None
    agreed: dict[str, Any] = {}
    for part in fields(Card):
        values = [getattr(card, part.name) for card in found]
        if all(value == values[0] for value in values):
            agreed[part.name] = values[0]
    known = {p: {card.tflops[p] for card in found if p in card.tflops} for p in PRECISIONS}
    agreed["tflops"] = {precision: min(values) for precision, values in known.items() if len(values) == 1}
    return Card(**{**agreed, "name": " or ".join(card.name for card in found)})


def _differ(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and a != b


# -- the file ----------------------------------------------------------------------------------------------------------


def _card(row: Mapping[str, str]) -> Card:
    def whole(key: str) -> int | None:
        return int(row[key]) if row[key] else None

    rates: Iterable[tuple[Precision, str]] = ((precision, row[precision]) for precision in PRECISIONS)
    assert row["peer_access"] in get_args(PeerAccess), row
    return Card(
        name=row["name"],
        pci_ids=tuple(row["pci_ids"].split()),
        compute_capability=row["capability"] or None,
        nvlink_generation=whole("nvlink"),
        num_nvlinks=whole("links"),
        nvlink_gb_per_s=float(row["link_gb_per_s"]) if row["link_gb_per_s"] else None,
        bridge_size=whole("bridge"),
        pcie_generation=whole("pcie"),
        pcie_lanes=whole("lanes"),
        memory_bytes=int(row["memory_gb"]) * 10**9 if row["memory_gb"] else None,
        peer_access=row["peer_access"],  # type: ignore[arg-type]
        tflops={precision: float(text) for precision, text in rates if text},
        sources=tuple(row["sources"].split()),
    )
