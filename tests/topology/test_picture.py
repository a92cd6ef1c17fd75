"""Pictures: complete, within their width, and nothing on anything else."""

import itertools
import re
from io import StringIO

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from tests.topology import shapes
from trainkit.topology.picture import drawing, text
from trainkit.topology.picture.tree import families, natural, nvswitches, trees
from trainkit.topology.topology import Device, Host, Nic, Topology

SPARSE = Topology(hosts=(Host(name="", devices=(Device(id="gpu0"),)),))
LONG = Topology(
    hosts=(
        Host(
            name="a-host-with-a-very-long-name.of.a.very.long.domain.of.an.example.org",
            devices=tuple(Device(id=f"cpu{i}", kind="cpu") for i in range(3)),
            nics=(Nic(id="nic0", name="enp193s0f0np0"), Nic(id="nic1", name="ibp12s0")),
            switches=("memory",),
            links=(
                *(shapes.link(f"cpu{i}", "memory", "loopback", 1.234567 * 10 ** (3 * i - 3)) for i in range(3)),
                shapes.link("nic0", "network", "nic", 0.00625),
            ),
        ),
    )
)
MACHINES = {**{name: machine() for name, machine in shapes.EVERY.items()}, "sparse": SPARSE, "long": LONG}
MIXED = Topology(hosts=(*shapes.dgx_h100(2).hosts, *shapes.workstation().hosts))
MACHINES["mixed"] = MIXED


def _print(topology, width):
    file = StringIO()
    text.show(topology, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", MACHINES)
def test_the_terminal_picture_is_complete_and_within_its_width(name, width):
    topology = MACHINES[name]
    shown = _print(topology, width)
    assert max(map(len, shown.splitlines())) <= width
    for host in topology.hosts:
        for part in (*host.devices, *host.nics):
            assert re.search(rf"\b{part.id}\b", shown), part.id


def test_the_matrix():
    lines = _print(shapes.dgx_1(), 80).splitlines()
    assert "gpu0    ·   20   20   40   40    9    9    9  nic0 PIX" in lines
    assert "gpu5  SYS  NVL  SYS  SYS  NVL    ·   40   20  nic2 PIX" in lines


def test_hosts_that_are_alike_are_shown_once():
    assert families(MIXED) == [[0, 1], [2]]
    shown = _print(MIXED, 80)
    assert shown.count("nvswitch ─") == 1
    assert "2 hosts: dgx-h100-0 to dgx-h100-1" in shown
    assert "dgx-h100-1: ranks 8-15" in shown and "workstation: ranks 16-17" in shown


def test_every_part_is_in_one_tree():
    for topology in MACHINES.values():
        for host in topology.hosts:
            waiting, names = trees(host), []
            while waiting:
                node = waiting.pop()
                names.append(node.name)
                waiting += node.below
            parts = [*host.switches, *(d.id for d in host.devices), *(n.id for n in host.nics)]
            assert sorted(names + nvswitches(host)) == sorted(parts)


def test_natural_order():
    assert sorted(["gpu10", "gpu9", "cpu1", "gpu"], key=natural) == ["cpu1", "gpu", "gpu9", "gpu10"]


@pytest.mark.parametrize("name", MACHINES)
def test_the_svg_names_every_part(name, tmp_path):
    topology = MACHINES[name]
    drawing.save(topology, tmp_path / "topo.svg")
    svg = (tmp_path / "topo.svg").read_text()
    for host in topology.hosts:
        for part in (*host.devices, *host.nics):
            assert f">{part.id}</text>" in svg, part.id


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_is_drawn_over_anything_else_or_clipped(name):
    topology = MACHINES[name]
    for numbers in families(topology):
        boxes = drawing._Host(topology, numbers).boxes
        for (a, (ax, ay, aw, ah)), (b, (bx, by, bw, bh)) in itertools.combinations(boxes.items(), 2):
            assert abs(ax - bx) >= (aw + bw) / 2 or abs(ay - by) >= (ah + bh) / 2, (a, b)
    figure = drawing.draw(topology)
    figure.draw_without_rendering()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    renderer = figure.canvas.get_renderer()
    (axes,) = figure.axes
    legend = axes.get_legend()
    words = [*axes.texts, *legend.get_texts()] if legend else axes.texts
    extents = [(word.get_text(), word.get_window_extent(renderer)) for word in words if word.get_text()]
    width, height = figure.bbox.width, figure.bbox.height
    for word, extent in extents:
        assert 0 <= extent.x0 <= extent.x1 <= width and 0 <= extent.y0 <= extent.y1 <= height, word
    for (a, first), (b, second) in itertools.combinations(extents, 2):
        assert not first.overlaps(second), (a, b)
