"""The parts of a run, such as the phases of a growing network, as a bar."""

from trainkit.tracking.report.markup import Markup, tag
from trainkit.tracking.report.record import Record

HEIGHT = 26


def parts_bar(record: Record) -> Markup | None:
    """A bar of the run's parts, in proportion to their samples; what has not been reached is grey.

    Args:
        record: of the run.

    Returns:
        None where it has no parts.
    """
    plan, position = record.measured.plan, record.measured.position
    if len(plan) < 2:
        return None
    end = max(record.num_samples or 0, position, plan[-1][0] + 1)
    drawn = []
    for index, (start, name) in enumerate(plan):
        stop = plan[index + 1][0] if index + 1 < len(plan) else end
        colour = f"c{index % 8}" if start <= position else "todo"
        drawn.append(_part(name, start, stop, end, colour))
    words = ", ".join(f"{name} from {start:,}" for start, name in plan)
    label = f"parts of the run by samples: {words}; {position:,} of {end:,} samples are done"
    svg = tag("svg", drawn, width="100%", height=HEIGHT, role="img", aria_label=label)
    return tag("div", svg, class_="parts")


def _part(name: str, start: int, stop: int, end: int, colour: str) -> Markup:
    """An svg of its own, which cuts a name that is too long for it."""
    x, width = (f"{100 * max(samples, 0) / end:.4g}%" for samples in (start, stop - start))
    return tag(
        "svg",
        tag("title", f"{name}: {start:,} to {stop:,} samples"),
        tag("rect", width="100%", height=HEIGHT, class_=colour),
        tag("text", name, x=6, y=17, class_="todo" if colour == "todo" else None),
        x=x,
        width=width,
        height=HEIGHT,
    )
