"""Assessment: the metrics of an evaluation with their intervals and baselines, and the verdict on the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainkit.evaluation.comparison import Better, Comparison
from trainkit.evaluation.interval import FEW, Interval
from trainkit.tracking.console import number

Baselines = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Verdict:
    """Whether a model has learnt more than something simple.

    Args:
        text: one line.
        beats_baseline: of the metric that decides, every baseline; None: there is none.
    """

    text: str
    beats_baseline: bool | None


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What was measured on held-out samples, and what it is worth.

    Args:
        metrics: values by name.
        intervals: of metrics that have one.
        baselines: by metric and name.
        better: whether `lower` or `higher` is, by metric.
        ideals: names in `baselines` that nobody expects to be beaten, such as real images against real ones.
        decisive: the metric that decides; None, or one without baselines: the first that has some.

    Example:
        >>> found = Assessment(metrics={"loss": 0.9}, baselines={"loss": {"a guess": 1.5}}, better={"loss": "lower"})
        >>> found.verdict().text
        'the model beats its baseline in loss: 0.9 (no interval); a guess 1.5'
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    baselines: Baselines = field(default_factory=dict)
    better: Mapping[str, Better] = field(default_factory=dict)
    ideals: Sequence[str] = ()
    decisive: str | None = None

    def comparisons(self, metric: str) -> list[Comparison]:
        """Returns a metric beside each baseline that it is to beat; none where it is not known which is better."""
        if metric not in self.metrics or metric not in self.better:
            return []
        return [
            Comparison(
                metric=metric,
                value=self.metrics[metric],
                baseline=name,
                reference=value,
                better=self.better[metric],
                interval=self.intervals.get(metric),
            )
            for name, value in self.baselines.get(metric, {}).items()
            if name not in self.ideals
        ]

    def verdict(self) -> Verdict:
        """Says in one line whether the model beats its baselines, by the metric that decides."""
        compared = {name: found for name in self.metrics if (found := self.comparisons(name))}
        if not compared:
            return Verdict(self._why_none(), None)
        decisive = self.decisive if self.decisive in compared else next(iter(compared))
        missed = [one for one in compared[decisive] if one.result != "better"]
        others = [
            one for name, found in compared.items() if name != decisive for one in found if one.result != "better"
        ]
        also = (
            f"; nor in {_named(others)}"
            if missed and others
            else f"; it does not in {_named(others)}"
            if others
            else ""
        )
        measured, plural = f"in {decisive}: {self.measured(decisive)}", "s" if len(compared[decisive]) > 1 else ""
        if missed:
            which = f"its baseline{'s' if len(missed) > 1 else ''}"
            told = "; ".join(map(str, missed))
            return Verdict(f"the model does not beat {which} {measured}; {told}{also}", False)
        named = ", ".join(f"{one.baseline} {number(one.reference)}" for one in compared[decisive])
        return Verdict(f"the model beats its baseline{plural} {measured}; {named}{also}", True)

    def measured(self, metric: str) -> str:
        """Returns the value and the interval of a metric as text."""
        interval = self.intervals.get(metric)
        few = f" of only {interval.num} {interval.unit}" if interval and interval.num < FEW else ""
        return f"{number(self.metrics[metric])} {self._ends(metric)}{few}"

    def lines(self) -> Iterator[str]:
        """Yields a line for each metric that has an interval or a baseline."""
        for name in self.metrics:
            if name in self.intervals or self.baselines.get(name):
                yield f"{name} {number(self.metrics[name])} {self._ends(name)}{self._beside(name)}"

    def table(self) -> Iterator[str]:
        """Yields a line for every metric, which begins with its name and its value in six digits."""
        for name, value in self.metrics.items():
            has_more = name in self.intervals or self.baselines.get(name)
            yield f"{name} {value:.6g}" + (f" {self._ends(name)}{self._beside(name)}" if has_more else "")

    def _ends(self, metric: str) -> str:
        interval = self.intervals.get(metric)
        return f"[{number(interval.low)}, {number(interval.high)}]" if interval else "(no interval)"

    def _beside(self, metric: str) -> str:
        interval = self.intervals.get(metric)
        source = f" ({interval.source()})" if interval else ""
        return source + "".join(
            f"; {'ideal: ' if name in self.ideals else ''}{name} {number(value)}"
            for name, value in self.baselines.get(metric, {}).items()
        )

    def facts(self) -> dict[str, Any]:
        """Returns everything but the metrics, and the verdict, JSON-able; see `of`."""
        verdict = self.verdict()
        return {
            "intervals": {name: list(interval.bounds) for name, interval in self.intervals.items()},
            "baselines": {metric: dict(values) for metric, values in self.baselines.items()},
            "verdict": {"text": verdict.text, "beats_baseline": verdict.beats_baseline},
            "held_out": {name: interval.facts() for name, interval in self.intervals.items()},
            "better": dict(self.better),
            "ideals": list(self.ideals),
            "decisive": self.decisive,
        }

    @classmethod
    def of(cls, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> "Assessment":
        """Makes one of metrics and `facts()`; those of an older trainkit may lack any part."""
        held_out = facts.get("held_out", {})
        intervals = facts.get("intervals", {})
        return cls(
            metrics=metrics,
            intervals={name: Interval.of(bounds, held_out.get(name, {})) for name, bounds in intervals.items()},
            baselines=facts.get("baselines", {}),
            better=facts.get("better", {}),
            ideals=tuple(facts.get("ideals", ())),
            decisive=facts.get("decisive"),
        )

    def _why_none(self) -> str:
        unknown = [name for name in self.baselines if name in self.metrics and name not in self.better]
        if unknown:
            return f"no verdict: the recipe does not say whether lower or higher {', '.join(unknown)} is better"
        return "no verdict: the recipe has no baseline, so nobody knows whether the model has learnt anything"


def _named(missed: Sequence[Comparison]) -> str:
    by_metric: dict[str, list[str]] = {}
    for one in missed:
        by_metric.setdefault(one.metric, []).append(f"{one.baseline} {number(one.reference)}")
    return ", ".join(f"{metric} ({', '.join(names)})" for metric, names in by_metric.items())
