"""Tables of common machines side by side: what is predicted, and what was published."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import median

from docs.generators.markdown import svg, table
from trainkit.errors import TopologyError
from trainkit.forecast.published_scaling import GAN_SOURCE, PublishedScaling, gan_scaling, published_scaling
from trainkit.forecast.speed import speed_of
from trainkit.planning import efficiency_chart
from trainkit.planning.changed_host import with_copy_engines
from trainkit.planning.changes import TRAFFIC
from trainkit.planning.links_advice import LinksAdvice, advise_links, scaling
from trainkit.planning.simulate import Point, simulate
from trainkit.planning.workload import Workload, workload
from trainkit.topology.cards import Precision
from trainkit.topology.gpus import gpus
from trainkit.topology.presets import preset
from trainkit.topology.topology import Topology

ENGINES = " with copy engines"
MACHINES: dict[str, str | tuple[str, int]] = {
    "2 x RTX 3090": "2x3090",
    "2 x RTX 3090, bridge": "2x3090+nvlink",
    "4 x RTX 3090": "4x3090",
    "4 x RTX 3090, 2 bridges": "4x3090+nvlink",
    "4 x RTX 3090, copy engines": f"4x3090{ENGINES}",
    "8 x RTX 3090": "8x3090",
    "2 x RTX 4090": "2x4090",
    "4 x RTX 4090": "4x4090",
    "4 x RTX 4090, copy engines": f"4x4090{ENGINES}",
    "8 x RTX 4090": "8x4090",
    "4 x RTX 5090": "4x5090",
    "4 x RTX A6000": "4xA6000",
    "4 x RTX A6000, 2 bridges": "4xA6000+nvlink",
    "8 x RTX 6000 Ada": "8x6000 Ada",
    "8 x L40S": "8xL40S",
    "8 x A100 PCIe": "8xA100 PCIe",
    "8 x A100 PCIe, 4 bridges": "8xA100 PCIe+nvlink",
    "8 x H100 PCIe, 4 bridges": "8xH100 PCIe+nvlink",
    "8 x H200 NVL, 2 four-way bridges": ("h200-nvl", 1),
    "DGX-1 (8 x V100; AWS p3.16xlarge)": ("dgx-1", 1),
    "HGX A100 (8; AWS p4d, Azure ND A100 v4)": ("dgx-a100", 1),
    "HGX H100 (8; AWS p5, Azure ND H100 v5)": ("dgx-h100", 1),
    "HGX B200 (8)": ("dgx-b200", 1),
    "8 x MI300X": ("mi300x", 1),
    "4 x GH200": ("gh200", 1),
    "4 hosts of 8 x A100 PCIe, 100 Gb/s each": ("pcie-8", 4),
    "4 hosts of HGX A100, 8 x 200 Gb/s each": ("dgx-a100", 4),
}
"""Name -> text of `--gpus`, which ENGINES may follow, or a preset and the number of hosts."""
RECIPES = ("bert-base", "bert-large", "progressive_gan-64", "progressive_gan-256", "progressive_gan-1024")
PICTURE = ("8 x RTX 4090", "8 x A100 PCIe", "8 x A100 PCIe, 4 bridges", "HGX A100 (8; AWS p4d, Azure ND A100 v4)")
VERDICTS = (
    ("2 x RTX 3090", "bert-large"),
    ("4 x RTX 4090", "bert-large"),
    ("4 x RTX 4090", "progressive_gan-64"),
    ("8 x L40S", "bert-large"),
    ("8 x A100 PCIe", "bert-large"),
    ("HGX H100 (8; AWS p5, Azure ND H100 v5)", "bert-large"),
    ("HGX H100 (8; AWS p5, Azure ND H100 v5)", "progressive_gan-1024"),
)


def machines(what: str, *words: str) -> str:
    """A table, the picture or the list of verdicts: `efficiency STRATEGY PRECISION`, `gain`, `published` and so on."""
    parts: dict[str, Callable[..., str]] = {
        "efficiency": efficiency,
        "gain": gain,
        "published": published,
        "gan": gan,
        "verdicts": verdicts,
        "picture": picture,
    }
    return parts[what](*words)


def efficiency(strategy: str, precision: Precision) -> str:
    """The predicted efficiency of each machine with each recipe.

    Args:
        strategy: one of TRAFFIC.
        precision: of the computation; V100s have fp16 in place of bf16, and fp32 in place of tf32.
    """
    rows = [[name, *(_cell(_point(name, recipe, strategy, precision)) for recipe in RECIPES)] for name in MACHINES]
    return table(["machine", *RECIPES], rows)


def gain() -> str:
    """What NVLink or other changes save of a step of each recipe, under DDP in bf16."""
    rows = []
    for name in MACHINES:
        cells = []
        for recipe in RECIPES:
            advice = _advice(name, recipe)
            gains = {word: _gain(advice, word) for word in ("without ", "bridge", "copy engines", "NVSwitch")}
            cells.append(_gains({word: gain for word, gain in gains.items() if gain is not None}))
        rows.append([name, *cells])
    return table(["machine", *RECIPES], rows)


def published() -> str:
    """Published scaling beside what is predicted for the same batches, and the errors."""
    rows = published_scaling()
    header = ["machine", "model, precision, tokens", "published", "predicted", "source"]
    body = [
        [
            f"{row.num_devices} x {row.machine}"
            if "DGX" not in row.machine
            else f"{row.machine}, {row.num_devices} GPUs",
            f"{row.model}, {row.precision}, {row.sequence_length}",
            _percent(row.published),
            f"{100 * row.unhidden:.0f} to {_percent(row.predicted)}",
            row.source,
        ]
        for row in rows
    ]
    return f"{table(header, body)}\n\n{errors(rows)}"


def errors(rows: Sequence[PublishedScaling]) -> str:
    """How far the predictions are from what was published, in a sentence."""
    inside = sum(row.unhidden <= row.published <= row.predicted for row in rows)
    above = sum(row.published > row.predicted for row in rows)
    hidden = [abs(row.predicted - row.published) for row in rows]
    serial = [abs(row.unhidden - row.published) for row in rows]
    worst = max(rows, key=lambda row: row.predicted - row.published)
    return (
        f"Of {len(rows)} published figures {inside} lie within the predicted range, {above} above it and "
        f"{len(rows) - inside - above} below it. The median distance is {100 * median(hidden):.1f} points to the upper "
        f"end and {100 * median(serial):.1f} to the lower one; the largest to the upper one is "
        f"{100 * max(hidden):.0f} points, of {worst.num_devices} x {worst.machine} in {worst.precision}."
    )


def gan() -> str:
    """The published training times of the GAN beside what is predicted at its largest resolution."""
    rows = [
        [f"{row.num_devices} x V100", _percent(row.published), f"{100 * row.unhidden:.0f} to {_percent(row.predicted)}"]
        for row in gan_scaling()
    ]
    return f"{table(['machine', 'published', 'predicted at 1024x1024'], rows)}\n\nSource: {GAN_SOURCE}"


def verdicts() -> str:
    """What `trainkit topo advise` answers for some machines and recipes."""
    return "\n".join(f"- **{name}, {recipe}.** {_advice(name, recipe).verdict()}" for name, recipe in VERDICTS)


def picture() -> str:
    """SVG: efficiency of BERT-large by the number of cards."""
    series = {name: _by_number(name) for name in PICTURE}
    title = "BERT-large, bf16, DDP: predicted efficiency"
    return svg(efficiency_chart.draw(title, series), title)


# -- inside ------------------------------------------------------------------------------------------------------------


@cache
def _machine(name: str) -> tuple[Topology, int]:
    given = MACHINES[name]
    if not isinstance(given, str):
        return preset(given[0]), given[1]
    machine = gpus(given.removesuffix(ENGINES))
    engines = with_copy_engines(machine.hosts[0]) if given.endswith(ENGINES) else None
    return (Topology(hosts=(engines,), source=machine.source), 1) if engines else (machine, 1)


def _for_card(machine: Topology, precision: Precision) -> Precision:
    """The precision, or what a card without it has in its place."""
    try:
        speed_of(machine.hosts[0].devices[0], precision)
    except TopologyError:
        return "fp16" if precision == "bf16" else "fp32"
    return precision


def _work(name: str, recipe: str, precision: Precision) -> Workload:
    machine, _ = _machine(name)
    own = _for_card(machine, precision)
    return workload(recipe, tflops=speed_of(machine.hosts[0].devices[0], own, recipe).tflops, precision=own)


def _point(name: str, recipe: str, strategy: str, precision: Precision) -> Point:
    machine, nodes = _machine(name)
    return simulate(machine, [nodes], _work(name, recipe, precision), traffic=TRAFFIC[strategy])[0]


@cache
def _advice(name: str, recipe: str) -> LinksAdvice:
    machine, nodes = _machine(name)
    return advise_links(machine, _work(name, recipe, "bf16"), num_nodes=nodes)


def _by_number(name: str) -> list[Point]:
    return scaling(_advice(name, "bert-large"))["as it is"]


def _gain(advice: LinksAdvice, word: str) -> float | None:
    return next((change.gain for change in advice.changes if word in change.what), None)


def _gains(gains: Mapping[str, float]) -> str:
    if "without " in gains:
        return f"{-100 * gains['without ']:+.0f} % without"
    return ", ".join(f"{-100 * gain:+.0f} % {word}" for word, gain in gains.items()).replace("-0 %", "0 %")


def _cell(point: Point) -> str:
    return f"{100 * point.efficiency:.0f} ({100 * point.unhidden_efficiency:.0f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
