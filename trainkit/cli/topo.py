"""`trainkit topo`: shows and measures links, plans all-reduces over them, and simulates jobs on many machines."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import advise, amounts, machine, measured
from trainkit.cli.output import check_format, check_picture, console, count, in_time, rank, say, writing
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from trainkit.planning.simulate import Point

PLAIN_WIDTH = 120
PATIENCE_S = 2.0
BAR = 40  # characters
RECIPES = "bert-base, bert-large (default), progressive_gan-64 ... progressive_gan-1024"
RANGE_NOTE = "of 8 in 10 published all-reduces of such machines and sizes"
EXAMPLES = {
    "topo": """\
examples:
  trainkit topo show                                    this machine
  trainkit topo show --preset dgx-1 --output dgx-1.svg
  torchrun --nproc-per-node=8 -m trainkit.cli topo probe --output links.json
  trainkit topo plan --bytes 25MB --topology links.json
  trainkit topo simulate --preset dgx-h100 --nodes 1..128 --recipe bert-large
  trainkit topo advise --gpus 4x3090                    do I need NVLink?
""",
    "show": """\
examples:
  trainkit topo show
  trainkit topo show --preset dgx-h100 --nodes 4 --output cluster.png
  trainkit topo show --topology links.json --json
  trainkit topo show --gpus 4x3090                      what one would build from these cards
  nvidia-smi topo -m | trainkit topo show --topology -
  trainkit topo show --topology host1.txt --topology host2.txt
""",
    "probe": """\
examples:
  torchrun --nproc-per-node=8 -m trainkit.cli topo probe --output links.json
  torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 \\
      -m trainkit.cli topo probe --output links.json        on both machines; then: comm.topology=links.json
""",
    "plan": """\
examples:
  trainkit topo plan --bytes 25MB --preset pcie-8-nvlink-pairs --nodes 2
  trainkit topo plan --bytes 100MiB --topology links.json --wire-dtype int8
  trainkit topo plan --gpus 8x4090
  ssh node1 nvidia-smi topo -m > node1.txt; trainkit topo plan --topology node1.txt --nodes 4 --nic-gbit 200
""",
    "simulate": """\
examples:
  trainkit topo simulate --preset dgx-h100 --nodes 1..128 --recipe bert-large
  trainkit topo simulate --preset workstation-2 --nodes 1,2,4 --recipe bert-base --output scaling.png
  trainkit topo simulate --gpus 4x3090 --nodes 1..4 --nic-gbit 25
""",
    "bench": """\
examples:
  torchrun --nproc-per-node=2 -m trainkit.cli topo bench
  torchrun --nproc-per-node=8 -m trainkit.cli topo bench --sizes 1MB..1GB --output bench.json
