"""The memory of parameters, gradients and optimizer state on a rank under each strategy: counted and expected.

    python benchmarks/memory.py                       # bert-base, 110 M parameters, 4 processes; about four minutes
    python benchmarks/memory.py --strategy zero3

All storages of live tensors of a process are counted once, with their padding, between backward() and step() of the
second step. A storage is
    parameters  where a parameter of the module lies in it (under ZeRO-3 its partition, or what is kept whole);
    copy        where what the optimizer writes to lies in it, if that is another: ZeRO's flat fp32 copy;
    optimizer   where a value of the optimizer's state lies in it;
    buffer      where it is as large as ZeRO-3's bucket for messages, to the byte;
    gradients   otherwise, if it was not there before the module: what is held besides counts against the strategy.
Expected are 4 bytes per element, divided by the number of shards where
the strategy spreads them; `padding` is what the strategy's way of cutting adds to that at most:
    FSDP, HSDP  cut rows, so that a parameter of 5 rows takes 2 rows on each of 4 ranks;
    ZeRO-1, 2   cut all parameters as one row of elements, and keep gradients of whole parameters: of one that lies
                across a cut, both neighbours keep all. After the last micro-batch stage 1 keeps no more than stage 2;
    ZeRO-3      cuts each parameter's elements, and keeps the small ones whole besides;
    AdamW       counts the steps of each parameter, in 4 bytes.

Peaks are those of the process's resident memory, with Python and the libraries, of which some pages are shared: before
the module, while it is made (whole, on every rank) and spread, and in the steps. Each strategy has new processes.
glibc is set to return freed blocks above 1 MiB; by default it keeps blocks of up to 32 MiB, which is no property of a
strategy. MALLOC_MMAP_THRESHOLD_, in bytes, sets another limit.
"""

import argparse
import gc
import math
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks.overhead import machine, write
from benchmarks.overhead_distributed import on_ranks
from trainkit_recipes.bert.model import Architecture, Layer, MaskedLanguageModel

NUM_RANKS, SHARD_SIZE = 4, 2
BUCKET_MB = 25.0
STRATEGIES: dict[str, Callable[[], trainkit.Strategy]] = {
    "ddp": trainkit.DDP,
    "fsdp": trainkit.FSDP,
    "hsdp": lambda: trainkit.HSDP(shard_size=SHARD_SIZE),
    "zero1": lambda: trainkit.Zero1(bucket_cap_mb=BUCKET_MB),
    "zero2": lambda: trainkit.Zero2(bucket_cap_mb=BUCKET_MB),
    "zero3": lambda: trainkit.Zero3(bucket_cap_mb=BUCKET_MB),
}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Of one rank."""

    parameters: float = 0
    copy: float = 0
    gradients: float = 0
    optimizer: float = 0
    buffer: float = 0


# -- counting ----------------------------------------------------------------------------------------------------------


def live_storages() -> dict[int, torch.UntypedStorage]:
    """Every storage in host memory that a tensor of this process lies in, by address."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if issubclass(type(held), Tensor)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Those that C++ alone holds are not among Python's objects.
        gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return storages_of((*tensors, *gradients))


