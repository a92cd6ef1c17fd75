"""Machines: the results of several, each with a name and a price."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.benchmark import machine, words
from trainkit.benchmark.figures import cost_per_million
from trainkit.benchmark.results import Results
from trainkit.errors import ConfigError, nearest

THIS = "this"
DIGITS = 6
QUIET = 0.1
"""Cores of other programs that are not worth a word."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The results of a machine.

    Args:
        name: as prices call it.
        results: of it.
        usd_per_hour: of the whole machine; None: not known.
    """

    name: str
    results: Results
    usd_per_hour: float | None = None

    @property
    def words(self) -> str:
        """Its parts in a few words."""
        return machine.in_words(self.results.value["machine"])

    def cost(self, cell: Mapping[str, Any]) -> float | None:
        """US dollars for a million samples in a cell that was measured; None: the price is not known."""
        if self.usd_per_hour is None:
            return None
        return cost_per_million(cell["figures"]["samples"]["median"], self.usd_per_hour)

    def notes(self) -> Iterator[str]:
        """What one must know of its figures: the measured peaks, and what memory and energy are of."""
        for precision, peak in self.results.value["peaks"].items():
            if peak.get("flops_per_s"):
                size, dtype = peak.get("size"), peak.get("dtype")
                how = f"torch.{peak.get('by')} of matrices of {size} x {size} in {dtype}"
                yield f"peak of {precision} for MFU, measured here: {words.flops(peak['flops_per_s'])} a process, {how}"
            elif peak.get("reason"):
                yield f"no MFU in {precision}, whose peak was not measured: {peak['reason']}"
        for model, count in self.results.value["flops"].items():
            if count.get("reason"):
                yield f"no MFU of {model}, whose FLOPs were not counted: {count['reason']}"
        cells = self.results.measured
        if any((cell["figures"]["mfu"] or 0) > 1 for cell in cells):
            yield (
                "an MFU above 100 %: convolutions by Winograd's algorithm need fewer multiplications than are counted; "
                "or the peak was measured beside other work"
            )
        for threads in dict.fromkeys(cell.get("threads") for cell in cells):
            if threads is not None:
                yield f"{threads} thread{'s' if threads > 1 else ''} in each process"
        others = [cell["other_cores"] for cell in cells if cell.get("other_cores") is not None]
        if others and max(others) > QUIET:
            yield (
                f"other programs kept {min(others):.1f} to {max(others):.1f} cores busy meanwhile: measure again on an "
                f"idle machine, with --again"
            )
        for kind in dict.fromkeys(cell["memory"] for cell in cells if cell.get("memory")):
            yield f"peak memory: {kind}, of the process that held most"
        for kind in dict.fromkeys(cell["energy"] for cell in cells if cell.get("energy")):
            has_joules = any(cell["figures"]["joules_per_sample"] is not None for cell in cells)
            yield f"joules: {kind}" if has_joules else f"no joules: {kind}"


def prices_of(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The prices that were typed.

    Args:
        texts: each NAME=USD_PER_HOUR.
        names: of the machines.

    Raises:
        ConfigError: for another name, and for what is no price.

    Example:
        >>> prices_of(["this=0.5"], ["this", "other"])
        {'this': 0.5}
    """
    found = {}
    for text in texts:
        name, _, amount = text.rpartition("=")
        if name not in names:
            raise ConfigError(
                f"--price={text}: must be NAME=USD_PER_HOUR with NAME of {', '.join(names)}.{nearest(name, names)}"
            )
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf"):
            raise ConfigError(f"--price={text}: must be NAME=USD_PER_HOUR, a number above 0, such as {name}=2.5")
    return found


def name_of(path: Path) -> str:
    """What a file of another machine is called.

    Raises:
        ConfigError: where it would be called as this machine.
    """
    if path.stem == THIS:
        raise ConfigError(f"--compare={path}: {THIS!r} is this machine; give the file another name")
    return path.stem


def as_json(machines: Sequence[Machine]) -> dict[str, Any]:
    """The figures of machines, as a page's script draws them."""
    cells = [_cell(number, one, cell) for number, one in enumerate(machines) for cell in one.results.measured]
    return {
        "machines": [{"name": one.name, "words": one.words, "usd_per_hour": one.usd_per_hour} for one in machines],
        "cells": cells,
    }


def _cell(number: int, one: Machine, cell: Mapping[str, Any]) -> dict[str, Any]:
    figures, cost = cell["figures"], one.cost(cell)
    shown: dict[str, Any] = {
        unit: {
            "median": _short(figures[unit]["median"]),
            "low": _short(min(figures[unit]["values"])),
            "high": _short(max(figures[unit]["values"])),
        }
        for unit in ("samples", "tokens", "images")
        if unit in figures
    }
    single = {
        "mfu": figures["mfu"],
        "efficiency": figures["efficiency"],
        "memory": cell["peak_memory_bytes"],
        "joules": figures["joules_per_sample"],
        "cost": cost,
    }
    shown |= {name: {"median": _short(value)} for name, value in single.items() if value is not None}
    names = ("model", "precision", "strategy", "processes", "batch_size")
    return {"machine": number, **{name: cell[name] for name in names}, **shown}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
