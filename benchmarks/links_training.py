"""The gain of training from a plan between hosts with slow links, and the loss in quality by int8.

    python benchmarks/links_training.py                  # all parts; about 12 minutes
    python benchmarks/links_training.py --part steps

Four processes on hosts of network namespaces, see bed.py, train BERT-tiny.
steps: seconds per step at 200 Mb/s between the hosts: DistributedDataParallel, with PyTorch's hooks for fp16 and
    PowerSGD, and strategy=ddp with several `comm`, which run alternately in the same processes.
loopback: the same on one host, where no link is slow: the overhead of comm=auto over DistributedDataParallel.
loss: `launch/train.py` started by torchrun on each host, a run for each seed with exact gradients and one with int8;
    the held-out loss at the end. The links are as fast as the machine: bits do not depend on them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks import overhead
from benchmarks.bed import Bed, why_not
from benchmarks.case import Case

ROOT = Path(__file__).resolve().parent.parent
MBIT_PER_S, NUM_TURNS, STEPS_A_TURN = 200, 7, 4
SEEDS = (0, 1, 2)
PLAIN = "DistributedDataParallel"
TORCH_HOOKS = {f"{PLAIN}, fp16 hook": "fp16", f"{PLAIN}, PowerSGD hook of rank 2": "powersgd"}
OURS = {
    "strategy=ddp comm=flat": trainkit.Comm(plan="flat"),
    "strategy=ddp comm=auto": trainkit.Comm(),
    "strategy=ddp comm=auto comm.wire_dtype=fp16": trainkit.Comm(wire_dtype="fp16"),
    "strategy=ddp comm=auto comm.wire_dtype=int8": trainkit.Comm(wire_dtype="int8"),
}
RUN = (
    "experiment=bert_quickstart",
    "data.vocab_size=2048",
    "recipe.num_steps=600",
    "recipe.batch_size=32",
    "recipe.sentences=[]",
    "evaluate_every=null",
    "save_every=null",
    "tracking=none",
)


# -- steps -------------------------------------------------------------------------------------------------------------


def raw_steps(case: Case, hook: str | None) -> Iterator[None]:
    """Turns of a loop that one would write by hand."""
    torch.manual_seed(0)
    module = case.make_module()
    wrapped = DistributedDataParallel(module)
    if hook == "fp16":
        wrapped.register_comm_hook(None, fp16_compress_hook)
    elif hook == "powersgd":
        state = PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        wrapped.register_comm_hook(state, power_sgd_in_order)
    optimizer = case.make_optimizer(module.parameters())
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    for batch in runtime.batches(case.samples, batch_size=case.batch_size):
        optimizer.zero_grad()
        case.loss(wrapped, batch.data).backward()
        optimizer.step()
        yield


def power_sgd_in_order(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """torch's hook, a bucket at a time: with several on their way, on gloo, its collectives get into disorder."""
    future = powerSGD_hook(state, bucket)
    future.wait()
    return future


def engine_steps(case: Case, comm: trainkit.Comm) -> Iterator[None]:
    torch.manual_seed(0)
    module = case.make_module()
    runtime = trainkit.Runtime(comm=comm, device="cpu", tracker=trainkit.Tracker())
    engine = runtime.setup(module, case.make_optimizer(module.parameters()))
    for batch in runtime.batches(case.samples, batch_size=case.batch_size):
        engine.backward(case.loss(engine, batch.data))
        engine.step()
        yield


def measure(cache: str, names: Sequence[str], num_turns: int) -> dict[str, Any]:
    """Seconds of every turn on this rank, by contender. Collective."""
    os.environ["TRAINKIT_CACHE"] = cache
    torch.manual_seed(0)
    case = overhead.bert_tiny()
    contenders: dict[str, Callable[[], Iterator[None]]] = {PLAIN: lambda: raw_steps(case, None)}
    contenders |= {name: lambda hook=hook: raw_steps(case, hook) for name, hook in TORCH_HOOKS.items()}  # type: ignore[misc]
    contenders |= {name: lambda comm=comm: engine_steps(case, comm) for name, comm in OURS.items()}  # type: ignore[misc]
    loops = {name: contenders[name]() for name in names or contenders}
    turns: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(-1, num_turns):  # the first one chooses plans, and rebuilds buckets
        for name in list(loops)[:: -1 if number % 2 else 1]:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(STEPS_A_TURN):
                next(loops[name])
            if number >= 0:
                turns[name].append((time.perf_counter() - start) / STEPS_A_TURN)
        if dist.get_rank() == 0:
            print(f"\rsteps: turn {number + 1} of {num_turns} ", end="", file=sys.stderr, flush=True)
    parameters = sum(p.numel() for p in case.make_module().parameters())
    return {"model": case.title, "gradient_mb": parameters * 4 / 2**20, "turns": turns}


def steps() -> dict[str, Any]:
    with Bed(2, MBIT_PER_S) as bed:
        return summarise("steps", bed, (), NUM_TURNS, mbit_per_s=MBIT_PER_S, num_hosts=2)


