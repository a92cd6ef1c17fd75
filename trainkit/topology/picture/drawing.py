"""Draws a machine as SVG, PNG or PDF: hosts and sockets as boxes, links as lines whose width shows the bandwidth."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.topology.picture.tree import (
    Node,
    describe,
    families,
    figure,
    is_slow,
    nvswitches,
    other,
    ranks,
    rate,
    short,
    trees,
    wire,
)
from trainkit.topology.topology import Host, Link, Topology

COLOURS = {
    "nvlink": "#4c9a2a",
    "nvswitch": "#4c9a2a",
    "xgmi": "#4c9a2a",
    "pcie": "#3b6fb6",
    "socket": "#8e5bb5",
    "loopback": "#c98a1b",
    "nic": "#1496a6",
}
NAMES = {
    "nvlink": "NVLink",
    "nvswitch": "NVLink to NVSwitch",
    "xgmi": "Infinity Fabric",
    "pcie": "PCIe",
    "socket": "between sockets",
    "loopback": "loopback",
    "nic": "network card's wire",
}
FILLS = {"device": "#e6f3dc", "nic": "#dff2f4", "switch": "#e4ecf7", "top": "#ece4f4", "nvswitch": "#d3e8c4"}
EDGES = {"device": "#4c9a2a", "nic": "#1496a6", "switch": "#3b6fb6", "top": "#8e5bb5", "nvswitch": "#4c9a2a"}
SLOW, INK, SOFT = "#c62828", "#22262b", "#6b7280"
ROW, GAP_SWITCH, GAP_TOP, LEAST_WIDTH = 1.15, 0.3, 0.9, 7.0
HEIGHT, INCH, SMALL_INCH, MANY = 0.52, 0.82, 0.68, 14  # of a box, in slots; of a slot; of one of many slots
MARGIN = 0.4
MOST_DRAWN, MOST_RATES = 4, 3  # kinds of hosts; of a kind of link in the legend
FEW_LINKS = 14  # up to here each has its figure beside it

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # x and y of the centre, width, height


def save(topology: Topology, path: Path) -> None:
    """Draws one host of each kind into a file.

    Args:
        topology: to draw.
        path: ends in .svg, .png or .pdf.

    Raises:
        OSError: where the file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trainkit"}):  # text stays text
        draw(topology).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw(topology: Topology) -> "Figure":
    """Draws the figure that `save` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = families(topology)[:MOST_DRAWN]
    pictures = [_Host(topology, numbers) for numbers in groups]
    width = max(picture.width for picture in pictures) + 2 * MARGIN
    heights = [picture.height + MARGIN for picture in pictures]
    inch = INCH if width < MANY else SMALL_INCH
    whole = Figure(figsize=(inch * width, inch * (sum(heights) + 0.8)), dpi=150, facecolor="white")
    FigureCanvasAgg(whole)
    axes = whole.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-MARGIN, width - MARGIN)
    axes.set_ylim(-sum(heights) - 0.8, 0)
    axes.set_aspect("equal")
    top = 0.0
    for picture, height in zip(pictures, heights, strict=True):
        picture.draw(axes, top - MARGIN, (width - 2 * MARGIN - picture.width) / 2)
        top -= height
    _legend(axes, [link for picture in pictures for link in picture.host.links], width, top)
    return whole


def _legend(axes: Any, links: list[Link], width: float, top: float) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for kind, name in NAMES.items():
        rates = sorted({link.bandwidth_gb_per_s for link in links if link.kind == kind})
        if not rates:
            continue
        known = dict.fromkeys(figure(each) for each in rates)
        # One legend entry for each rate; one for the range of many, such as measured ones.
        lines = [(rates[-1], f"{figure(rates[0])} to {figure(rates[-1])}")]
        if len(known) <= MOST_RATES:
            lines = [(next(x for x in rates if figure(x) == word), word) for word in known]
        for each, words in lines:
            label = f"{name}  {words} GB/s"
            handles.append(Line2D([], [], color=COLOURS[kind], linewidth=_width(each), label=label))
    if any(map(is_slow, links)):
        handles.append(Line2D([], [], color=SLOW, linewidth=2.5, label="slower than rated"))
    columns = max(1, min(len(handles), int(width * (INCH if width < MANY else SMALL_INCH) / 1.9)))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(width / 2 - MARGIN, top - 0.02),
        bbox_transform=axes.transData,
        ncols=columns,
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
    )


class _Host:
    """The layout of one kind of host, x from 0 to `width`, y downwards from 0."""

    def __init__(self, topology: Topology, numbers: list[int]) -> None:
        self.host: Host = topology.hosts[numbers[0]]
        self.num_hosts, self.is_alone = len(numbers), len(topology.hosts) == 1
        self.ranks = ranks(topology, numbers[0]) if len(numbers) == 1 else {}
        last = topology.hosts[numbers[-1]].name
        self.title = self.host.name or "this machine"
        if len(numbers) > 1:
            self.title = f"{len(numbers)} hosts like this: {self.title} to {last}"
        self.devices = [device.id for device in self.host.devices]
        self.nics = {nic.id: nic.name for nic in self.host.nics}
        self.tops = trees(self.host)
        num_leaves = sum(1 for top in self.tops for _ in top.leaves())
        self.slot = max(1.0, LEAST_WIDTH / num_leaves)
        self.boxes: dict[str, Box] = {}
        self.regions: dict[str, tuple[float, float]] = {}
        self.depth = max(_depth(top) for top in self.tops)
        self.width = self._place()
        self.foot = -0.75 - self.depth * ROW - HEIGHT / 2  # the lower edge of devices and network cards
        self.links_below = [link for link in self.host.links if link.kind in ("nvlink", "xgmi")]
        spans = [self._span(link) for link in self.links_below]
        self.dip = 0.4 + 0.16 * max(spans) if spans else 0.0
        self.switches = nvswitches(self.host)
        self.base = self.foot - 0.35 - self.dip - 1.0 * len(self.switches)
        self._place_switches()
        self.has_wires = any(wire(self.host, nic) for nic in self.nics)
        self.height = -self.base + (1.05 if self.has_wires else 0.0)

    # -- layout ------------------------------------------------------------------------------------------

    def _place(self) -> float:
        x = 0.45
        for top in self.tops:
            begin = x
            x = self._place_node(top, x, 0)
            self.regions[top.name] = (begin - 0.15, x + 0.15)
            x += GAP_TOP
        return x - GAP_TOP + 0.45

    def _place_node(self, node: Node, x: float, depth: int) -> float:
        """Places a node and its subtree from `x` on; returns the end."""
        if not node.below:
            row = depth if depth == 0 and node.name in self.host.switches else self.depth
            self.boxes[node.name] = (x + self.slot / 2, -0.75 - row * ROW, min(0.88 * self.slot, 1.7), HEIGHT)
            return x + self.slot
        begin = x
        for i, child in enumerate(node.below):
            if i and (child.below or node.below[i - 1].below):
                x += GAP_SWITCH
            x = self._place_node(child, x, depth + 1)
        edge = 0.06 * self.slot
        height = HEIGHT if depth == 0 else 0.8 * HEIGHT
        self.boxes[node.name] = ((begin + x) / 2, -0.75 - depth * ROW, x - begin - 2 * edge, height)
        return x

    def _place_switches(self) -> None:
        for i, switch in enumerate(self.switches):
            ends = [other(x, switch) for x in self.host.links if switch in (x.a, x.b) and x.kind == "nvswitch"]
            if set(self.devices) <= set(ends):
                ends = [*ends, *self.nics]
            xs = [self.boxes[end][0] for end in ends]
            y = self.base + 0.5 + 1.0 * (len(self.switches) - 1 - i)
            self.boxes[switch] = ((min(xs) + max(xs)) / 2, y, max(xs) - min(xs) + 0.88 * self.slot, HEIGHT)

    def _span(self, link: Link) -> float:
        return abs(self.boxes[link.a][0] - self.boxes[link.b][0])

    # -- drawing -----------------------------------------------------------------------------------------------------

    def draw(self, axes: Any, top: float, left: float) -> None:
        """Draws the host with its upper left corner at (left, top)."""
        from matplotlib.patches import FancyBboxPatch

        def frame(x: float, y: float, width: float, height: float, **style: Any) -> None:
            style = {"boxstyle": "round,pad=0,rounding_size=0.12", "mutation_aspect": 1, **style}
            axes.add_patch(FancyBboxPatch((left + x, top + y), width, height, **style))

        for back in range(min(self.num_hosts - 1, 2), 0, -1):
            offset = 0.09 * back
            frame(offset, self.base + offset, self.width, -self.base, fc="#f1f2f4", ec="#c3c8cf", lw=0.8, zorder=0)
        frame(0, self.base, self.width, -self.base, fc="#fafbfc", ec="#9aa1ab", lw=1.1, zorder=0.5)
        room = int(11 * self.width) - len(describe(self.host))
        title = self.title if len(self.title) <= room else self.title[: room - 1] + "…"
        axes.text(left + 0.2, top - 0.24, title, fontsize=10, fontweight="bold", color=INK, va="center")
        names = axes.text(
            left + self.width - 0.2, top - 0.24, describe(self.host), fontsize=8.5, color=SOFT, va="center", ha="right"
        )
        names.set_clip_on(False)
        for name, (begin, end) in self.regions.items():
            if self.boxes[name][2] > self.slot:
                frame(begin, self.foot - 0.14, end - begin, -self.foot + 0.14 - 0.42, fc="#f0f2f5", ec="none", zorder=1)
        self._links(axes, left, top)
        for name, (x, y, width, height) in self.boxes.items():
            kind, words, below = self._words(name)
            frame(
                x - width / 2, y - height / 2, width, height, fc=FILLS[kind], ec=EDGES[kind], lw=1.0, zorder=4,
                boxstyle="round,pad=0,rounding_size=0.07",
            )  # fmt: skip
            lift = 0.09 if below else 0.0
            bold = "bold" if kind in ("device", "top") else "normal"
            text = {"ha": "center", "va": "center", "zorder": 5, "color": INK}
            axes.text(left + x, top + y + lift, words, fontsize=7.5, fontweight=bold, **text)
            if below:
                axes.text(left + x, top + y - 0.12, below, fontsize=5.8, **{**text, "color": SOFT})
        if self.has_wires:
            y = self.base - 0.75
            frame(0, y - 0.2, self.width, 0.4, fc=FILLS["nic"], ec=COLOURS["nic"], lw=1.0, zorder=4)
            text = {"ha": "center", "va": "center", "zorder": 5, "color": INK}
            axes.text(left + self.width / 2, top + y, self._network(), fontsize=8, **text)

    def _words(self, name: str) -> tuple[str, str, str]:
        if name in self.devices:
            own = [str(rank) for rank in self.ranks.get(name, [])]
            word = f"rank{'s' if len(own) > 1 else ''} {short(own)}" if own else ""
            return "device", name, word if len(word) < 16 else f"{len(own)} ranks"
        if name in self.nics:
            known = self.nics[name] if self.nics[name] != name else ""
            return "nic", name, known if len(known) <= 11 else known[:10] + "…"
        if name in self.switches:
            return "nvswitch", "NVSwitch" if len(self.switches) == 1 else name, ""
        return ("top" if name in self.regions else "switch"), name, ""

    def _network(self) -> str:
        wires = [link for nic in self.nics if (link := wire(self.host, nic)) is not None]
        total = figure(sum(link.bandwidth_gb_per_s for link in wires))
        many = f", {self.num_hosts} hosts like this" if self.num_hosts > 1 else ""
        return f"network  {total} GB/s{'' if self.is_alone else ' a host'}{many}"

    def _links(self, axes: Any, left: float, top: float) -> None:
        labels = len(self.host.links) <= FEW_LINKS
        anchors = self._anchors()
        for link, points in self._routes():
            xs, ys = zip(*points, strict=True)
            colour = SLOW if is_slow(link) else COLOURS[link.kind]
            order = {"nic": 2.0, "nvlink": 3.2, "xgmi": 3.2}.get(link.kind, 3.0)
            axes.plot(
                [left + x for x in xs], [top + y for y in ys], color=colour, linewidth=_width(link.bandwidth_gb_per_s),
                solid_capstyle="butt", zorder=order,
            )  # fmt: skip
            if labels or is_slow(link) or link.kind == "socket":
                x, y = (xs[0] + xs[1]) / 2, (ys[0] + ys[1]) / 2
                beside = {"ha": "center", "va": "bottom"} if link.kind == "socket" else {"ha": "left", "va": "center"}
                off = (0.0, 0.07) if link.kind == "socket" else (0.09, 0.0)
                words = f"{rate(link)} GB/s" if link.kind == "socket" else rate(link)
                axes.text(left + x + off[0], top + y + off[1], words, fontsize=6.5, color=colour, zorder=6, **beside)
        for link in self.links_below:
            self._arc(axes, left, top, link, anchors)

    def _routes(self) -> Iterator[tuple[Link, list[tuple[float, float]]]]:
        """The straight links: PCIe trees, sockets, NVSwitches, network cards."""
        for node in _every(self.tops):
            if node.link is None:
                continue
            x, y, _, height = self.boxes[node.name]
            upper = self.boxes[other(node.link, node.name)]
            yield node.link, [(x, y + height / 2), (x, upper[1] - upper[3] / 2)]
        for link in self.host.links:
            if link.kind == "socket" and {link.a, link.b} <= self.boxes.keys():
                a, b = sorted((self.boxes[link.a], self.boxes[link.b]))
                if abs(list(self.regions).index(link.a) - list(self.regions).index(link.b)) == 1:
                    yield link, [(a[0] + a[2] / 2, a[1]), (b[0] - b[2] / 2, b[1])]
            elif link.kind == "nvswitch":
                switch = link.a if link.a in self.switches else link.b
                x, y, _, height = self.boxes[other(link, switch)]
                yield link, [(x, y - height / 2), (x, self.boxes[switch][1])]
        for nic in self.nics:
            out = wire(self.host, nic)
            if out is not None:
                x, y, _, height = self.boxes[nic]
                yield out, [(x, y - height / 2), (x, self.base - 0.6)]

    def _anchors(self) -> dict[tuple[str, str], float]:
        """The x at which each NVLink starts on a device's lower edge, so that none overlap."""
        ends: dict[str, list[str]] = {}
        for link in self.links_below:
            ends.setdefault(link.a, []).append(link.b)
            ends.setdefault(link.b, []).append(link.a)
        found = {}
        for name, others in ends.items():
            x, _, width, _ = self.boxes[name]
            # Arcs do not cross when the longer ones start further out.
            by_place = sorted(others, key=lambda other: -self.boxes[other][0])
            ordered = [o for o in by_place if self.boxes[o][0] < x] + [o for o in by_place if self.boxes[o][0] >= x]
            for i, name_of_other in enumerate(ordered):
                found[name, name_of_other] = x + 0.8 * width * ((i + 0.5) / len(ordered) - 0.5)
        return found

    def _arc(self, axes: Any, left: float, top: float, link: Link, anchors: dict[tuple[str, str], float]) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        a, b = sorted((link.a, link.b), key=lambda name: self.boxes[name][0])
        xa, xb = left + anchors[a, b], left + anchors[b, a]
        y = top + self.foot
        depth = (0.25 + 0.16 * (xb - xa)) * 4 / 3
        curve = Curve(
            [(xa, y), (xa, y - depth), (xb, y - depth), (xb, y)],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        colour = SLOW if is_slow(link) else COLOURS[link.kind]
        width = _width(link.bandwidth_gb_per_s)
        axes.add_patch(PathPatch(curve, fc="none", ec="#fafbfc", lw=width + 1.4, zorder=3.1 + 0.001 * width))
        axes.add_patch(PathPatch(curve, fc="none", ec=colour, lw=width, zorder=3.2))
        if len(self.host.links) <= FEW_LINKS or is_slow(link):
            axes.text(
                (xa + xb) / 2, y - depth * 0.75 - 0.1, rate(link), fontsize=6.5, color=colour, ha="center", va="top"
            )


def _every(nodes: list[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from _every(node.below)


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.below)) if node.below else 0


def _width(gb_per_s: float) -> float:
    """Line width in points: it grows with the square root, because bandwidths differ by a factor of thousands."""
    return min(0.8 + 0.28 * math.sqrt(gb_per_s), 7.0)
