"""Steps on a CPU with fused ops, with their references, and compiled: alternately in one process with one thread.

    python -m benchmarks.ops_steps        # about four minutes; --num-rounds 3 --toy for a quick check

BERT: the shape of recipe=bert without dropout, and bert-tiny with 0.1; AdamW, 32 samples of 128 tokens. The GAN: a step
of both networks at 32x32 in mid-fade, with the gradient penalty; torch.compile cannot differentiate it twice.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import trainkit
from benchmarks.overhead import machine, write
from benchmarks.steps import bert_step, gan_step
from trainkit.ops import mode
from trainkit_recipes.bert.model import TINY, Architecture
from trainkit_recipes.progressive_gan.networks import Widths

PLAIN = replace(
    TINY,
    num_layers=3,
    num_heads=4,
    num_segments=0,
    positions="relative",
    norm="pre",
    dropout=0.0,
    attention_dropout=0.0,
)
VOCABULARY, LENGTH = 8192, 128
Step = Callable[[], None]


def bert(architecture: Architecture, compiled: bool, batch_size: int) -> Step:
    runtime = _runtime(compiled)
    return _of(runtime, *bert_step(runtime, architecture, VOCABULARY, LENGTH, batch_size), batch_size)


def gan(resolution: int, batch_size: int) -> Step:
    runtime, widths = _runtime(False), Widths(latent_dim=64, fmap_base=1024, fmap_max=64)
    return _of(runtime, *gan_step(runtime, widths, resolution, batch_size), batch_size)


def _of(runtime: trainkit.Runtime, data: Any, step: Callable[[Any], None], batch_size: int) -> Step:
    batches = runtime.batches(data, batch_size=batch_size)
    return lambda: step(next(batches))


def _runtime(compiled: bool) -> trainkit.Runtime:
    return trainkit.Runtime(
        strategy="single", device="cpu", compile=compiled, hang_timeout_s=None, tracker=trainkit.Tracker()
    )


def in_turns(steps: dict[str, Step], num_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every step, by its name; `fused` alone runs with compiled ops."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(num_rounds + 2):
        for name, step in steps.items():
            mode.use("fused" if name == "fused" else "reference")
            began = time.perf_counter()
            step()
            if number >= 2:  # the first ones compile, and make the optimizer's state
                took[name].append(1e3 * (time.perf_counter() - began))
    mode.use("fused")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rounds", type=int, default=15)
    parser.add_argument("--toy", action="store_true", help="small, and nothing is written")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, kinds = (2 if arguments.toy else 32), ("fused", "reference", "compiled")
    cases = {
        "bert, no dropout": {kind: bert(PLAIN, kind == "compiled", size) for kind in kinds},
        "bert-tiny, dropout 0.1": {kind: bert(TINY, kind == "compiled", size) for kind in kinds},
        "gan 32x32, fading": {kind: gan(8 if arguments.toy else 32, 4 if arguments.toy else 16) for kind in kinds[:2]},
    }
    found: list[dict[str, Any]] = []
    for case, steps in cases.items():
        took = in_turns(steps, arguments.num_rounds)
        ratios = {
            name: statistics.median(other / fused for other, fused in zip(took[name], took["fused"], strict=True))
            for name in steps
        }
        medians = {name: statistics.median(each) for name, each in took.items()}
        found.append({"case": case, "median_ms": medians, "over_fused": ratios, "ms": took})
        print(case, {name: f"{ratio:.2f}x" for name, ratio in ratios.items()}, flush=True)
    if not arguments.toy:
        write("ops-steps", machine(), found, arguments.output)


if __name__ == "__main__":
    main()
