"""Chart: one panel of curves as SVG, without any library."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from trainkit.tracking.series import Measured, Series, family_of, running_mean, thinned, with_gaps

WIDTH, HEIGHT = 560, 300  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 12, 34  # pixels around its axes
MAX_POINTS = 400  # of a line
MAX_NAMED = 10  # milestones that get a name
COLOURS = ("#2f6fde", "#e0672b", "#2a9d6a", "#b2477f", "#8a6fd1", "#b98a00")
GREYS = ("#444", "#777", "#999")


class Chart:
    """One family of metrics over the steps: losses, or what evaluations measured.

    Args:
        family: the last word of the names of the metrics.
        measured: of the run.
        last_step: where the horizontal axis ends.
    """

    def __init__(self, family: str, measured: Measured, last_step: float) -> None:
        self.family, self.measured, self.last_step = family, measured, max(last_step, 1)
        self._legend: list[str] = []
        self._lines: list[str] = []
        self._values: list[np.ndarray] = []
        self._drawn: list[tuple[np.ndarray, np.ndarray, str, str]] = []
        self._collect()
        self.low, self.high = self._range()

    def svg(self) -> str:
        """Returns the panel with its title and legend, as HTML."""
        parts = [*self._axes(), *self._milestones(), *(self._line(*line) for line in self._drawn)]
        return (
            f'<figure class="chart"><figcaption>{escape(self.family)}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.family)} over steps">'
            f"{''.join(parts)}</svg><p class=legend>{''.join(self._legend)}</p></figure>"
        )

    def _collect(self) -> None:
        training, evaluation = _of(self.family, self.measured.training), _of(self.family, self.measured.evaluation)
        for index, (name, (steps, values)) in enumerate(training.items()):
            smooth, colour = running_mean(values), COLOURS[index % len(COLOURS)]
            self._add(*thinned(steps, values, MAX_POINTS), colour, 'opacity=".28"')
            self._add(*thinned(steps, smooth, MAX_POINTS), colour, 'stroke-width="1.8"', name)
            self._values += [np.quantile(values, (0.01, 0.99)), smooth[len(smooth) // 50 :]]
        for index, (name, (steps, values)) in enumerate(evaluation.items()):
            colour = COLOURS[(index + len(training)) % len(COLOURS)]
            self._add(
                *with_gaps(steps, values, self.measured.training), colour, 'stroke-width="1.5" class="dots"', name
            )
            self._values.append(values)
        index = 0
        for metric, lines in self.measured.baselines.items():
            for name, (steps, values) in lines.items() if family_of(metric) == self.family else ():
                self._add(*_steps(steps, values, self.last_step), GREYS[index % 3], 'stroke-dasharray="6 4"', name)
                self._values.append(values)
                index += 1

    def _add(self, steps: np.ndarray, values: np.ndarray, colour: str, style: str, name: str | None = None) -> None:
        self._drawn.append((steps, values, colour, style))
        if name is not None:
            dashed = " class=dashed" if "dasharray" in style else ""
            last = values[np.isfinite(values)][-1:] if len(values) else values
            value = f" {last[0]:.4g}" if len(last) else ""
            self._legend.append(f'<span><i{dashed} style="border-color:{colour}"></i>{escape(name)}{value}</span>')

    def _range(self) -> tuple[float, float]:
        finite = np.concatenate([np.asarray(values, float).ravel() for values in self._values] or [np.zeros(1)])
        finite = finite[np.isfinite(finite)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin

    def _x(self, step: np.ndarray | float) -> np.ndarray | float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step

    def _y(self, value: np.ndarray | float) -> np.ndarray | float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def _axes(self) -> Iterator[str]:
        for value in _ticks(self.low, self.high):
            y = self._y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>'
        for step in _ticks(0, self.last_step):
            x, y = self._x(step), HEIGHT - BOTTOM + 18
            yield f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{_label(step)}</text>'
        yield f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>'

    def _milestones(self) -> Iterator[str]:
        shown = [(step, name) for step, name in self.measured.milestones if 0 < step <= self.last_step]
        for step, name in shown:
            x = self._x(step)
            yield (
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
                f"<title>{escape(name)}, from step {step:,.0f}</title></line>"
            )
            if len(shown) <= MAX_NAMED:
                turned = f"rotate(-90 {x - 4:.1f} {TOP + 2})"
                yield (
                    f'<text class="name" x="{x - 4:.1f}" y="{TOP + 2}" text-anchor="end" transform="{turned}">'
                    f"{escape(name)}</text>"
                )

    def _line(self, steps: np.ndarray, values: np.ndarray, colour: str, style: str) -> str:
        path, dots, is_open = [], [], False
        clipped = np.clip(values, self.low, self.high)
        for x, y in zip(np.atleast_1d(self._x(steps)), np.atleast_1d(self._y(clipped)), strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                is_open = False
                continue
            path.append(f"{'L' if is_open else 'M'}{x:.1f} {y:.1f}")
            dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' if "dots" in style else "")
            is_open = True
        return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" {style}/>{"".join(dots)}'


def _of(family: str, series: Series) -> Series:
    return {name: points for name, points in series.items() if family_of(name) == family}


def _steps(steps: np.ndarray, values: np.ndarray, last_step: float) -> tuple[np.ndarray, np.ndarray]:
    """A line that holds each value up to the next, from the left edge on."""
    corners = [0, *np.repeat(steps[1:], 2), last_step]
    return np.array(corners, float), np.repeat(values, 2).astype(float)


def _ticks(low: float, high: float) -> Sequence[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    size = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.ceil(low / size), math.floor(high / size)
    return [number * size for number in range(first, last + 1)]


def _label(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"
