"""`trainkit topo advise`: whether a job needs NVLink or a faster network, and what would save time otherwise."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli import advice_text, amounts, machine
from trainkit.cli.advice_text import Answer
from trainkit.cli.output import check_format, check_picture, console, rank, say, writing
from trainkit.errors import ConfigError, require_above_zero

if TYPE_CHECKING:
    from trainkit.forecast.purchase import Option
    from trainkit.topology.topology import Topology

EXAMPLES = """\
examples:
  trainkit topo advise --gpus 4x3090
  trainkit topo advise --gpus 2xA6000+nvlink --recipe progressive_gan-256 --output scaling.svg
  trainkit topo advise --preset pcie-8 --nodes 2 --strategy fsdp --json
  trainkit topo advise --budget 3500 --price 3090=800 --price 4090=1700 --price bridge=150
"""


def add_parser(commands: Any) -> None:
    """Adds `advise` to the commands of `topo`, of argparse."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "advise",
        help="say whether a job needs NVLink, and what else would save time",
        description="Say how well a recipe scales over some GPUs, whether faster links such as NVLink would help, by "
        "how much of a step, and what helps for nothing. Needs no GPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    machine.add_machine(parser)
    parser.add_argument(
        "--recipe",
        default="bert-large",
        metavar="NAME",
        help="bert-base, bert-large (default), progressive_gan-64 ... progressive_gan-1024",
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="samples of a card in a step; default: that of the recipe"
    )
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "tf32", "fp32"), help="default: bf16")
    parser.add_argument(
        "--strategy", default="ddp", metavar="NAME", help="ddp (default), fsdp, hsdp, zero1, zero2 or zero3"
    )
    parser.add_argument("--wire-dtype", default="exact", metavar="FORMAT", help="exact (default), fp16, bf16 or int8")
    parser.add_argument("--tflops", type=float, metavar="N", help="sustained TFLOPS of a card; default: as published")
    parser.add_argument("--budget", type=float, metavar="USD", help="compare what it buys, at the prices of --price")
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=USD",
        help="of a card, of a bridge or of the host around them; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw the efficiency: .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    options = _options(arguments)
    nodes = _nodes(arguments)
    node = _node(arguments, options)
    if rank():
        return 0
    answer = _answer(arguments, node, nodes, options)
    if arguments.output:
        from trainkit.planning import efficiency_chart

        with writing(arguments.output):
            efficiency_chart.save(advice_text.title(answer.advice), answer.scaling, arguments.output)
        say(f"drawn into {arguments.output}")
    if arguments.json:
        print(json.dumps(advice_text.facts(answer), indent=1))
    else:
        advice_text.show(answer, console())
    return 0


# -- what is asked -----------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> None:
    from trainkit.planning.changes import require_strategy

    check_picture(arguments.output)
    check_format(arguments.wire_dtype)
    require_strategy(arguments.strategy)
    for name in ("tflops", "samples", "budget"):
        require_above_zero("--", **{name: getattr(arguments, name)})
    machine.check(arguments)
    if arguments.gpus and arguments.nodes and arguments.nodes != "1":
        raise ConfigError(f"--gpus with --nodes={arguments.nodes}: say which network: give --preset or --topology")
    if arguments.price and arguments.budget is None:
        raise ConfigError(f"--price={arguments.price[0]}: needs --budget=USD, for which machines are compared")
    if arguments.budget is not None and arguments.tflops is not None:
        raise ConfigError(f"--tflops={arguments.tflops:g} with --budget: each card has its own speed; leave it out")


def _options(arguments: argparse.Namespace) -> "list[Option]":
    from trainkit.forecast.purchase import Task, options, prices_of

    if arguments.budget is None:
        return []
    task = Task(
        recipe=arguments.recipe,
        precision=arguments.precision,
        strategy=arguments.strategy,
        samples_per_device=arguments.samples,
    )
    return options(arguments.budget, prices_of(arguments.price), task)


def _nodes(arguments: argparse.Namespace) -> int:
    nodes = amounts.counts(arguments.nodes, "--nodes") if arguments.nodes else [1]
    if len(nodes) > 1:
        raise ConfigError(f"--nodes={arguments.nodes}: must be one number for this command")
    return nodes[0]


def _node(arguments: argparse.Namespace, options: "Sequence[Option]") -> "Topology":
    """One machine: the one that is named, the fastest within the budget, or this one."""
    if options and not (arguments.gpus or arguments.preset or arguments.topology):
        return options[0].topology
    node = machine.one_node(arguments)
    if node.hosts[0].devices[0].kind != "cuda" and arguments.tflops is None:
        raise ConfigError("this machine has no GPU: give --gpus 4x3090, --preset NAME or --topology FILE")
    return node


def _answer(arguments: argparse.Namespace, node: "Topology", num_nodes: int, options: "Sequence[Option]") -> Answer:
    from trainkit.forecast.published_scaling import published_scaling
    from trainkit.forecast.speed import speed_of
    from trainkit.planning.advice import advise
    from trainkit.planning.links_advice import advise_links, scaling
    from trainkit.planning.workload import workload

    device = node.hosts[0].devices[0]
    tflops, why = arguments.tflops, "--tflops"
    if tflops is None:
        speed = speed_of(device, arguments.precision, arguments.recipe)
        tflops, why = speed.tflops, speed.why
    work = workload(
        arguments.recipe, samples_per_device=arguments.samples, tflops=tflops, precision=arguments.precision
    )
    advice = advise_links(node, work, num_nodes=num_nodes, strategy=arguments.strategy, wire_dtype=arguments.wire_dtype)
    findings = [] if arguments.gpus else advise(node.times(num_nodes))
    beside = [row for row in published_scaling() if row.device == device.name and row.model == work.name]
    return Answer(
        advice=advice, scaling=scaling(advice), options=options, findings=findings, published=beside, why_so_fast=why
    )
