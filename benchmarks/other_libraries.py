"""The loop of a benchmark's case in Lightning Fabric and in Hugging Face Accelerate, where they are installed.

Both are set up for one process on the CPU in float32, and take the batches that the raw loop takes. They are no
dependencies of trainkit: `pip install lightning accelerate` adds them.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from benchmarks.overhead import Case

Loop = Callable[["Case", nn.Module, Iterator[Any]], Iterator[None]]


def fabric_turns(case: "Case", module: nn.Module, batches: Iterator[Any]) -> Iterator[None]:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(module, case.make_optimizer(module.parameters()))
    while True:
        for samples in islice(batches, case.steps_a_turn):
            loss = case.loss(model, samples)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        yield


def accelerate_turns(case: "Case", module: nn.Module, batches: Iterator[Any]) -> Iterator[None]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(module, case.make_optimizer(module.parameters()))
    while True:
        for samples in islice(batches, case.steps_a_turn):
            loss = case.loss(model, samples)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        yield


def installed() -> tuple[Mapping[str, Loop], Mapping[str, str]]:
    """The loops by the library's name and version, and the reasons why others cannot be measured."""
    import importlib

    found: dict[str, Loop] = {}
    missing: dict[str, str] = {}
    for name, title, turns in (
        ("lightning", "Lightning Fabric", fabric_turns),
        ("accelerate", "Accelerate", accelerate_turns),
    ):
        try:
            library = importlib.import_module(name)
        except ImportError as error:
            missing[title] = f"{error}: pip install {name}"
            print(f"{title} is not measured: {missing[title]}", file=sys.stderr)
        else:
            found[f"{title} {library.__version__}"] = turns
    return found, missing
