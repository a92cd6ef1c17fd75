"""`trainkit topo probe` and `bench`: measure links and all-reduces between the processes that torchrun started."""

import argparse
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainkit.cli import amounts, machine
from trainkit.cli.output import console, count, rank, say, writing
from trainkit.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

    from trainkit.topology.topology import Topology

PATIENCE_S = 2.0


def probe(arguments: argparse.Namespace) -> int:
    """Runs `topo probe` with its parsed arguments; returns the exit code. Collective: every rank must call."""
    from trainkit.topology import measure
    from trainkit.topology.picture import text

    with machine.job(arguments) as (topology, _):
        with patience() as report:
            measured = measure.probe(topology, report=report)
        if rank():
            return 0
        if arguments.output:
            with writing(arguments.output):
                arguments.output.write_text(measured.to_json())
        out = console()
        if topology.world_size == 1:
            out.print("there is no link to measure with one process: start several with torchrun")
        text.show(measured, out)
        if arguments.output:
            out.print(f"written to {arguments.output}: use it with comm.topology={arguments.output}", soft_wrap=True)
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Runs `topo bench` with its parsed arguments. Collective: every rank must call.

    Returns:
        The exit code: 1 where a sum is wrong.
    """
    from trainkit.topology import measure

    wanted = amounts.sizes(arguments.sizes, "--sizes")
    with (
        machine.job(arguments) as (topology, device),
        _reduction(arguments.plan, topology, device, max(wanted)) as (reduce, words),
    ):
        rows = []
        if rank() == 0:
            backend = "NCCL" if device.type == "cuda" else "gloo"
            print(f"# {count(topology)}, {backend}, float32 sums in place, plan: {words}; 1 GB is 1e9 bytes")
            print(
                f"{'size (B)':>12} {'time (us)':>12} {'algbw (GB/s)':>13} {'busbw (GB/s)':>13} {'#wrong':>7}",
                flush=True,
            )
        for row in measure.bench(wanted, reduce, device=device):
            rows.append(row)
            if rank() == 0:
                figures = f"{row.time_us:>12.1f} {row.algorithm_gb_per_s:>13.4g} {row.bus_gb_per_s:>13.4g}"
                print(f"{row.num_bytes:>12} {figures} {row.num_wrong:>7}", flush=True)
        if rank() == 0:
            mean = sum(row.bus_gb_per_s for row in rows) / len(rows)
            print(f"# mean bus bandwidth {mean:.4g} GB/s")
            if arguments.output:
                results = [{**vars(row), "algbw": row.algorithm_gb_per_s, "busbw": row.bus_gb_per_s} for row in rows]
                with writing(arguments.output):
                    arguments.output.write_text(json.dumps({"plan": words, "rows": results}, indent=1) + "\n")
    return 1 if any(row.num_wrong for row in rows) else 0


@contextmanager
def _reduction(
    kind: str, topology: "Topology", device: "torch.device", num_bytes: int
) -> "Iterator[tuple[Callable[[torch.Tensor], None] | None, str]]":
    """A function that all-reduces by the best plan of a kind, None for that of PyTorch, and the plan as text."""
    from trainkit.planning.plan import candidates, plan_all_reduce
    from trainkit.planning.reduce_plan import KINDS
    from trainkit.reduction.collectives import Route
    from trainkit.topology import measure

    allowed = ("auto", *KINDS)
    if kind not in allowed:
        raise ConfigError(f"--plan={kind}: must be one of {', '.join(allowed)}.{nearest(kind, allowed)}")
    if kind == "flat" or topology.world_size == 1:
        yield None, "flat"
        return
    measured = measure.probe(topology)
    every = (
        [plan_all_reduce(measured, num_bytes)] if kind == "auto" else [e.plan for e in candidates(measured, num_bytes)]
    )
    plan = next((plan for plan in every if kind in ("auto", plan.kind)), None)
    if plan is None:
        raise ConfigError(f"--plan={kind}: not possible for {count(topology)}; use --plan auto")
    route = Route(plan, rank=rank(), device=device)
    try:
        yield lambda tensor: _wait(route.all_reduce(tensor)), plan.describe()
    finally:
        route.close()


def _wait(future: Any) -> None:
    future.wait()


@contextmanager
def patience() -> Iterator[Any]:
    """A context with a function to call when a part starts; rank 0 prints its name to stderr if it takes long."""
    timers: list[threading.Timer] = []

    def report(text: str) -> None:
        _cancel(timers)
        timers.append(threading.Timer(PATIENCE_S, say, [f"measuring {text} ..."]))
        timers[-1].start()

    try:
        yield report if rank() == 0 else lambda text: None
    finally:
        _cancel(timers)


def _cancel(timers: Sequence[threading.Timer]) -> None:
    for timer in timers:
        timer.cancel()
