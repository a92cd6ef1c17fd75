"""Correctness and speed of every op on a GPU; steps of BERT, the GAN and optimizers with and without the ops.

    python -m benchmarks.gpu                 # all of it, in under nine minutes on one GPU
    python -m benchmarks.gpu --toy           # on the CPU at toy size, in under a minute, without figures
    python -m benchmarks.gpu --cpu           # the ops at real sizes on one thread of a CPU, for the defaults

1. Each op, compiled, against float64 on a CPU in plain PyTorch: values, gradients, second derivatives; all precisions.
   So the kernels of CPU and GPU, and their dropout masks, agree with each other, too.
2. Its time and that of its reference, eager and under torch.compile: medians by CUDA events around a CUDA graph that
   goes through more buffers than a cache holds; the bytes that must move, over that time, as a share of a plain copy
   (bytes read and bytes written, both).
3. Steps of BERT-base and BERT-large, of the GAN's top resolutions, and of optimizers.
`--parts checks times steps` selects among the three; `--limit` is the time limit in seconds.

One file is written, <what>_<hardware>_<date>.json, and its tables next to it as Markdown. It lists what was skipped for
lack of time. The exit status is 1 if an op is wrong.

It needs torch with Triton, numpy, safetensors, a C++ compiler and nvcc; `import trainkit` loads neither Hydra,
pydantic, wandb nor deepspeed. On a machine without a network, copy wheels of the missing packages:
    pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels safetensors nvidia-ml-py
    pip install --no-index --no-deps --target site wheels/*.whl; PYTHONPATH=site python -m benchmarks.gpu
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import steps
from benchmarks.op_table import ENTRIES, Entry, EveryOpFused
from benchmarks.op_timing import check, copy_gb_per_s, measure, short_reason
from benchmarks.overhead import machine, write
from trainkit.ops import mode

LIMIT_S = 520.0  # of the nine minutes; what has begun is finished
LOW = (torch.bfloat16, torch.float16)
GAN_PRECISIONS = ("bf16", "tf32", "fp32")
PARTS = ("checks", "times", "steps")
Kernels = Literal["fused", "reference", "compiled"]
KERNELS: tuple[Kernels, ...] = ("fused", "reference", "compiled")


@dataclass
class Bench:
    """How much is measured, where; and what was found."""

    device: str
    size: str
    timed: tuple[torch.dtype, ...]
    num_rounds: int
    copy_bytes: int
    compiler: str = "inductor"
    berts: tuple[tuple[str, int, int], ...] = ()  # name, length, batch size
    compared: str | None = None  # the precision in which BERTs also run as plain PyTorch, and compiled
    gans: tuple[tuple[int, int], ...] = ()  # resolution, batch size
    precisions: tuple[str, ...] = ()
    optimized: str | None = None
    num_steps: int = 8
    parts: tuple[str, ...] = PARTS
    until: float = field(default_factory=lambda: time.monotonic() + LIMIT_S)
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self, kind: str, measured: Callable[[], dict[str, Any]], **about: Any) -> None:
        """Adds a result of that kind; of what there is no time for, or no memory, the reason."""
        if time.monotonic() > self.until:
            found = {**about, "skipped": "no time was left"}
        else:
            try:
                found = {**about, **measured()}
            except torch.OutOfMemoryError as error:
                found = {**about, "skipped": f"out of memory: {str(error).splitlines()[0][:80]}"}
            except Exception as error:  # what else was measured is not lost for it
                traceback.print_exc()
                found = {**about, "skipped": short_reason(error)}
        self.results.append({"kind": kind, **found})
        print(line(self.results[-1]), flush=True)


GPU = {
    "device": "cuda", "size": "gpu", "timed": (torch.bfloat16,), "num_rounds": 20, "copy_bytes": 1 << 30,
    "berts": (("bert-large", 128, 256), ("bert-large", 512, 64), ("bert-base", 128, 64), ("bert-base", 512, 16)),
    "compared": "bf16",
    "gans": ((256, 16), (512, 8), (1024, 4)), "precisions": ("bf16", "fp16", "tf32", "fp32"),
    "optimized": "bert-large",
}  # fmt: skip
TOY: dict[str, Any] = {
    "device": "cpu", "size": "toy", "timed": (torch.float32,), "num_rounds": 2, "copy_bytes": 1 << 20,
    "compiler": "aot_eager",  # what inductor takes to compile is not for CI
    "berts": (("bert-tiny", 16, 2),), "gans": ((8, 4),), "precisions": ("bf16", "fp32"), "compared": "fp32",
    "optimized": "bert-tiny",
    "num_steps": 1,
}  # fmt: skip
CPU = {"device": "cpu", "size": "cpu", "timed": (torch.float32,), "num_rounds": 21, "copy_bytes": 1 << 28}


def ops(bench: Bench, entries: Iterable[Entry]) -> None:
    """Points 1 and 2."""
    copied = copy_gb_per_s(bench.device, bench.copy_bytes, bench.num_rounds)
    bench.results.append({"kind": "copy", "gb_per_s": round(copied, 2), "num_bytes": bench.copy_bytes})
    present = []
    for entry in entries:
        if entry.absent:
            bench.results.append({"kind": "check", "op": entry.name, "skipped": entry.absent})
        else:
            present.append(entry)
    exact = () if bench.device == "cuda" else (torch.float64,)
    with EveryOpFused():
        for entry in present if "checks" in bench.parts else ():
            for dtype in (*exact, torch.float32, *LOW):
                for size in ("toy", "check"):  # odd shapes, and such as are read 16 bytes at a time
                    bench.run("check", partial(check, entry, size, dtype, bench.device), op=entry.name)
        for entry in present if "times" in bench.parts else ():
            for dtype in bench.timed:
                bench.run("time", partial(timed, bench, entry, dtype, copied), op=entry.name)


def timed(bench: Bench, entry: Entry, dtype: torch.dtype, copied: float) -> dict[str, Any]:
    found = measure(entry, bench.size, dtype, bench.device, bench.num_rounds, bench.compiler)
    for part in ("forward", "both"):
        found[part]["share_of_copy"] = round(found[part]["gb_per_s"]["fused"] / copied, 3)
    return found


def models(bench: Bench) -> None:
    """Point 3: what is wanted most comes first, since time may run out."""
    if bench.optimized:
        for name in steps.optimizers(bench.device):
            arguments = (name, bench.optimized, bench.device, bench.num_steps)
            bench.run("optimizer", partial(steps.optimizer, *arguments), optimizer=name)
    for precision in bench.precisions:
        for case in bench.berts:
            _bert(bench, case, precision, "fused")
        _gans(bench, precision, "fused")
    for case in bench.berts if bench.compared else ():  # without dropout the references are what one would write
        for kernels in KERNELS:
            assert bench.compared is not None
            _bert(bench, case, bench.compared, kernels, dropout=0.0)
    for precision in bench.precisions:
        _gans(bench, precision, "reference")


def _bert(bench: Bench, case: tuple[str, int, int], precision: str, kernels: Kernels, dropout: float = 0.1) -> None:
    name, length, batch_size = case
    given = (name, length, batch_size, precision, bench.device, bench.num_steps, dropout, kernels == "compiled")
    bench.run(
        "step", lambda: _with(kernels, steps.bert, *given),
        model=name, length=length, precision=precision, dropout=dropout, ops=kernels,
    )  # fmt: skip


def _gans(bench: Bench, precision: str, kernels: Kernels) -> None:
    """Never compiled: a gradient penalty is differentiated twice, which torch.compile cannot."""
    for resolution, batch_size in bench.gans if precision in GAN_PRECISIONS else ():
        given = (resolution, batch_size, precision, bench.device, bench.num_steps)
        bench.run(
            "step", partial(_with, kernels, steps.gan, *given),
            model=f"gan-{resolution}", precision=precision, ops=kernels,
        )  # fmt: skip


def _with(kernels: Kernels, measured: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    # What is compiled is what torch makes of the references.
    mode.use("reference" if kernels == "compiled" else kernels)
    try:
        return measured(*given)
    finally:
        mode.use("fused")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# -- words -------------------------------------------------------------------------------------------------------------


def line(result: dict[str, Any]) -> str:
    """One result while it runs."""
    kind = result["kind"]
    keys = ("op", "optimizer", "model", "length", "precision", "dropout", "ops", "dtype")
    named = " ".join(str(result[key]) for key in keys if key in result)
    if "skipped" in result:
        return f"{kind:<10}{named}: skipped, {result['skipped']}"
    if kind == "check":
        errors = ", ".join(f"{order} {error:.1e}" for order, error in result["errors"].items())
        return f"{kind:<10}{named}: {'' if result['holds'] else 'WRONG, '}{errors} (limit {result['limit']:.0e})"
    if kind == "time":
        both = result["both"]
        named += "".join(f", {name} failed ({why})" for name, why in result.get("failed", {}).items())
        return f"{kind:<10}{named}: {both['us']} us, {100 * both['share_of_copy']:.0f} % of a copy"
    return f"{kind:<10}{named}: {result['step_ms']} ms"


def markdown(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The tables, with what was not measured and why."""
    by_kind = {
        kind: [r for r in results if r["kind"] == kind and "skipped" not in r] for kind in ("check", "time", "step")
    }
    copied = next(r["gb_per_s"] for r in results if r["kind"] == "copy")
    wrong = [line(r) for r in by_kind["check"] if not r["holds"]]
    parts = [
        f"# Ops on {facts.get('gpu') or facts['cpu']}",
        "At toy size: that it runs, not how fast." if facts["sizes"] == "toy" else "",
        f"Sizes: {facts['sizes']}; torch {facts['torch']}. A plain copy reads and writes {copied} GB/s.",
        f"{len(by_kind['check'])} checks against float64; {len(wrong) or 'none'} wrong.",
        *wrong,
        *[
            _op_table(by_kind["time"], part, title)
            for part, title in (("forward", "Forward"), ("both", "Forward, backward"))
        ],
        _step_table(by_kind["step"]),
        _optimizer_table([r for r in results if r["kind"] == "optimizer" and "skipped" not in r]),
        "\n".join(f"- {line(r)}" for r in results if "skipped" in r),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    body = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *body]) if body else ""


