"""The answer of `trainkit topo advise`, as text and as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import in_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trainkit.forecast.published_scaling import PublishedScaling
    from trainkit.forecast.purchase import Option
    from trainkit.planning.advice import Advice
    from trainkit.planning.links_advice import LinksAdvice
    from trainkit.planning.simulate import Point

MOST_OPTIONS = 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All that is said.

    Args:
        advice: of the machine.
        scaling: points by a name of the links.
        options: what the budget buys; empty: none was given.
        findings: what is wrong with the machine.
        published: throughputs of the same devices.
        why_so_fast: where the speed of a device is from.
    """

    advice: "LinksAdvice"
    scaling: "Mapping[str, Sequence[Point]]"
    options: "Sequence[Option]"
    findings: "Sequence[Advice]"
    published: "Sequence[PublishedScaling]"
    why_so_fast: str


def title(advice: "LinksAdvice") -> str:
    """What the advice is about, in a line."""
    name = advice.topology.source.removeprefix("preset ") or "machines like this one"
    where = name if advice.point.num_nodes == 1 else f"{advice.point.num_nodes} nodes of {name}"
    return f"{advice.work.name} on {where}, {advice.work.precision}, {advice.strategy}"


def show(answer: Answer, out: "Console") -> None:
    """Prints the answer."""
    advice, point = answer.advice, answer.advice.point
    out.print(f"{title(advice)}, {advice.work.samples_per_device} samples a card in a step\n", style="bold")
    out.print(advice.verdict())
    out.print(
        f"\nA step takes {in_time(point.step_us)}: {in_time(point.compute_us)} of computation and "
        f"{in_time(point.exposed_us)} of waiting; all-reduces take {in_time(point.communication_us)}, of which the "
        f"backward pass hides the rest. {point.samples_per_s:,.0f} samples/s. Efficiency: "
        f"{_percent(point.efficiency)}; {100 * point.slow_efficiency:.0f} to {_percent(point.fast_efficiency)} in the "
        f"range of 8 in 10 published all-reduces; {_percent(point.unhidden_efficiency)} where nothing is hidden."
    )
    if advice.changes:
        out.print()
        out.print(_changes(advice))
    if len(answer.scaling["as it is"]) > 1:
        out.print()
        out.print(_scaling(answer.scaling))
    if answer.options:
        out.print()
        out.print(_bought(answer.options))
    for finding in answer.findings:
        out.print(f"\n{finding.severity}: {finding.subject}: {finding.problem}\n  → {finding.remedy}")
    if answer.published:
        out.print("\nPublished, with its own batches; predicted from nothing hidden to what can be:")
        for row in answer.published:
            out.print(
                f"  {row.num_devices} x {row.machine}, {row.precision}, {row.sequence_length} tokens: "
                f"{_percent(row.published)} ({row.source}); predicted {_percent(row.unhidden)} to "
                f"{_percent(row.predicted)}"
            )
    out.print(f"\n{_memory(advice)}")
    out.print(f"A card computes {advice.work.tflops:.3g} TFLOPS: {answer.why_so_fast}.")
    out.print(_assumed(advice))
    _show_next(advice, out)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _changes(advice: "LinksAdvice") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("of a step", justify="right")
    table.add_column("change")
    table.add_column("how")
    for change in advice.changes:
        percent = -100 * change.gain
        style = {"bound": "dim", "worse": "yellow"}.get(change.kind, "green" if change.gain >= 0.01 else "")
        table.add_row(f"{percent:+.1f} %" if abs(percent) >= 0.05 else "0 %", change.what, change.how, style=style)
    return table


def _scaling(series: "Mapping[str, Sequence[Point]]") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("cards", "samples/s", "times one card", *series):
        table.add_column(name, justify="right")
    for number, point in enumerate(series["as it is"]):
        times = point.num_devices * point.efficiency
        shares = [_percent(points[number].efficiency) for points in series.values()]
        table.add_row(str(point.num_devices), f"{point.samples_per_s:,.0f}", f"{times:.3g}", *shares)
    return table


def _bought(options: "Sequence[Option]") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("within the budget")
    for name in ("USD", "samples/s", "for 1000 USD", "efficiency", "by copy engines"):
        table.add_column(name, justify="right")
    for option in options[:MOST_OPTIONS]:
        table.add_row(
            option.topology.source,
            f"{option.usd:,.0f}",
            f"{option.point.samples_per_s:,.0f}",
            f"{option.samples_per_s_per_1000_usd:,.0f}",
            _percent(option.point.efficiency),
            _percent(option.tuned.efficiency) if option.tuned else "",
        )
    return table


def _assumed(advice: "LinksAdvice") -> str:
    host = advice.topology.hosts[0]
    if any(link.source == "measured" for link in host.links):
        return "Its links were measured."
    if host.nics:
        return (
            "Its links have nominal speeds; `trainkit topo show` draws them. docs/which_machine.md: what this is worth."
        )
    return (
        "Slots of 16 lanes with a host bridge each are assumed (for copy engines one for two cards), and up to 4 cards "
        "a socket, at nominal speeds. "
        "docs/which_machine.md says what this is worth."
    )


def _memory(advice: "LinksAdvice") -> str:
    from trainkit.topology.cards import card_of

    card = card_of(advice.topology.hosts[0].devices[0])
    of = f" of {card.memory_bytes / 1e9:.0f} GB" if card is not None and card.memory_bytes else ""
    return (
        f"Parameters, gradients and Adam's state take {advice.state_bytes / 1e9:.2g} GB{of} on a card; activations "
        f"come on top, which `trainkit plan` counts."
    )


def _show_next(advice: "LinksAdvice", out: "Console") -> None:
    cards = len(advice.topology.hosts[0].devices)
    out.print("\nnext:", style="bold")
    setting = advice.best("setting")
    if setting is not None:
        out.print(f"  {setting.how}    saves {_percent(setting.gain)} of a step")
    for command, why in (
        (f"torchrun --standalone --nproc-per-node={cards} -m trainkit.cli topo bench", "on it, or on a rented one"),
        (f"torchrun --standalone --nproc-per-node={cards} -m trainkit.cli topo probe --output links.json", ""),
        ("trainkit topo advise --topology links.json", "the same with what was measured"),
    ):
        out.print(f"  {command}" + (f"    {why}" if why else ""), soft_wrap=True)


def facts(answer: Answer) -> dict[str, Any]:
    """The answer as JSON values."""
    advice = answer.advice
    return {
        "machine": advice.topology.source,
        "recipe": advice.work.name,
        "strategy": advice.strategy,
        "precision": advice.work.precision,
        "samples_per_device": advice.work.samples_per_device,
        "tflops": advice.work.tflops,
        "tflops_from": answer.why_so_fast,
        "verdict": advice.verdict(),
        **_step(advice.point),
        "state_bytes": advice.state_bytes,
        "changes": [asdict(change) for change in advice.changes],
        "scaling": {name: [_step(point) for point in points] for name, points in answer.scaling.items()},
        "findings": [asdict(finding) for finding in answer.findings],
        "published": [asdict(row) for row in answer.published],
        "options": [
            {
                "machine": option.topology.source,
                "usd": option.usd,
                **_step(option.point),
                "tuned": _step(option.tuned) if option.tuned else None,
            }
            for option in answer.options
        ],
    }


def _step(point: "Point") -> dict[str, float]:
    names = ("num_nodes", "num_devices", "step_us", "compute_us", "communication_us", "exposed_us", "samples_per_s")
    shares = ("efficiency", "slow_efficiency", "fast_efficiency", "unhidden_efficiency")
    return {name: getattr(point, name) for name in (*names, *shares)}
