"""A simulation as a chart: throughput, the time of a step, and the effect of other links."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.planning.simulate import Point, WhatIf, knee

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPUTE, EXPOSED, IDEAL, INK, SOFT = "#3b6fb6", "#d9822b", "#9aa1ab", "#22262b", "#6b7280"


def save(title: str, points: Sequence[Point], changes: Sequence[WhatIf], path: Path) -> None:
    """Draws a chart into a file.

    Args:
        title: of the chart.
        points: of `simulate`.
        changes: of `what_if`.
        path: ends in .svg, .png or .pdf.

    Raises:
        OSError: where the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trainkit"}):
        draw(title, points, changes).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw(title: str, points: Sequence[Point], changes: Sequence[WhatIf]) -> "Figure":
    """Draws the chart that `save` writes.

    Args:
        title: of the chart.
        points: of `simulate`.
        changes: of `what_if`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(rect=(0.008, 0.02, 0.984, 0.95), wspace=0.04)
    ratios = [1.1, 1.2, 0.9] if changes else [1.1, 1.2]
    whole = Figure(figsize=(4.4 * len(ratios) + 0.4, 4.2), dpi=150, layout=engine, facecolor="white")
    FigureCanvasAgg(whole)
    whole.suptitle(title, fontsize=11, fontweight="bold", color=INK)
    panels = whole.subplots(1, len(ratios), width_ratios=ratios)
    _scaling(panels[0], points)
    _steps(panels[1], points)
    if changes:
        _others(panels[2], points[-1], changes)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK)
    return whole


def _scaling(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator

    devices = [point.num_devices for point in points]
    first = points[0].samples_per_s / points[0].num_devices / points[0].efficiency
    axes.plot(devices, [first * n for n in devices], "--", color=IDEAL, linewidth=1.2, label="no communication")
    axes.plot(
        devices, [p.samples_per_s for p in points], "o-", color=COMPUTE, linewidth=2, markersize=4, label="predicted"
    )
    if any(point.fast_step_us < point.slow_step_us for point in points):
        slow, fast = (
            [point.samples_per_s * point.step_us / step_us for point, step_us in zip(points, steps, strict=True)]
            for steps in ([p.slow_step_us for p in points], [p.fast_step_us for p in points])
        )
        axes.fill_between(devices, slow, fast, color=COMPUTE, alpha=0.2, linewidth=0, label="8 of 10 published")
    bend = knee(points)
    if bend is not None:
        axes.plot(
            [bend.num_devices], [bend.samples_per_s], "o", color=EXPOSED, markersize=8, zorder=5,
            label=f"knee: below 90 % from {_nodes(bend)}",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(devices, [str(n) for n in devices])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    axes.set_xlabel("devices", fontsize=9, color=INK)
    axes.set_title("samples per second", fontsize=9.5, color=INK, loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _steps(axes: Any, points: Sequence[Point]) -> None:
    places = range(len(points))
    compute = [point.compute_us / 1e3 for point in points]
    exposed = [point.exposed_us / 1e3 for point in points]
    axes.bar(places, compute, color=COMPUTE, width=0.7, label="computation")
    axes.bar(places, exposed, bottom=compute, color=EXPOSED, width=0.7, label="exposed communication")
    for place, point in zip(places, points, strict=True):
        low, high = 100 * point.slow_efficiency, 100 * point.fast_efficiency
        word = f"{100 * point.efficiency:.0f} %" + (f"\n({low:.0f}-{high:.0f})" if low < high else "")
        axes.text(place, point.step_us / 1e3, word, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_xticks(places, [str(point.num_nodes) for point in points])
    axes.set_ylim(0, 1.4 * max(point.step_us for point in points) / 1e3)
    axes.set_xlabel("nodes", fontsize=9, color=INK)
    axes.set_title("a step, ms, and its efficiency (range)", fontsize=9.5, color=INK, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)


def _others(axes: Any, point: Point, changes: Sequence[WhatIf]) -> None:
    rows = [("as it is", point, 0.0), *((change.change, change.point, change.gain) for change in changes)]
    longest = max(other.step_us for _, other, _ in rows) / 1e3
    for place, (name, other, gain) in enumerate(rows):
        compute, exposed = other.compute_us / 1e3, other.exposed_us / 1e3
        axes.barh(place, compute, color=COMPUTE, height=0.36)
        axes.barh(place, exposed, left=compute, color=EXPOSED, height=0.36)
        axes.text(0.01 * longest, place - 0.25, name, va="bottom", ha="left", fontsize=8, color=SOFT)
        word = f" {other.step_us / 1e3:.3g}" + (f"  ({-100 * gain:+.0f} %)" if abs(gain) >= 0.005 else "")
        axes.text(compute + exposed, place, word, va="center", ha="left", fontsize=8, color=INK)
    axes.set_xlim(0, 1.32 * longest)
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_yticks([])
    axes.set_xlabel("ms", fontsize=9, color=INK)
    axes.set_title(f"a step with other links, {_nodes(point)}, ms", fontsize=9.5, color=INK, loc="left")


def _nodes(point: Point) -> str:
    return f"{point.num_nodes} node{'s' if point.num_nodes > 1 else ''}"