def _op_table(results: list[dict[str, Any]], part: str, title: str) -> str:
    head = [f"{title}: op", "dtype", "shape", "us", "eager / fused", "compiled / fused", "GB/s", "of a copy"]
    return _table(head, (
        [r["op"], r["dtype"], r["sizes"], r[part]["us"]["fused"], r[part]["fused_over"].get("reference", "failed"),
         r[part]["fused_over"].get("compiled", "failed"), r[part]["gb_per_s"]["fused"],
         f"{100 * r[part]['share_of_copy']:.0f} %"]
        for r in results
    ))  # fmt: skip


def _step_table(results: list[dict[str, Any]]) -> str:
    head = ["Step of", "length", "batch", "precision", "dropout", "ops", "ms", "of the host", "samples/s", "MFU", "GB"]
    keys = ("model", "length", "batch_size", "precision", "dropout", "ops", "step_ms", "host_ms", "samples_per_s",
            "mfu", "peak_memory_gb")  # fmt: skip
    return _table(head, ([_cell(r.get(key)) for key in keys] for r in results))


def _optimizer_table(results: list[dict[str, Any]]) -> str:
    keys = ("optimizer", "model", "num_parameters", "step_ms", "gb_per_s")
    return _table(["Optimizer", "of", "parameters", "ms", "GB/s"], ([_cell(r[key]) for key in keys] for r in results))


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--toy", action="store_true", help="on the CPU, at toy size")
    where.add_argument("--cpu", action="store_true", help="the ops only, at real sizes, on one thread of the CPU")
    parser.add_argument("--ops", nargs="+", choices=[entry.name for entry in ENTRIES], help="these ops only, no models")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the three (default: all)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help=f"default: {LIMIT_S:.0f}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    given = parser.parse_args(arguments)
    if not (given.toy or given.cpu or torch.cuda.is_available()):
        parser.error("there is no GPU: use --toy or --cpu")
    bench = Bench(**(TOY if given.toy else CPU if given.cpu else GPU))
    bench.parts, bench.until = tuple(part for part in PARTS if part in given.parts), time.monotonic() + given.limit
    if given.cpu:
        torch.set_num_threads(1)
        bench.until = float("inf")
    facts = {**machine(), "sizes": bench.size, "gpu": torch.cuda.get_device_name() if bench.device == "cuda" else None}
    with suppress(KeyboardInterrupt):  # what was measured until then is written: timeout --signal=INT
        ops(bench, [entry for entry in ENTRIES if not given.ops or entry.name in given.ops])
        if "steps" in bench.parts and not given.ops:
            models(bench)
    chosen = "gpu" if bench.parts == PARTS else "-".join(("gpu", *bench.parts))
    what = "gpu-toy" if given.toy else "ops" if given.cpu else chosen
    path = write(what, facts, bench.results, given.out)
    text = markdown(facts, bench.results)
    path.with_suffix(".md").write_text(text)
    print(text)
    return int(any(r["kind"] == "check" and not r.get("holds", True) for r in bench.results))


if __name__ == "__main__":
    sys.exit(main())