def storages_of(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    found = {}
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type == "cpu" and local.layout == torch.strided:
            storage = local.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage
    return found


def count(
    before: dict[int, torch.UntypedStorage], module: nn.Module, optimizer: torch.optim.Optimizer, bucket_bytes: int
) -> Bytes:
    """Between backward() and step(). `before`: what there was before the module; the caller keeps it alive."""
    parameters = list(module.parameters())
    # ZeRO-3 leaves the parameters themselves empty.
    partitions = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    values = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
    rest = {address: storage.nbytes() for address, storage in live_storages().items() if address not in before}

    def take(addresses: Iterable[int]) -> int:
        return sum(rest.pop(address, 0) for address in addresses)

    return Bytes(
        parameters=take(storages_of((*parameters, *partitions))),
        copy=take(storages_of(optimizer.state)),
        optimizer=take(storages_of(values)),
        buffer=take([address for address, num_bytes in rest.items() if num_bytes == bucket_bytes]),
        gradients=sum(rest.values()),
    )


def run(
    strategy: trainkit.Strategy,
    make_module: Callable[[], nn.Module],
    loss: Callable[[Callable[..., Tensor]], Tensor],
    blocks: Sequence[type[nn.Module]] = (),
) -> tuple[Bytes, list[list[int]], dict[str, int]]:
    """On one rank: bytes counted, shapes of the parameters, and peaks. Two turns, because the first makes the state."""
    runtime = trainkit.Runtime(strategy=strategy, device="cpu", tracker=trainkit.Tracker())
    before = live_storages()
    peaks = {"before": read_peak()}
    module = make_module()
    shapes = [[*p.shape] for p in module.parameters()]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    engine = runtime.setup(module, optimizer, blocks=blocks)
    peaks["setup"] = read_peak()
    engine.backward(loss(engine), weight=1)
    engine.step()
    engine.backward(loss(engine), weight=1)
    counted = count(before, module, optimizer, num_bucket_bytes(strategy))
    engine.step()
    peaks["turns"] = read_peak()
    return counted, shapes, peaks


def num_bucket_bytes(strategy: trainkit.Strategy) -> int:
    return 4 * int(strategy.bucket_cap_mb * MIB / 4) if isinstance(strategy, trainkit.Zero3) else 0


def read_peak() -> int:
    """The largest resident memory since the last call; where the system cannot reset it, since the start."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        reset.write_text("5")
    except OSError as error:
        print(f"{reset}: {error.strerror}; peaks are those since the start", file=sys.stderr)
    return int(peak.split()[1]) * 1024


# -- what was promised -------------------------------------------------------------------------------------------------


def promise(strategy: trainkit.Strategy, shapes: Sequence[Sequence[int]], num_ranks: int) -> Bytes:
    """4 bytes an element, divided where the strategy spreads them."""
    whole = 4 * sum(math.prod(shape) for shape in shapes)
    shard = whole / num_shards(strategy, num_ranks)
    if isinstance(strategy, trainkit.FSDP):  # and HSDP
        return Bytes(parameters=shard, gradients=shard, optimizer=2 * shard)
    if isinstance(strategy, trainkit.Zero3):
        bucket = num_bucket_bytes(strategy)
        return Bytes(parameters=shard, copy=shard, gradients=shard, optimizer=2 * shard, buffer=bucket)
    if isinstance(strategy, trainkit.Zero2):
        return Bytes(parameters=whole, copy=shard, gradients=shard, optimizer=2 * shard)
    if isinstance(strategy, trainkit.Zero1):
        return Bytes(parameters=whole, copy=shard, gradients=whole, optimizer=2 * shard)
    return Bytes(parameters=whole, gradients=whole, optimizer=2 * whole)


def padding(strategy: trainkit.Strategy, shapes: Sequence[Sequence[int]], num_ranks: int) -> Bytes:
    """What a rank may hold more than promised, because of how the strategy cuts."""
    parts = num_shards(strategy, num_ranks)
    sizes = [math.prod(shape) for shape in shapes]
    shard = sum(sizes) / parts
    steps = 4 * len(shapes)
    if isinstance(strategy, trainkit.FSDP):
        rows = 4 * (sum(-(-shape[0] // parts) * math.prod(shape[1:]) for shape in shapes) - shard)
        return Bytes(parameters=rows, gradients=rows, optimizer=2 * rows + steps)
    if isinstance(strategy, trainkit.Zero3):
        elements = 4 * (sum(-(-size // parts) for size in sizes) - shard)
        kept = 4 * sum(size for size in sizes if size <= strategy.keep_below)
        return Bytes(parameters=elements + kept, copy=elements, gradients=elements, optimizer=2 * elements + steps)
    if isinstance(strategy, trainkit.Zero1):
        multiple = 2 * num_ranks  # DeepSpeed aligns a partition to two elements
        row = -(-sum(sizes) // multiple) * multiple
        end = 4 * (row / num_ranks - shard)
        across = 4 * (largest_touching(sizes, row // num_ranks) - shard) if isinstance(strategy, trainkit.Zero2) else 0
        return Bytes(parameters=4 * (row - sum(sizes)), copy=end, gradients=across, optimizer=2 * end + steps)
    return Bytes(optimizer=steps)


def num_shards(strategy: trainkit.Strategy, num_ranks: int) -> int:
    if isinstance(strategy, trainkit.HSDP):
        return strategy.shard_size or num_ranks
    return 1 if isinstance(strategy, trainkit.DDP) else num_ranks


def largest_touching(sizes: Sequence[int], partition: int) -> int:
    """The most elements that the parameters which lie in one partition, wholly or partly, have together.

    >>> largest_touching([3, 4, 5], partition=6)
    9
    """
    ends = torch.tensor(sizes).cumsum(0)
    starts = ends - torch.tensor(sizes)
    most = 0
    for first in range(0, int(ends[-1]), partition):
        touching = (starts < first + partition) & (ends > first)
        most = max(most, int((ends - starts)[touching].sum()))
    return most


# -- bert-base ---------------------------------------------------------------------------------------------------------


def measure_bert(name: str) -> dict[str, Any]:
    # Without dropout, whose masks are functions of the positions of a batch.
    architecture = Architecture(dropout=0.0, attention_dropout=0.0)
    torch.manual_seed(torch.distributed.get_rank())
    tokens_BT = torch.randint(30522, (4 // NUM_RANKS, 16))

    def loss(forward: Callable[..., Tensor]) -> Tensor:
        return F.cross_entropy(forward(tokens_BT).flatten(0, 1), tokens_BT.flatten())

    strategy = STRATEGIES[name]()
    counted, shapes, peaks = run(strategy, lambda: MaskedLanguageModel(architecture, 30522), loss, blocks=(Layer,))
    return {
        "num_parameters": sum(math.prod(shape) for shape in shapes),
        "counted_bytes": asdict(counted),
        "promised_bytes": asdict(promise(strategy, shapes, NUM_RANKS)),
        "padding_bytes": asdict(padding(strategy, shapes, NUM_RANKS)),
        "peak_bytes": peaks,
    }


def summarise(name: str, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the rank that holds most, kind by kind."""
    largest = {
        part: {kind: max(rank[part][kind] for rank in ranks) for kind in ranks[0][part]}
        for part in ("counted_bytes", "promised_bytes", "padding_bytes", "peak_bytes")
    }
    by_rank = [rank["counted_bytes"] for rank in ranks]
    num_parameters = ranks[0]["num_parameters"]
    return {
        "strategy": name,
        "num_parameters": num_parameters,
        "num_ranks": len(ranks),
        "shard_size": SHARD_SIZE if name == "hsdp" else None,
        **largest,
        "counted_bytes_by_rank": by_rank,
    }


HEADING = f"  {'':<8}{'':<12}{'counted':>10}{'promised':>10}{'padding':>10}   MiB, on the rank that holds most"


def table(result: dict[str, Any]) -> str:
    lines = []
    for kind, counted in result["counted_bytes"].items():
        promised, extra = result["promised_bytes"][kind], result["padding_bytes"][kind]
        if counted or promised:
            whole = 4 * result["num_parameters"] * (2 if kind == "optimizer" else 1)
            share = f"{counted / whole:.3f} of the whole" if kind != "buffer" else "for messages, whatever the model"
            cells = "".join(f"{value / MIB:>10.1f}" for value in (counted, promised, extra))
            lines.append(f"  {result['strategy']:<8}{kind:<12}{cells}   {share}")
    before, setup, turns = (f"{peak / MIB:.0f}" for peak in result["peak_bytes"].values())
    lines.append(f"  {result['strategy']:<8}peak: {before} before the module, {setup} in setup, {turns} in the turns")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=[*STRATEGIES, "all"], default="all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the ranks do
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MIB))  # read when a process starts
    facts, results = {**machine(), "malloc_mmap_threshold": int(os.environ["MALLOC_MMAP_THRESHOLD_"])}, []
    print(HEADING)
    for name in STRATEGIES:
        if arguments.strategy in (name, "all"):
            results.append(summarise(name, on_ranks(measure_bert, NUM_RANKS, name)))
            print(table(results[-1]), flush=True)
    write("memory", facts, results, arguments.output)


if __name__ == "__main__":
    main()
