"""The overhead of a step on two processes: strategy=ddp and strategy=fsdp over raw loops of DDP and FSDP2.

    python benchmarks/overhead_distributed.py                 # both; about two minutes on two idle cores
    python benchmarks/overhead_distributed.py --strategy fsdp

The raw loops are written by hand: DistributedDataParallel(module), or fully_shard(layer) for each layer
and then fully_shard(module); forward, backward, step, on the batches that the engine sees. There is no clipping. The
engine also reports the mean loss and the norm of the gradients over the global batch.

Contenders run alternately in the same processes, and must end with the same weights. The wall time is that of the
slowest rank, the CPU time the mean over ranks. After the timed rounds, the collectives of one more are
counted, in the dispatcher that Python and the C++ of DDP both call; an engine can do one small reduction a step in
addition to those of the gradients.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks import overhead
from benchmarks.case import Case
from benchmarks.overhead import Stopwatch, Turn
from trainkit.strategy import by_name
from trainkit_recipes.bert.model import Layer

NUM_RANKS = 2
SMALL = 8  # elements: no gradient of a layer is so small
RAW = {"ddp": "raw loop, DistributedDataParallel", "fsdp": "raw loop, FSDP2 by layer"}
ENGINE = {"ddp": "Engine + Runtime, ddp", "fsdp": "Engine + Runtime, fsdp by layer"}
SUMS = {"ddp": 2, "fsdp": 3}  # doubles that an engine reduces: weight, weighted loss; and a shard's part of the norm


def on_ranks(function: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
    """What `function(*args)` returns, which JSON must know, in new processes of one gloo group, by rank.

    A rank that fails ends all of them.
    """
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(_be_rank, (num_ranks, directory, function, args), nprocs=num_ranks)
        return [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(num_ranks)]


def _be_rank(rank: int, num_ranks: int, directory: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    for name, number in {"RANK": rank, "WORLD_SIZE": num_ranks}.items():
        os.environ[name] = os.environ[f"LOCAL_{name}"] = str(number)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=num_ranks)
    result = function(*args)
    (Path(directory) / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


class Collectives(TorchDispatchMode):
    """Counts calls of collectives, each as `name of elements` of what comes out of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.num_small = self.num_other_elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            outputs = args[0] if isinstance(args[0], list) else [args[0]]
            outputs = [output for output in outputs if isinstance(output, Tensor)]
            num_elements = sum(output.numel() for output in outputs)
            name = function._opname.strip("_")
            self.calls[f"{name} of {num_elements} {str(outputs[0].dtype).removeprefix('torch.')}"] += 1
            if num_elements <= SMALL:
                self.num_small += 1
            else:
                self.num_other_elements += num_elements
        return function(*args, **(kwargs or {}))

    def a_step(self, num_steps: int) -> dict[str, float]:
        return {name: number / num_steps for name, number in sorted(self.calls.items())}


def make_raw(strategy: str, case: Case) -> tuple[nn.Module, nn.Module]:
    """The module, and what a loop calls."""
    torch.manual_seed(0)
    module = case.make_module()
    if strategy == "ddp":
        return module, DistributedDataParallel(module)
    for part in module.modules():
        if isinstance(part, Layer):
            fully_shard(part)
    fully_shard(module)
    return module, module


def make_engine(runtime: trainkit.Runtime, case: Case) -> trainkit.Engine:
    torch.manual_seed(0)
    module = case.make_module()
    return runtime.setup(module, case.make_optimizer(module.parameters()), blocks=(Layer,))


def measure(strategy: str, num_turns: int | None) -> dict[str, Any]:
    """On one rank: the turns of both contenders, without the first, which warms up; and what a step communicates."""
    torch.manual_seed(0)
    case = overhead.bert_tiny()
    num_turns = case.num_turns if num_turns is None else num_turns
    case = replace(case, num_turns=1 + num_turns)  # one more, in which collectives are counted
    module, called = make_raw(strategy, case)
    orders, own = (
        trainkit.Runtime(strategy=by_name(strategy), device="cpu", tracker=trainkit.Tracker()) for _ in range(2)
    )
    engine = make_engine(own, case)
    contenders = {
        RAW[strategy]: overhead.raw_turns(case, called, overhead.from_memory(case, orders)),
        ENGINE[strategy]: overhead.engine_turns(case, engine, own),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(1 + num_turns):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            turns[name].append(timed(contenders[name], case.steps_a_turn))
        if dist.get_rank() == 0:
            print(f"\r{strategy}: turn {number} of {num_turns} ", end="\n" * (number == num_turns), file=sys.stderr)
    counted = {name: count(contenders[name]) for name in contenders}
    overhead.require_same_weights(local_weights(engine.module), local_weights(module))
    require_one_small_reduction(strategy, counted, case.steps_a_turn)
    return {
        "model": case.title,
        "turns": {name: [asdict(turn) for turn in turns[name][1:]] for name in turns},
        "collectives_a_step": {name: counted[name].a_step(case.steps_a_turn) for name in counted},
    }


def timed(turns: Iterator[None], num_steps: int) -> Turn:
    dist.barrier()
    watch = Stopwatch(num_steps)
    next(turns)
    return watch.read()


def count(turns: Iterator[None]) -> Collectives:
    collectives = Collectives()
    with collectives:
        next(turns)
    return collectives


def local_weights(module: nn.Module) -> list[Tensor]:
    return [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]


def require_one_small_reduction(strategy: str, counted: dict[str, Collectives], num_steps: int) -> None:
    raw, ours = counted[RAW[strategy]], counted[ENGINE[strategy]]
    name = f"allreduce of {SUMS[strategy]} float64"
    if (ours.calls[name], ours.num_small, raw.num_small) != (num_steps, num_steps, 0):
        raise RuntimeError(
            f"one small reduction a step, of {SUMS[strategy]} doubles, was due: {ours.a_step(num_steps)}"
        )
    if ours.num_other_elements != raw.num_other_elements:
        raise RuntimeError(
            f"the contenders did not reduce as much: {ours.num_other_elements} elements, and the raw loop "
            f"{raw.num_other_elements}"
        )


def summarise(strategy: str, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    turns = {
        name: [
            Turn(max(turn["wall_us"] for turn in by_rank), statistics.mean(turn["cpu_us"] for turn in by_rank))
            for by_rank in zip(*(rank["turns"][name] for rank in ranks), strict=True)
        ]
        for name in ranks[0]["turns"]
    }
    return {
        "strategy": strategy,
        "model": ranks[0]["model"],
        "num_ranks": len(ranks),
        "num_turns": len(turns[RAW[strategy]]),
        "contenders": overhead.compare(turns, RAW[strategy]),
        "collectives_a_step": ranks[0]["collectives_a_step"],
    }


def table(result: dict[str, Any]) -> str:
    title = (
        f"{result['model']}; {result['num_ranks']} processes, a thread each; {result['num_turns']} turns; "
        f"median (quartiles)"
    )
    lines = [title, *overhead.rows(result["contenders"], {})]
    for name, calls in result["collectives_a_step"].items():
        lines.append(f"  {name}: {', '.join(f'{number:g} {call}' for call, number in calls.items())}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=[*RAW, "all"], default="all")
    parser.add_argument("--turns", type=int, help="of every contender, after one that warms up")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts, results = overhead.machine(), []
    for strategy in RAW:
        if arguments.strategy in (strategy, "all"):
            results.append(summarise(strategy, on_ranks(measure, NUM_RANKS, strategy, arguments.turns)))
            print(table(results[-1]), flush=True)
    overhead.write("overhead-distributed", facts, results, arguments.output)


if __name__ == "__main__":
    main()
