"""Rows: the figures of cells as the words of a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainkit.benchmark import words
from trainkit.benchmark.figures import UNITS
from trainkit.benchmark.machines import Machine
from trainkit.memory.memory import in_words

COLUMNS = (
    *("model", "machine", "precision", "strategy", "processes", "batch", "samples/s", "tokens/s", "images/s", "spread"),
    *("MFU", "efficiency", "memory", "J/sample", "$/million"),
)

COMMON = ("model", "precision", "strategy", "processes", "batch")
"""Columns that are left out of a narrow table where all rows have the same."""


def row_of(machine: Machine, cell: Mapping[str, Any]) -> dict[str, str]:
    """The words of a cell that was measured, by column; what is not known is left out.

    Args:
        machine: of the cell.
        cell: with its figures.
    """
    figures, cost = cell["figures"], machine.cost(cell)
    stage = f" at {cell['stage']}" if cell.get("stage") else ""
    found = {
        "model": f"{cell['model']}{stage}",
        "machine": machine.name,
        "precision": cell["precision"],
        "strategy": cell["strategy"],
        "processes": str(cell["processes"]),
        "spread": words.percent(figures["samples"]["spread"]),
    }
    if cell.get("batch_size_per_process") is not None:
        found["batch"] = str(cell["batch_size_per_process"])
    for unit in UNITS:
        if unit in figures:
            found[f"{unit}/s"] = words.number(figures[unit]["median"])
    known: list[tuple[str, Any, Callable[[Any], str]]] = [
        ("MFU", figures["mfu"], words.percent),
        ("efficiency", figures["efficiency"], words.percent),
        ("memory", cell["peak_memory_bytes"], in_words),
        ("J/sample", figures["joules_per_sample"], words.number),
        ("$/million", cost, words.dollars),
    ]
    for name, value, text in known:
        if value is not None:
            found[name] = text(value)
    return found


def columns_of(cells: Sequence[tuple[Machine, Mapping[str, Any]]], *, is_one: bool) -> list[str]:
    """The columns of which a cell has a value.

    Args:
        cells: that were measured, with their machines.
        is_one: whether there is one machine, whose name needs no column.
    """
    held = {name for machine, cell in cells for name in row_of(machine, cell)}
    return [name for name in COLUMNS if name in held and not (is_one and name == "machine")]


def alike(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What several rows have in common, by column: it need not stand in each.

    Example:
        >>> alike(["model", "strategy"], [{"model": "a", "strategy": "ddp"}, {"model": "b", "strategy": "ddp"}])
        {'strategy': 'ddp'}
    """
    found = {name: {row.get(name, "") for row in rows} for name in names if name in COMMON}
    return {name: values.pop() for name, values in found.items() if len(values) == 1 and len(rows) > 1}