""",
}


def add_parser(commands: Any) -> None:
    """Adds `topo` and its subcommands to `commands`, of argparse."""
    topo = commands.add_parser(
        "topo",
        help="show and measure links, plan all-reduces, simulate jobs",
        description="Show and measure links between GPUs, network cards and hosts; plan all-reduces; simulate jobs.",
        epilog=EXAMPLES["topo"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = topo.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str, description: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = own.add_parser(
            name,
            help=help,
            description=description,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    show = add(
        "show", _show, "show the links of a machine", "Show the links of a machine, its bandwidth matrix, and advice."
    )
    machine.add_machine(show)
    show.add_argument("--output", type=Path, metavar="FILE", help="draw it into a file: .svg, .png or .pdf")
    show.add_argument("--json", action="store_true", help="print it as JSON, which --topology reads")

    probe = add("probe", measured.probe, "measure links", "Measure links between the processes that torchrun started.")
    _add_topology_of_ranks(probe)
    machine.add_device(probe)
    probe.add_argument("--output", type=Path, metavar="FILE", help="write the topology with its measured links as JSON")

    plan = add(
        "plan",
        _plan,
        "show the plans of an all-reduce",
        "Show the plans of an all-reduce, their predicted times, and the choice.",
    )
    machine.add_machine(plan)
    plan.add_argument("--bytes", default="25MB", metavar="SIZE", help="of a bucket of gradients; default: 25MB")
    plan.add_argument("--wire-dtype", default="exact", metavar="FORMAT", help="exact (default), fp16, bf16 or int8")
    plan.add_argument("--all", action="store_true", help="all sizes of chunks, not only the best of each kind")

    _add_simulate(
        add("simulate", _simulate, "predict the step time on many machines", "Predict the step time of a job.")
    )

    advise.add_parser(own)

    _add_bench(
        add(
            "bench",
            measured.bench,
            "measure bus bandwidth",
            "Measure all-reduces over the processes that torchrun started, as nccl-tests do.",
        )
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_topology_of_ranks(parser)
    parser.add_argument("--sizes", default="1KB..64MB", metavar="SIZES", help="default: 1KB..64MB, doubling")
    parser.add_argument(
        "--plan", default="flat", metavar="KIND", help="auto, flat (default), ring, hierarchical or leader"
    )
    machine.add_device(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows as JSON")


def _add_topology_of_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        type=Path,
        metavar="FILE",
        help="of all ranks: a topology file, NCCL's XML or the output of `nvidia-smi topo -m`; default: read",
    )


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    machine.add_machine(parser, nodes="1..128")
    parser.add_argument("--recipe", default="bert-large", metavar="NAME", help=RECIPES)
    parser.add_argument(
        "--samples", type=int, metavar="N", help="samples of a device in a step; default: that of the recipe"
    )
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "tf32", "fp32"), help="default: bf16")
    parser.add_argument("--wire-dtype", default="exact", metavar="FORMAT", help="exact (default), fp16, bf16 or int8")
    parser.add_argument("--tflops", type=float, metavar="N", help="sustained TFLOPS of a device; default: by its name")
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw a chart: .svg, .png or .pdf")


# -- commands ----------------------------------------------------------------------------------------------------------


def _show(arguments: argparse.Namespace) -> int:
    from rich.padding import Padding
    from rich.text import Text

    from trainkit.planning.advice import advise
    from trainkit.topology.picture import drawing, text

    check_picture(arguments.output)
    with machine.described(arguments) as topology:
        if rank():
            return 0
        if arguments.output:
            with writing(arguments.output):
                drawing.save(topology, arguments.output)
            say(f"drawn into {arguments.output}")
        if arguments.json:
            print(topology.to_json(), end="")
            return 0
        out = console()
        text.show(topology, out)
        if topology.source:
            out.print(Text(f"read from {topology.source}", style="dim"))
        for advice in advise(topology):
            style = {"error": "bold red", "warning": "bold yellow", "hint": "bold cyan"}[advice.severity]
            out.print()
            out.print(Text.assemble((f"{advice.severity}: ", style), (advice.subject, "bold")))
            out.print(Padding(advice.problem, (0, 0, 0, 2)))
            out.print(Padding(Text(f"→ {advice.remedy}", style="green"), (0, 0, 0, 2)))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from trainkit.planning.accuracy import time_range_us
    from trainkit.planning.cost import CostModel
    from trainkit.planning.plan import MIN_GAIN, candidates, plan_all_reduce, shortlist
    from trainkit.planning.traffic import network_bytes

    size = amounts.num_bytes(arguments.bytes, "--bytes")
    wire_dtype = arguments.wire_dtype
    check_format(wire_dtype)
    with machine.described(arguments) as topology:
        if rank():
            return 0
        every = candidates(topology, size, wire_dtype=wire_dtype)
        chosen = plan_all_reduce(topology, size, wire_dtype=wire_dtype)
        flat = next(entry for entry in every if entry.plan.kind == "flat")
        shown = every if arguments.all else shortlist(every, len(every))
        model = CostModel(topology)
        table = Table("", "plan", box=None, pad_edge=False)
        for name in ("time", "range", "bus GB/s", "over flat", "sent by a host"):
            table.add_column(name, justify="right")
        for entry in shown:
            sent = network_bytes(topology, entry.plan, size, orders_rings=model.backend == "nccl")
            bus = model.bus_bandwidth_gb_per_s(entry.plan, size)
            table.add_row(
                "→" if entry.plan == chosen else "",
                entry.plan.describe(),
                in_time(entry.time_us),
                _span(time_range_us(model, entry.plan, size)),
                f"{bus:.3g}",
                f"{flat.time_us / entry.time_us:.2f}x" if entry.time_us else "",
                f"{sent / size:.2f} S" if sent else "-",
                style="bold" if entry.plan == chosen else "",
            )
        out = console()
        out.print(f"{topology.source or 'this machine'}: {count(topology)}, {model.backend}, S = {arguments.bytes}\n")
        out.print(table)
        gain = 1 - every[0].time_us / flat.time_us if flat.time_us else 0.0
        if chosen.kind != "flat":
            why = f"it is predicted to take {100 * gain:.0f} % less time than flat"
        elif every[0].plan.kind == "flat":
            why = "no other plan is predicted to be faster"
        else:
            why = f"the fastest is predicted to save {100 * gain:.1f} %; flat is kept below {100 * MIN_GAIN:.0f} %"
        out.print(f"\nchosen: {chosen.describe()}: {why}", soft_wrap=True)
        if model.backend == "nccl":
            out.print(f"range: {RANGE_NOTE}")
        machine.warn(topology, len(topology.hosts))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from trainkit.planning import chart
    from trainkit.planning.simulate import KNEE, knee, simulate, what_if
    from trainkit.planning.workload import workload

    check_picture(arguments.output)
    check_format(arguments.wire_dtype)
    nodes = amounts.counts(arguments.nodes, "--nodes")
    for name in ("tflops", "samples"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name}={value}: must be above 0")
    node = machine.one_node(arguments)
    if rank():
        return 0
    work = workload(
        arguments.recipe,
        samples_per_device=arguments.samples,
        tflops=arguments.tflops,
        precision=arguments.precision,
    )
    points = simulate(node, nodes, work, wire_dtype=arguments.wire_dtype)
    changes = what_if(node, work, nodes[-1], wire_dtype=arguments.wire_dtype)
    out = console()
    out.print(
        f"{arguments.recipe} on {node.source or 'machines like this one'}: {node.world_size} devices a node, "
        f"{work.samples_per_device} samples each, {work.gradient_bytes / 1e6:.0f} MB of gradients\n",
        soft_wrap=True,
    )
    out.print(_scaling(points))
    if any(point.fast_step_us < point.slow_step_us for point in points):
        out.print(f"\nin brackets: the range {RANGE_NOTE}; `topo bench` measures yours", soft_wrap=True)
    if any(link.kind == "xgmi" for link in node.hosts[0].links):
        out.print("\nof machines with Infinity Fabric no prediction was compared with a measurement", soft_wrap=True)
    bend = knee(points)
    if bend is None:
        out.print(f"\nno knee up to {_nodes(nodes[-1])}: the efficiency stays above {100 * KNEE:.0f} %")
    else:
        out.print(f"\nknee: from {_nodes(bend.num_nodes)} on less than {100 * KNEE:.0f} % of the time is computation")
    slow = next((point for point in points if point.slow_efficiency < KNEE), None)
    if slow is not None and slow is not bend:
        out.print(f"by the lower efficiency in brackets, from {_nodes(slow.num_nodes)} on")
    for change in changes:
        took = f"{abs(100 * change.gain):.0f} % {'less' if change.gain > 0 else 'more'} time a step"
        if abs(change.gain) < 0.005:
            took = "the same time a step"
        out.print(f"{change.change}, {_nodes(nodes[-1])}: {took}, {in_time(change.point.step_us)}", soft_wrap=True)
    machine.warn(node, nodes[-1])
    if arguments.output:
        title = f"{arguments.recipe} on {node.source.removeprefix('preset ') or 'machines like this one'}"
        with writing(arguments.output):
            chart.save(title, points, changes, arguments.output)
        say(f"drawn into {arguments.output}")
    return 0


def _scaling(points: "Sequence[Point]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("nodes", "devices", "step", "efficiency", "samples/s"):
        table.add_column(name, justify="right")
    table.add_column("step: █ computation ░ exposed communication")
    table.add_column("plan")
    longest = max(point.step_us for point in points)
    for point in points:
        bar = Text("█" * round(BAR * point.compute_us / longest), style="blue")
        bar.append("░" * round(BAR * point.exposed_us / longest), style="yellow")
        table.add_row(
            str(point.num_nodes),
            str(point.num_devices),
            in_time(point.step_us),
            _efficiency(point),
            f"{point.samples_per_s:,.0f}",
            bar,
            point.plan.kind + ("" if point.plan.wire_dtype == "exact" else f", {point.plan.wire_dtype}"),
        )
    return table


def _efficiency(point: "Point") -> str:
    if point.fast_step_us == point.slow_step_us:
        return f"{100 * point.efficiency:.0f} %"
    low, high = 100 * point.slow_efficiency, 100 * point.fast_efficiency
    return f"{100 * point.efficiency:.0f} % ({low:.0f}-{high:.0f} %)"


# -- inside ------------------------------------------------------------------------------------------------------------


def _span(times_us: tuple[float, float] | None) -> str:
    return f"{in_time(times_us[0])} - {in_time(times_us[1])}" if times_us else "-"


def _nodes(num_nodes: int) -> str:
    return f"{num_nodes} node{'s' if num_nodes > 1 else ''}"
