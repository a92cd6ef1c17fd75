"""Efficiency by the number of cards, with and without NVLink, as a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.planning.chart import COMPUTE, EXPOSED, IDEAL, INK, SOFT
from trainkit.planning.simulate import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (COMPUTE, EXPOSED, "#3f8f5b", "#8a4fa3", "#b03a48", "#5a6472")


def save(title: str, series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draws a chart into a file.

    Args:
        title: of the chart.
        series: points by the name of the links, of `links_advice.scaling`; the machine's own come first.
        path: ends in .svg, .png or .pdf.

    Raises:
        OSError: where the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trainkit"}):
        draw(title, series).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw(title: str, series: Mapping[str, Sequence[Point]]) -> "Figure":
    """Draws the chart that `save` writes.

    Args:
        title: of the chart.
        series: see `save`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(whole)
    whole.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    axes = whole.subplots()
    for (name, points), colour in zip(series.items(), _COLOURS, strict=False):
        devices = [point.num_devices for point in points]
        hidden = [100 * point.efficiency for point in points]
        axes.plot(devices, hidden, "o-", color=colour, linewidth=2, markersize=4, label=name)
        axes.plot(devices, [100 * point.unhidden_efficiency for point in points], ":", color=colour, linewidth=1.5)
    every = sorted({point.num_devices for points in series.values() for point in points})
    axes.axhline(100, linestyle="--", color=IDEAL, linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(count) for count in every])
    axes.minorticks_off()
    axes.set_ylim(0, 106)
    axes.set_xlabel("cards", fontsize=9, color=INK)
    axes.set_title(
        "% of as many times one card; dotted: if the backward pass hid nothing of the communication",
        fontsize=8.5, color=SOFT, loc="left",
    )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    return whole
