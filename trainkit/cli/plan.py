"""`trainkit plan`: what a job will hold in memory, how long its steps take, and how many hosts pay off."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trainkit.cli import amounts, machine
from trainkit.cli.output import console, say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from trainkit.forecast.forecast import Forecast
    from trainkit.forecast.measured import Measured

BAR = 24  # characters
_SHORT_US = 10_000
EXAMPLES = """\
examples:
  trainkit plan --preset dgx-h100 experiment=bert_large data.path=~/texts precision=bf16
  trainkit plan --preset workstation-2 --nodes 1 recipe=progressive_gan data.path=~/pictures
  trainkit plan --topology links.json --tflops 140 recipe=bert strategy=fsdp

The configuration is counted here, on the CPU, with a few samples; --preset or --topology is where the job would run.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `plan` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="predict a job's memory and step time, and how many hosts pay off",
        description="Predict what a job will hold in memory on each rank, how long a step and the whole run take, and "
        "how many hosts pay off, before it is queued. The global batch is that of the configuration.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the configuration, as for trainkit train")
    machine.add_machine(parser, nodes="1..64")
    parser.add_argument("--tflops", type=float, metavar="N", help="sustained TFLOPS of a device; default: by its name")
    parser.add_argument("--memory", metavar="SIZE", help="of a device, such as 24GB; default: by its name")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run, from_here=True)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from trainkit.distributed.cluster import Cluster
    from trainkit.forecast.forecast import forecast, memory_of
    from trainkit.forecast.measured import measure
    from trainkit.planning.simulate import peaks

    if arguments.tflops is not None and not arguments.tflops > 0:
        raise ConfigError(f"--tflops={arguments.tflops}: must be above 0")
    capacity = amounts.num_bytes(arguments.memory, "--memory") if arguments.memory else None
    counts = amounts.counts(arguments.nodes, "--nodes")
    node = machine.one_node(arguments)
    device = node.hosts[0].devices[0]
    if arguments.tflops is None:
        peaks(device)  # raises before the configuration is counted, which takes a while
    largest = Cluster(world_size=node.world_size * max(counts), local_world_size=node.world_size)
    measured = measure(arguments.overrides, arguments.config_dir, cluster=largest, report=say)
    found = forecast(measured, node, counts, tflops=arguments.tflops)
    capacity = capacity or memory_of(device)
    if arguments.json:
        print(json.dumps(_facts(measured, found, capacity), indent=1))
        return 0
    out = console()
    out.print(_head(measured, device.name, node.source), soft_wrap=True)
    out.print(_table(found, capacity))
    for line in _conclusions(measured, found, counts, capacity):
        out.print(line, soft_wrap=True)
    return 0


def _head(measured: "Measured", device: str, source: str) -> str:
    from trainkit.memory.memory import in_words

    few, many = measured.samples
    stage = f" of {measured.stage}" if measured.stage else ""
    return (
        f"{measured.num_parameters:,} parameters; a sample{stage} takes {measured.flops_per_sample / 1e9:,.3g} GFLOP "
        f"and {in_words(round(measured.bytes_per_sample))} of activations, counted with {few} and {many} samples\n"
        f"global batch {measured.batch_size}, strategy {measured.strategy.name}, precision {measured.precision}, on "
        f"{source.removeprefix('preset ') or 'machines like this one'}: {device or 'unnamed devices'}\n"
    )


def _table(found: Sequence["Forecast"], capacity: int | None) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from trainkit.memory.memory import in_words

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("hosts", "ranks", "samples", "memory a rank", "step", "samples/s", "as fast", "run", "host hours"):
        table.add_column(name, justify="right")
    table.add_column("█ computing ░ waiting")
    longest = max(one.step.step_us for one in found)
    for one in found:
        bar = Text("█" * round(BAR * one.step.compute_us / longest), style="blue")
        bar.append("░" * round(BAR * one.step.exposed_us / longest), style="yellow")
        is_too_much = capacity is not None and one.peak_bytes > capacity
        hours = None if one.run_s is None else one.run_s / 3600
        table.add_row(
            str(one.num_hosts),
            str(one.num_ranks),
            f"{one.num_samples}" + (f" in {one.num_micro_batches}" if one.num_micro_batches > 1 else ""),
            Text(in_words(one.peak_bytes), style="bold red" if is_too_much else ""),
            _time(one.step.step_us / 1e6),
            f"{one.samples_per_s:,.0f}",
            f"{one.samples_per_s / found[0].samples_per_s:.1f} x",
            _time(one.run_s) if one.run_s is not None else "?",
            f"{hours * one.num_hosts:,.3g}" if hours is not None else "?",
            bar,
        )
    return table


def _conclusions(
    measured: "Measured", found: Sequence["Forecast"], counts: Sequence[int], capacity: int | None
) -> list[str]:
    from trainkit.forecast.forecast import worthwhile
    from trainkit.memory.memory import in_words

    best, lines = worthwhile(found), [""]
    if len(found) > 1:
        end = "" if best is found[-1] else "; beyond, a host brings less than half of its speed"
        lines.append(f"pays off up to {best.num_hosts} host{'s' if best.num_hosts > 1 else ''}{end}")
    if len(found) < len(counts):
        lines.append(
            f"from {counts[len(found)]} hosts on there are more ranks than samples in recipe.batch_size="
            f"{measured.batch_size}"
        )
    over = [one for one in found if capacity is not None and one.peak_bytes > capacity]
    if over and capacity is not None:
        where = ", ".join(str(one.num_hosts) for one in over)
        lines.append(
            f"does not fit on {where} host{'s' if where != '1' else ''}: a device has {in_words(capacity)}; "
            f"recipe.grad_accumulation_steps=auto, activation_checkpointing or strategy=fsdp take less"
        )
    if found[0].state.optimizer is None:
        lines.append("the optimizer's state is not counted: how much this one keeps is not known")
    if min(one.step.compute_us for one in found) < _SHORT_US:
        lines.append(
            f"steps that compute for less than {_SHORT_US / 1e3:g} ms also wait for kernels to be launched: that is "
            f"not predicted"
        )
    lines.append(
        "memory is of tensors: what CUDA, NCCL and fragmentation take comes on top. Times are predictions: "
        "--tflops and `trainkit topo probe` make them those of your machine"
    )
    return lines


def _facts(measured: "Measured", found: Sequence["Forecast"], capacity: int | None) -> dict[str, Any]:
    return {
        "num_parameters": measured.num_parameters,
        "flops_per_sample": measured.flops_per_sample,
        "bytes_per_sample": measured.bytes_per_sample,
        "batch_size": measured.batch_size,
        "device_bytes": capacity,
        "hosts": [
            {
                "num_hosts": one.num_hosts,
                "num_ranks": one.num_ranks,
                "num_samples": one.num_samples,
                "state": asdict(one.state),
                "peak_bytes": one.peak_bytes,
                "compute_s": one.step.compute_us / 1e6,
                "step_s": one.step.step_us / 1e6,
                "slow_step_s": one.step.slow_step_us / 1e6,
                "samples_per_s": one.samples_per_s,
                "run_s": one.run_s,
                "plan": one.step.plan.describe(),
            }
            for one in found
        ],
    }


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= (size if unit == "s" else 2 * size) or unit == "ms":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError
