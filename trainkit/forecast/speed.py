"""Speed: what one device sustains in a precision, from published throughputs of BERT where there are any."""

import math
import re
from dataclasses import dataclass

from trainkit.benchmark.published import Row, published
from trainkit.errors import TopologyError
from trainkit.planning.simulate import MODEL_FLOPS_UTILISATION
from trainkit.planning.workload import bert_flops
from trainkit.topology.cards import PRECISIONS, Card, Precision, card_of, cards, nearest_card
from trainkit.topology.discover.nominal import compute_capability
from trainkit.topology.topology import Device

SOURCE = "Lambda"
"""The publisher whose figures of one device are used: one program on all of them."""
_OTHER_CARD = {"ti", "super", "d", "laptop", "max"}
_FIRST_WITH_TF32 = 8


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one device sustains.

    Args:
        tflops: in forward and backward passes.
        why: where the figure is from.
    """

    tflops: float
    why: str


def speed_of(device: Device, precision: Precision, model: str = "bert-large") -> Speed:
    """The sustained speed of a device.

    It is that of fine-tuning BERT on sequences of 384 tokens, as Lambda published it for one device; otherwise the
    share of the peak that the most similar device of its compute capability reaches there; otherwise 45 % of the peak.
    Published `fp32` is taken for TF32 on devices that have it: an A100's figure is above its peak in fp32.

    Args:
        device: with its name.
        precision: of the computation.
        model: `bert-base` has figures of its own; any other takes those of `bert-large`.

    Raises:
        TopologyError: the speed of the device is not known in this precision.

    Example:
        >>> round(speed_of(Device(id="gpu0", name="NVIDIA GeForce RTX 3090"), "bf16").tflops)
        38
    """
    found = _find(device, precision, model)
    if found is not None:
        return found
    name = device.name or "this device"
    can = [other for other in PRECISIONS if _find(device, other, model) is not None]
    if can:
        raise TopologyError(f"--precision={precision}: known for {name} are {', '.join(can)}; or give --tflops")
    raise TopologyError(
        f"the speed of {name!r} is not known: give --tflops, what it sustains, which `trainkit benchmark` measures."
        f"{nearest_card(name)}"
    )


def machine_of(row: Row) -> str:
    """The device of a published row, without the number of devices and the cloud's name."""
    return re.sub(r"^(LambdaCloud )?(\d+x )?(Quadro )?", "", row.machine)


def _find(device: Device, precision: Precision, model: str) -> Speed | None:
    capability = compute_capability(device) or "0.0"
    as_published = _as_published(precision, int(capability.split(".")[0]))
    row = _published(device.name, as_published, model)
    if row is not None:
        return Speed(tflops=_tflops_of(row), why=f"{_said(row)} for one {machine_of(row)}")
    card = card_of(device)
    if card is None or precision not in card.tflops:
        return None
    peak = card.tflops[precision]
    share, why = MODEL_FLOPS_UTILISATION, "what BERT reaches on an A100"
    alike = _most_alike(card, precision, as_published, model)
    if alike is not None:
        other, of_other = alike
        share, why = _tflops_of(of_other) / other.tflops[precision], f"as for {other.name}: {_said(of_other)}"
    return Speed(tflops=share * peak, why=f"{100 * share:.0f} % of its peak of {peak:g}, {why}")


def _most_alike(card: Card, precision: Precision, as_published: str | None, model: str) -> tuple[Card, Row] | None:
    """Of the cards of the same compute capability that have a published figure, the one with the nearest peak."""
    found = [
        (abs(math.log(other.tflops[precision] / card.tflops[precision])), other, row)
        for other in cards()
        if other.compute_capability == card.compute_capability and precision in other.tflops
        if (row := _published(other.name, as_published, model)) is not None
    ]
    return min(found, key=lambda entry: entry[0])[1:] if found and card.compute_capability else None


def _tflops_of(row: Row) -> float:
    return row.samples_per_s * bert_flops(row.model, tokens=row.sequence_length, masked=0) / 1e12


def _said(row: Row) -> str:
    rate = f"{row.samples_per_s:g} sequences of {row.sequence_length} tokens/s of {row.model}"
    return f"{SOURCE} published {rate} ({row.precision})"


def _as_published(precision: Precision, major: int) -> str | None:
    """What the source calls a precision; None: it has none such for a device of this compute capability."""
    if precision == "fp16" or (precision == "bf16" and major >= _FIRST_WITH_TF32):
        return "fp16"
    has_tf32 = major >= _FIRST_WITH_TF32
    return "fp32" if has_tf32 == (precision == "tf32") and precision in ("tf32", "fp32") else None


def _rows() -> list[Row]:
    return [row for source in published() if source.name.startswith(SOURCE) for row in source.rows if row.num_gpus == 1]


def _published(name: str, precision: str | None, model: str) -> Row | None:
    """The row of a device: of the same model, and of its form and memory where several differ only in these."""
    known = _words(name)
    wanted = "bert-base" if model == "bert-base" else "bert-large"
    found = []
    for row in _rows():
        own = _words(machine_of(row))
        form = {word for word in own if re.fullmatch(r"\d+gb|pcie|sxm\d?", word)}
        if (
            own - form <= known
            and not (known - own) & _OTHER_CARD
            and (row.precision, row.model) == (precision, wanted)
        ):
            found.append((("pcie" in form) == ("pcie" in known), len(form & known), row))
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))
