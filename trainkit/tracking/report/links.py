"""Links: the hosts and ranks of a run, and the plan by which their gradients are summed, as a picture."""

from itertools import pairwise
from typing import Any

from trainkit.planning.reduce_plan import ReducePlan
from trainkit.tracking.report.markup import Markup, tag

BOX, GAP, TOP, STEP = 46, 12, 30, 84
MAX_RANKS, MAX_ROW = 64, 8
CANNOT = "links.json is not of a version that this one can draw"


def links_picture(links: Any) -> Markup | None:
    """Draws what links.json says.

    Args:
        links: its content: `hosts`, lists of ranks; `plan`, of ReducePlan; `why`, lines of text.

    Returns:
        The picture, with the reasons in words below; a sentence where it cannot be drawn; None where there is none.
    """
    if links is None:
        return None
    try:
        hosts = [(str(host["name"]), [int(rank) for rank in host["ranks"]]) for host in links["hosts"]]
        plan = ReducePlan.from_dict(links["plan"])
        why, transport = [str(line) for line in links["why"]], str(links["transport"])
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return tag("p", CANNOT, class_="problem")
    words = f"all-reduce over {transport}: {plan.describe()}"
    lines = [tag("p", words), [tag("p", line, class_="sub") for line in why]]
    if plan.world_size > MAX_RANKS:
        return tag("div", lines, tag("p", f"{plan.world_size} ranks on {len(hosts)} hosts are too many to draw"))
    label = f"{'; '.join(f'host {name}: ranks {_list(ranks)}' for name, ranks in hosts)}; {words}"
    return tag("div", _drawn(hosts, plan, label), lines)


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _drawn(hosts: list[tuple[str, list[int]]], plan: ReducePlan, label: str) -> Markup:
    """Hosts as frames with their ranks as boxes; lines join the ranks that a phase of the plan sums."""
    centres: dict[int, tuple[float, float]] = {}
    shapes, y, widest = [], 0.0, 0
    for name, ranks in hosts:
        num_rows = -(-max(len(ranks), 1) // MAX_ROW)
        width = min(max(len(ranks), 3), MAX_ROW) * (BOX + GAP) + GAP
        height = TOP + num_rows * STEP - (STEP - BOX) + GAP
        widest = max(widest, width)
        shapes.append(tag("rect", x=1, y=y + 1, width=width, height=height, rx=8, class_="host"))
        shapes.append(tag("text", name[:40], x=12, y=y + 20, class_="label"))
        for index, rank in enumerate(ranks):
            centres[rank] = (
                GAP + (index % MAX_ROW) * (BOX + GAP) + BOX / 2,
                y + TOP + (index // MAX_ROW) * STEP + BOX / 2,
            )
        y += height + 24
    lines = [_line(a, b, kind, centres) for a, b, kind in _edges(plan) if a in centres and b in centres]
    boxes = [_box(rank, *centre) for rank, centre in centres.items()]
    size = f"0 0 {widest + 2} {y - 22:g}"
    return tag(
        "svg", shapes, lines, boxes, viewBox=size, width=widest + 2, role="img", aria_label=label, class_="links"
    )


def _box(rank: int, x: float, y: float) -> Markup:
    rect = tag("rect", x=x - BOX / 2, y=y - BOX / 2, width=BOX, height=BOX, rx=6, class_="rank")
    return tag("g", rect, tag("text", f"{rank}", x=x, y=y + 5, text_anchor="middle"))


def _line(a: int, b: int, kind: str, centres: dict[int, tuple[float, float]]) -> Markup:
    (x1, y1), (x2, y2) = centres[a], centres[b]
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _edges(plan: ReducePlan) -> list[tuple[int, int, str]]:
    """Neighbours in each phase: within a group, and between groups."""
    if plan.kind in ("flat", "ring"):
        order = [rank for group in plan.groups for rank in group]
        around = list(zip(order, [*order[1:], order[0]], strict=True))
        return [(a, b, "between") for a, b in (around if len(order) > 2 else around[:1]) if a != b]
    within = [(a, b, "within") for group in plan.groups for a, b in pairwise(group)]
    columns = zip(*plan.groups, strict=True) if plan.kind == "hierarchical" else [[group[0] for group in plan.groups]]
    between = [(a, b, "between") for column in columns for a, b in pairwise(column)]
    return [*within, *between]
