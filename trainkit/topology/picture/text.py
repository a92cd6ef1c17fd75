"""Prints a machine in a terminal: sockets with their PCIe trees, NVLink, the network, and a bandwidth matrix."""

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trainkit.topology.paths import CLASSES, between, nearest_nic, path
from trainkit.topology.picture.tree import (
    Node,
    describe,
    families,
    figure,
    natural,
    nvswitches,
    other,
    ranks,
    rate,
    short,
    trees,
    wire,
)
from trainkit.topology.topology import Host, Link, Topology

STYLES = {
    "nvlink": "green",
    "nvswitch": "green",
    "xgmi": "green",
    "pcie": "blue",
    "socket": "magenta",
    "loopback": "yellow",
    "nic": "cyan",
}
CLASS_STYLES = {
    "NVL": "bold green",
    "NVS": "bold green",
    "XGM": "bold green",
    "MEM": "yellow",
    "PIX": "bold blue",
    "PXB": "blue",
    "PHB": "yellow",
    "SYS": "red",
    "NET": "cyan",
}
LINES = ((0.5, "┈"), (5.0, "─"), (50.0, "━"), (float("inf"), "═"))  # below so many GB/s
CELL = 5  # columns of the matrix: four characters and a space
MOST_HOSTS = 8
WIDE = 72  # from here on two sockets stand side by side


def show(topology: Topology, console: Console) -> None:
    """Prints one host of each kind, with its matrix."""
    groups = families(topology)
    for numbers in groups:
        host = topology.hosts[numbers[0]]
        names = host.name or "this machine"
        if len(numbers) > 1:
            names = f"{len(numbers)} hosts: {names} to {topology.hosts[numbers[-1]].name}"
        console.print(Rule(Text.assemble((names, "bold"), f"  {describe(host)} "), align="left", style="dim"))
        console.print(picture(topology, numbers, console.width))
        console.print(matrix(topology, numbers[0], console.width))
    console.print(_legend(topology))


def picture(topology: Topology, numbers: list[int], width: int) -> RenderableType:
    """Renders one of several equal hosts as boxes.

    Args:
        topology: of the hosts.
        numbers: their indices.
        width: columns of the terminal.
    """
    host = topology.hosts[numbers[0]]
    at = ranks(topology, numbers[0]) if len(numbers) == 1 else {}
    parts: list[RenderableType] = []
    tops = trees(host)
    panels = [_panel(host, top, at) for top in tops]
    between_sockets = [link for link in host.links if link.kind == "socket"]
    while panels:
        if len(panels) == 1 or width < WIDE:
            parts.append(panels.pop(0))
            continue
        joint = _joint(host, tops[-len(panels)].name, tops[-len(panels) + 1].name)
        row = Table.grid(expand=True)
        row.add_column(ratio=1)
        row.add_column(width=6, justify="center", vertical="middle")
        row.add_column(ratio=1)
        row.add_row(panels.pop(0), joint, panels.pop(0))
        parts.append(row)
    if between_sockets and (width < WIDE or len(tops) > 2):
        rates = sorted({figure(link.bandwidth_gb_per_s) for link in between_sockets})
        parts.append(Text(f"  between sockets {' or '.join(rates)} GB/s", style=STYLES["socket"]))
    parts += _nvlink(host)
    parts += _network(topology, numbers)
    return Group(*parts)


