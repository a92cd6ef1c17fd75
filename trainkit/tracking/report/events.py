"""Events: what happened during a run besides its steps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import NEXT, Record

KINDS = (
    ("rewind", re.compile(r"Returns to .* will leave this batch out")),
    ("skipped", re.compile(r"The step is skipped")),
    ("straggler", re.compile(r"^rank \d+ on .* is slow in ")),
    ("resume", re.compile(r"^the run continues (after|from) step ")),
    ("failure", re.compile(r"could not be written|cannot write|failed|hangs")),
)
MAX_EVENTS = 500
MAX_TEXT = 2000  # characters of a message


@dataclass(frozen=True)
class Event:
    """One line of a run's messages, or a checkpoint.

    Args:
        step: steps done.
        seconds: since the first line; None: not known.
        kind: `rewind`, `skipped`, `straggler`, `resume`, `failure`, `checkpoint`, or `note` for any other.
        text: the message.
    """

    step: int
    seconds: float | None
    kind: str
    text: str


def events(record: Record) -> list[Event]:
    """Returns the events of a run in the order of their steps."""
    found = [Event(step, None, "checkpoint", f"checkpoint of step {step:,}") for step in record.checkpoints]
    for step, time, text in record.file.messages:
        if not text.startswith(NEXT):
            kind = next((kind for kind, pattern in KINDS if pattern.search(text)), "note")
            found.append(Event(step, time - record.file.started, kind, text[:MAX_TEXT]))
    return sorted(found, key=lambda event: event.step)


def events_section(records: Sequence[Record]) -> list[Markup]:
    """The events of each run as lists."""
    found = [(number, record, events(record)) for number, record in enumerate(records)]
    lists = [
        tag(
            "details",
            tag("summary", _title(record, happened, len(records))),
            _list(happened),
            data_run=number,
            open=True,
        )
        for number, record, happened in found
        if happened
    ]
    return [tag("h2", "Events"), *lists] if lists else []


def _title(record: Record, happened: Sequence[Event], num_runs: int) -> str:
    counts = {kind: sum(event.kind == kind for event in happened) for kind in dict.fromkeys(e.kind for e in happened)}
    words = ", ".join(f"{number} x {kind}" for kind, number in counts.items())
    return f"{record.name}: {words}" if num_runs > 1 else words


def _list(happened: Sequence[Event]) -> Markup:
    shown = happened[-MAX_EVENTS:]
    rows = [
        tag(
            "li",
            tag("span", f"step {event.step:,}", class_="at"),
            tag("b", event.kind, class_=f"kind {event.kind}"),
            event.text,
        )
        for event in shown
    ]
    left = len(happened) - len(shown)
    return tag("ol", tag("li", f"{left:,} earlier ones are not shown") if left else None, rows, class_="events scroll")
