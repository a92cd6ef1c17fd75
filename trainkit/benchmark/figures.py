"""Figures: what follows from the measurements of a grid: medians, MFU, scaling efficiency, cost. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = ("samples", "tokens", "images")
"""What is counted in a second."""
SECONDS_PER_HOUR = 3600.0
MILLION = 1e6


@dataclass(frozen=True)
class Repeated:
    """A figure that was measured several times.

    Args:
        values: of each repeat.

    Example:
        >>> Repeated((8.0, 10.0, 11.0)).median, Repeated((8.0, 10.0, 11.0)).spread
        (10.0, 0.3)
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the repeats."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the lowest to the highest repeat, as a fraction of the median."""
        return (max(self.values) - min(self.values)) / self.median

    def as_json(self) -> dict[str, Any]:
        """As a file of results holds it."""
        return {"values": list(self.values), "median": self.median, "spread": self.spread}


def rates(repeats: Sequence[Mapping[str, float]]) -> dict[str, Repeated]:
    """Samples, tokens and images per second, of those that were counted in all repeats.

    Args:
        repeats: with their `seconds`.

    Example:
        >>> rates([{"seconds": 2.0, "samples": 10.0}, {"seconds": 1.0, "samples": 7.0}])
        {'samples': Repeated(values=(5.0, 7.0))}
    """
    counted = [unit for unit in UNITS if all(unit in repeat for repeat in repeats)]
    return {unit: Repeated(tuple(repeat[unit] / repeat["seconds"] for repeat in repeats)) for unit in counted}


def joules_per_sample(repeats: Sequence[Mapping[str, float]]) -> float | None:
    """The median over repeats of the energy of all processes' GPUs; None: it was not measured.

    Example:
        >>> joules_per_sample([{"joules": 30.0, "samples": 10.0}])
        3.0
    """
    if not all("joules" in repeat for repeat in repeats):
        return None
    return statistics.median(repeat["joules"] / repeat["samples"] for repeat in repeats)


def mfu(
    samples_per_s: float, *, flops_per_sample: float | None, peak_flops_per_s: float | None, processes: int
) -> float | None:
    """Model FLOPs utilisation: the share of the measured peak of all processes that the model's own FLOPs take.

    Args:
        samples_per_s: of all processes.
        flops_per_sample: of forward and backward passes, without what is computed twice.
        peak_flops_per_s: of one process.
        processes: of the job.

    Returns:
        The fraction; None: one of the two is not known.

    Example:
        >>> mfu(50.0, flops_per_sample=2e9, peak_flops_per_s=1e11, processes=2)
        0.5
    """
    if not flops_per_sample or not peak_flops_per_s:
        return None
    return samples_per_s * flops_per_sample / (peak_flops_per_s * processes)


def cost_per_million(samples_per_s: float, usd_per_hour: float) -> float:
    """US dollars for a million samples on a machine of this price.

    Example:
        >>> cost_per_million(1000.0, 3.6)
        1.0
    """
    return usd_per_hour / (samples_per_s * SECONDS_PER_HOUR) * MILLION


def is_measured(cell: Mapping[str, Any]) -> bool:
    """Whether a cell of a file has figures; otherwise it has the `reason` why not."""
    return bool(cell.get("repeats"))


def with_figures(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of a file with what follows from them.

    Args:
        results: with `cells`, `flops` by model and `peaks` by precision.

    Returns:
        The cells by key; those that were measured have `figures`: `samples`, `tokens` and `images` (per second, each
        with `values`, `median` and `spread`), `joules_per_sample`, `flops_per_s` of the model, `mfu`, and `efficiency`
        against one process. What is not known is None.
    """
    cells: dict[str, dict[str, Any]] = {key: dict(cell) for key, cell in results["cells"].items()}
    for cell in cells.values():
        if not is_measured(cell):
            cell.pop("figures", None)
            continue
        per_s = rates(cell["repeats"])
        flops = _fitting(results["flops"].get(cell["model"]), cell, "model_settings", "flops_per_sample")
        peak = _fitting(results["peaks"].get(cell["precision"]), cell, "threads", "flops_per_s")
        speed = per_s["samples"].median
        cell["figures"] = {
            **{unit: found.as_json() for unit, found in per_s.items()},
            "joules_per_sample": joules_per_sample(cell["repeats"]),
            "flops_per_s": speed * flops if flops else None,
            "mfu": mfu(speed, flops_per_sample=flops, peak_flops_per_s=peak, processes=cell["processes"]),
        }
    for cell in cells.values():
        if is_measured(cell):
            cell["figures"]["efficiency"] = efficiency(cell, cells.values())
    return cells


def _fitting(found: Mapping[str, Any] | None, cell: Mapping[str, Any], key: str, value: str) -> float | None:
    """A value that was measured with what the cell was measured with; None: there is none."""
    if found is None or found.get(key) != cell.get(key):
        return None
    known: float | None = found.get(value)
    return known


def efficiency(cell: Mapping[str, Any], cells: Iterable[Mapping[str, Any]]) -> float | None:
    """The share of the speed that as many single processes would have together.

    Args:
        cell: with `figures`.
        cells: among which is that of one process, of the same strategy, else of ddp or single.

    Returns:
        The fraction; None: one process was not measured.
    """
    alone = {
        other["strategy"]: other["figures"]["samples"]["median"]
        for other in cells
        if is_measured(other) and other["processes"] == 1 and _is_alike(cell, other)
    }
    for strategy in (cell["strategy"], "ddp", "single"):
        if strategy in alone:
            return float(cell["figures"]["samples"]["median"] / (cell["processes"] * alone[strategy]))
    return None


def _is_alike(cell: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(cell.get(name) == other.get(name) for name in ("model", "precision", "model_settings", "threads"))