def matrix(topology: Topology, number: int, width: int) -> RenderableType:
    """Renders the matrix of a host: GB/s of the paths above the diagonal, their kinds below it.

    Args:
        topology: of the host.
        number: its index.
        width: columns of the terminal; a wider matrix is split.
    """
    host = topology.hosts[number]
    devices = sorted((device.id for device in host.devices), key=natural)
    head = max(map(len, devices))
    nearest = {device: nearest_nic(host, device) for device in devices}
    tail = 2 + max((len(found[0]) + 4 for found in nearest.values() if found), default=-2)
    if len(devices) < 2:
        return Text("")
    cell = CELL if head + len(devices) * CELL + tail <= width else CELL - 1
    per_part = max(1, (width - head - tail) // cell)
    lines = [Text()]
    for begin in range(0, len(devices), per_part):
        columns = devices[begin : begin + per_part]
        title = Text(" " * head)
        for name in columns:
            title.append(name.removeprefix("gpu")[-cell + 1 :].rjust(cell), style="bold")
        if tail > 0:
            title.append("  NIC", style="bold")
        lines.append(title)
        for i, device in enumerate(devices):
            line = Text(device.ljust(head), style="")
            line.stylize("bold")
            for j, name in enumerate(columns, begin):
                line.append_text(_cell(host, device, name, i, j, cell))
            found = nearest[device]
            if found:
                line.append(f"  {found[0]} ")
                line.append(found[1].kind, style=CLASS_STYLES[found[1].kind])
            lines.append(line)
    return Group(*lines)


def _cell(host: Host, a: str, b: str, i: int, j: int, width: int) -> Text:
    if i == j:
        return Text("·".rjust(width), style="dim")
    way = path(host, a, b)
    if way is None:
        return Text("-".rjust(width), style="red")
    word = figure(way.bandwidth_gb_per_s).removeprefix("0") if i < j else way.kind
    if len(word) >= width:
        word = f"{way.bandwidth_gb_per_s:.0f}" if way.bandwidth_gb_per_s >= 1 else word[: width - 1]
    return Text(word.rjust(width), style=CLASS_STYLES[way.kind])


# -- boxes -------------------------------------------------------------------------------------------------------------


def _panel(host: Host, top: Node, at: dict[str, list[int]]) -> Panel:
    rows = Table.grid(expand=True, padding=(0, 1, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    rows.add_column(no_wrap=True, justify="right")
    for lead, node in _lines(top, ""):
        assert node.link is not None
        name, detail, figures = _words(host, node, at)
        line = Text(lead[:-2])
        line.append(lead[-2] + _stroke(node.link) * 2, style=STYLES[node.link.kind])
        line.append(f" {name}", style="bold" if node.name not in host.switches else "")
        rows.add_row(line, detail, figures)
    if not top.below:
        name, detail, figures = _words(host, top, at)
        rows.add_row(Text(name, style="bold"), detail, figures)
    return Panel(rows, title=Text(top.name, style="bold"), title_align="left", box=box.ROUNDED, border_style="dim")


def _lines(node: Node, lead: str) -> Iterator[tuple[str, Node]]:
    for i, child in enumerate(node.below):
        last = i + 1 == len(node.below)
        yield f"{lead}{'╰' if last else '├'} ", child
        yield from _lines(child, lead + ("   " if last else "│  "))


def _words(host: Host, node: Node, at: dict[str, list[int]]) -> tuple[str, Text, Text]:
    """Name, detail, and figures in GB/s."""
    figures = Text()
    if node.link is not None:
        figures.append(rate(node.link), style=STYLES[node.link.kind])
    device = next((device for device in host.devices if device.id == node.name), None)
    if device is not None:
        numbers = at.get(device.id, [])
        word = f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" if numbers else ""
        return node.name, Text(word, style="dim"), figures
    nic = next((nic for nic in host.nics if nic.id == node.name), None)
    if nic is not None:
        out = wire(host, nic.id)
        if out is not None:
            figures.append(f" ⇄ {rate(out)}", style=STYLES["nic"])
        return node.name, Text(nic.name if nic.name != nic.id else "", style="dim"), figures
    return node.name, Text(), figures


def _stroke(link: Link) -> str:
    return next(stroke for below, stroke in LINES if link.bandwidth_gb_per_s < below)


def _joint(host: Host, a: str, b: str) -> Text:
    link = next((link for link in host.links if link.kind == "socket" and {link.a, link.b} == {a, b}), None)
    if link is None:
        return Text()
    return Text(f"{_stroke(link) * 6}\n{figure(link.bandwidth_gb_per_s)}", style=STYLES["socket"], justify="center")


def _nvlink(host: Host) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for switch in nvswitches(host):
        links = [link for link in host.links if link.kind == "nvswitch" and switch in (link.a, link.b)]
        by_rate: dict[str, list[Link]] = {}
        for link in links:
            by_rate.setdefault(rate(link), []).append(link)
        words = [f"{short([other(x, switch) for x in same])}: {word} GB/s each" for word, same in by_rate.items()]
        most = host.facts.get("nvlink_domain_hosts", 1)
        words += [f"joins up to {most} hosts"] if most > 1 else []
        parts.append(_bar(switch, f"{_stroke(links[0]) * 3} " + "; ".join(words), "green"))
    for kind, title in (("nvlink", "NVLink, GB/s"), ("xgmi", "Infinity Fabric, GB/s")):
        direct = [(sorted((link.a, link.b), key=natural), link) for link in host.links if link.kind == kind]
        if not direct:
            continue
        rows = Table.grid(padding=(0, 2, 0, 0))
        by_first: dict[str, list[Text]] = {}
        for (a, b), link in sorted(direct, key=lambda entry: [natural(name) for name in entry[0]]):
            by_first.setdefault(a, []).append(Text.assemble((f"{_stroke(link) * 2} ", "green"), b, f" {rate(link)}"))
        for name, ends in by_first.items():
            rows.add_row(Text(name, style="bold"), *ends)
        parts.append(Panel(rows, title=Text(title, style="bold"), title_align="left", border_style="green"))
    return parts


def _network(topology: Topology, numbers: list[int]) -> list[RenderableType]:
    host = topology.hosts[numbers[0]]
    wires = [link for nic in host.nics if (link := wire(host, nic.id)) is not None]
    if not wires:
        return []
    by_rate: dict[str, int] = {}
    for link in wires:
        by_rate[rate(link)] = by_rate.get(rate(link), 0) + 1
    words = " + ".join(f"{count} x {word}" if len(wires) > 1 else word for word, count in by_rate.items())
    total = figure(sum(link.bandwidth_gb_per_s for link in wires))
    sum_of = f" = {total}" if len(wires) > 1 else ""
    many = len(topology.hosts) > 1
    words = f"{_stroke(wires[0]) * 3} {words}{sum_of} GB/s{' a host' if many else ''}"
    if many:
        words += f", joins {len(topology.hosts)} hosts"
        for number in numbers[:MOST_HOSTS]:
            own = [str(rank) for at in ranks(topology, number).values() for rank in at]
            words += f"\n{topology.hosts[number].name}: ranks {short(own)}"
        if len(numbers) > MOST_HOSTS:
            words += f"\nand {len(numbers) - MOST_HOSTS} more like these"
    return [_bar("network", words, "cyan")]


def _bar(title: str, words: str, style: str) -> Panel:
    return Panel(Text(words), title=Text(title, style="bold"), title_align="left", border_style=style, padding=(0, 1))


def _legend(topology: Topology) -> RenderableType:
    nodes = topology.ranks_by_nvlink_node()
    kinds = {"NET"} if len(nodes) > 1 else set()
    for host in (topology.hosts[numbers[0]] for numbers in families(topology)):
        ids = [device.id for device in host.devices]
        kinds |= {way.kind for a in ids for b in ids if a != b and (way := path(host, a, b)) is not None}
        kinds |= {found[1].kind for a in ids if (found := nearest_nic(host, a)) is not None}
    rows = Table.grid(padding=(0, 2, 0, 0))
    for kind, meaning in CLASSES.items():
        if kind in kinds:
            far = ""
            if kind == "NET":
                parts = between(topology, nodes[0][0], nodes[1][0])
                far = f": {figure(min(way.bandwidth_gb_per_s for _, way in parts))} GB/s a pair" if parts else ""
            rows.add_row(Text(kind, style=CLASS_STYLES[kind]), Text(meaning + far, style="dim"))
    measured = any(link.source == "measured" for host in topology.hosts for link in host.links)
    key = "A line shows GB/s of the link to what is above it, then ⇄ of a network card's wire."
    note = f"{key}\nOne way, " + (
        "of which some were measured" if measured else "nominal: `trainkit topo probe` measures"
    )
    return Group(Text(), rows, Text(note, style="dim"))