def loopback() -> dict[str, Any]:
    with Bed(1) as bed:
        names = (PLAIN, "strategy=ddp comm=flat", "strategy=ddp comm=auto")
        return summarise("loopback", bed, names, 3 * NUM_TURNS, mbit_per_s=None, num_hosts=1)


def summarise(part: str, bed: Bed, names: Sequence[str], num_turns: int, **facts: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        by_rank = bed.run(measure, cache, names, num_turns, ranks_per_host=4 // bed.num_hosts, timeout_s=580)
    print(file=sys.stderr)
    slowest = {
        name: [max(times) for times in zip(*(rank["turns"][name] for rank in by_rank), strict=True)]
        for name in by_rank[0]["turns"]
    }
    rows = {}
    for name, times in slowest.items():
        # Turn against turn: what slows the machine down for a while slows both.
        gains = [plain / own for plain, own in zip(slowest[PLAIN], times, strict=True)]
        quartiles = statistics.quantiles(gains, n=4, method="inclusive")
        rows[name] = {"step_s": statistics.median(times), "over_plain": quartiles, "turns_s": times}
    facts |= {key: by_rank[0][key] for key in ("model", "gradient_mb")}
    return {"part": part, "num_ranks": 4, "num_turns": num_turns, **facts, "contenders": rows}


def steps_table(result: dict[str, Any]) -> str:
    hosts = f"{result['num_hosts']} host{'s' if result['num_hosts'] > 1 else ''}"
    rate = f" at {result['mbit_per_s']} Mb/s" if result["mbit_per_s"] else ""
    lines = [
        f"{result['part']}: {result['model']}, gradients of {result['gradient_mb']:.1f} MB",
        f"{result['num_ranks']} ranks on {hosts}{rate}; {result['num_turns']} turns, median (quartiles)",
    ]
    for name, row in result["contenders"].items():
        low, median, high = row["over_plain"]
        lines.append(f"  {name:50} {row['step_s']:.3f} s a step  {median:.2f}x ({low:.2f} to {high:.2f})")
    return "\n".join(lines)


# -- loss --------------------------------------------------------------------------------------------------------------


def held_out_loss(bed: Bed, overrides: tuple[str, ...], directory: Path) -> float:
    """At the end of a run of `launch/train.py` on all hosts."""

    def command(host: int) -> list[str]:
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
        place = [f"--node-rank={host}", f"--master-addr={bed.address(0)}", "--master-port=29500"]
        return [*agent, *place, str(ROOT / "launch" / "train.py"), *RUN, f"run_dir={directory}", *overrides]

    agents = bed.start(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    outputs = [agent.communicate(timeout=580)[0] for agent in agents]
    if any(agent.returncode for agent in agents):
        raise RuntimeError(outputs[0][-3000:])
    (newest,) = (directory / "checkpoints").glob("step_*/manifest.json")
    return float(json.loads(newest.read_text())["values"]["metrics"]["held_out_loss"])


def loss() -> dict[str, Any]:
    found: dict[str, dict[int, float]] = {"exact": {}, "int8": {}}
    with Bed(2) as bed, tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            for wire_dtype, by_seed in found.items():
                overrides = ("comm=hierarchical", f"comm.wire_dtype={wire_dtype}", f"seed={seed}")
                by_seed[seed] = held_out_loss(bed, overrides, Path(scratch) / f"{wire_dtype}-{seed}")
                print(f"loss: {wire_dtype}, seed {seed}: {by_seed[seed]:.4f}", file=sys.stderr, flush=True)
    differences = [found["int8"][seed] - found["exact"][seed] for seed in SEEDS]
    return {
        "part": "loss",
        "run": RUN,
        "held_out_loss": found,
        "differences": differences,
        "mean_difference": statistics.mean(differences),
        "deviation_over_seeds": statistics.stdev(found["exact"].values()),
    }


def loss_table(result: dict[str, Any]) -> str:
    lines = ["held-out loss after 600 steps, by seed"]
    for wire_dtype, by_seed in result["held_out_loss"].items():
        lines.append(f"  {wire_dtype:6} {'  '.join(f'{value:.4f}' for value in by_seed.values())}")
    lines.append(
        f"  int8 - exact: {'  '.join(f'{value:+.4f}' for value in result['differences'])}; mean "
        f"{result['mean_difference']:+.4f}; exact runs deviate by {result['deviation_over_seeds']:.4f} over seeds"
    )
    return "\n".join(lines)


PARTS = {"steps": (steps, steps_table), "loopback": (loopback, steps_table), "loss": (loss, loss_table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="one alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    torch.set_num_threads(1)
    facts, results = overhead.machine(), []
    for name, (run, table) in PARTS.items():
        if arguments.part in (None, name):
            results.append(run())
            print(table(results[-1]), flush=True)
    overhead.write("links-training", facts, results, arguments.output)


if __name__ == "__main__":
    main()
