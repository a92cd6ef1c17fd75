"""The difference of each strategy from one process with the whole batch.

    python benchmarks/parity.py                              # the whole table; a few minutes on two idle cores
    python benchmarks/parity.py --model gan --strategies zero2 zero3 --ranks 2
    python benchmarks/parity.py --model kinds

Two models, for every strategy, on 1, 2 and 4 ranks, without accumulation and with four micro-batches:

  bert  BERT-tiny, AdamW, dropout 0, a mean over masked tokens, whose number differs between ranks;
  gan   the progressive GAN, SGD, from 4x4 into the fade of 8x8 after five of the ten steps; before it WGAN-GP, and
        from then on the logistic loss with R1 in every second step.

And small ones of many kinds (kinds.py), in fp64, or fp32 where required: of optimizers, of parameters, and of uses.

"weights" is max|a - b| / max|b| over all weights of the model after 10 steps, b being the single process with the whole
batch; the worst of those ranks that hold whole weights. "gradients" is the largest norm|a - b| / norm|b| of a tensor's
gradient in the first step. It is read from the momentum buffers of SGD, which hold just that after one step, whatever
the strategy: (before - after) / lr would give it too, less the digits that the weights have no room for.
"rounding" is the same figure for the single process when its batch is merely split into four micro-batches.

Two numbers of the GAN are such that fp32 can tell a gradient at all. Samples share a minibatch standard deviation by
fours: of two alone some channel is nearly the same in both, where its root has a second derivative of 10^4, and the
penalty asks for it. And drift is 0.1: the gradient of the critic's last bias is 1 - 1 + 2 * drift * the mean score.

A combination that is not supported shows the number of its error message. The exit status is 1 if a cell misses its
goal.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks.kinds import KINDS, train
from benchmarks.overhead import machine, write
from benchmarks.processes import Pools, RankError
from trainkit.precision import Name
from trainkit.strategy import by_name
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import TINY, Layer, MaskedLanguageModel
from trainkit_recipes.bert.pretrain import parameter_groups
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, Widths

STRATEGIES = ("single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")
RANKS, ACCUMULATIONS = (1, 2, 4), (1, 4)
NUM_STEPS = 10
BERT_BATCH, GAN_BATCH = 32, 64  # 4 ranks x 4 micro-batches x groups of 4
GOALS = {"fp64": {"weights": 1e-10, "gradients": 1e-10}, "fp32": {"weights": 5e-6, "gradients": 5e-5}}

LOSSES = (Loss(drift=0.1), Loss(name="logistic", drift=0.1, penalty_every=2))  # of the GAN: at 4x4, and from then on

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run: of which model, how, and what came of it."""

    model: str
    strategy: str
    precision: str
    ranks: int
    grad_accumulation_steps: int
    weights: float | None = None
    gradients: float | None = None
    error: str | None = None

    @property
    def cannot_be(self) -> bool:
        """DeepSpeed computes in fp32 whatever it is given, `single` is one process, and kinds have limits of theirs."""
        kind = KINDS.get(self.model)
        if kind is not None and self.strategy in kind.refused:
            return kind.is_refused(self.strategy, self.ranks, self.ranks * self.grad_accumulation_steps)
        return (self.strategy == "single" and self.ranks > 1) or (
            self.strategy.startswith("zero") and self.precision == "fp64"
        )

    @property
    def misses(self) -> bool:
        """Beyond a goal, or not a number; refused where it must not be, or not refused where it must."""
        if self.error is not None or self.cannot_be:
            return not (self.cannot_be and (self.error or "").startswith(("ConfigError: ", "UsageError: ")))
        figures = {what: getattr(self, what) for what in GOALS[self.precision]}
        within = [value <= GOALS[self.precision][what] for what, value in figures.items() if value is not None]
        return not within or not all(within)


# -- the two models ----------------------------------------------------------------------------------------------------


def strategy_of(name: str, world_size: int, model: str) -> trainkit.Strategy:
    if name == "ddp":
        return trainkit.DDP(find_unused_parameters=model.startswith("heads"))
    if name == "hsdp":
        return trainkit.HSDP(shard_size=min(2, world_size))
    return trainkit.Zero3(keep_below=16) if name == "zero3" else by_name(name)


def run(model: str, strategy: str, precision: str, grad_accumulation_steps: int) -> tuple[Tensors, Tensors]:
    """(weights after all steps, gradients of the first step), float64. Collective: every rank calls.

    Each rank returns what it holds whole; rank 0 returns everything.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    runtime = trainkit.Runtime(
        strategy=strategy_of(strategy, world_size, model),
        precision=cast(Name, precision),
        device="cpu",
        tracker=trainkit.Tracker(),
    )
    engines, first = (
        train(model, runtime, grad_accumulation_steps)
        if model in KINDS
        else MODELS[model](runtime, grad_accumulation_steps)
    )
    final = tensors_of(engines, "module")
    runtime.close()
    return final, first


def tensors_of(engines: dict[str, trainkit.Engine], part: str) -> Tensors:
    """A part of all engines' states. Collective: every rank calls."""
    states = {name: engine.state_dict()[part] for name, engine in engines.items()}
    return {f"{e}.{name}": tensor.double().clone() for e, state in states.items() for name, tensor in state.items()}


def bert(runtime: trainkit.Runtime, grad_accumulation_steps: int) -> tuple[dict[str, trainkit.Engine], Tensors]:
    torch.manual_seed(0)
    module = MaskedLanguageModel(replace(TINY, max_length=16, dropout=0.0, attention_dropout=0.0), 512)
    engine = runtime.setup(
        module,
        torch.optim.AdamW(parameter_groups(module), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        blocks=(Layer,),
        max_grad_norm=1.0,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(512, (256, 16), generator=generator)
    # The first of four slots is always masked, the others now and then.
    labels = torch.where(
        torch.rand(256, 4, generator=generator) < 0.3, torch.randint(512, (256, 4), generator=generator), -100
    )
    labels[:, 0] = tokens[:, 0]
    for batch in runtime.batches({"tokens": tokens, "labels": labels}, batch_size=BERT_BATCH, num_steps=NUM_STEPS):
        for micro in engine.micro_batches(batch):
            chosen = torch.arange(4).expand(len(micro), 4)
            loss, num_masked = masked_loss(engine(micro.tokens, chosen), micro.labels)
            engine.backward(loss, weight=num_masked)
        engine.step()
    return {"model": engine}, {}


def gan(runtime: trainkit.Runtime, grad_accumulation_steps: int) -> tuple[dict[str, trainkit.Engine], Tensors]:
    widths = Widths(latent_dim=16, fmap_base=128, fmap_max=32, channels=3, stddev_group=4)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(256, 3, 8, 8, generator=generator) * 2.0 - 1.0
    engines: dict[str, trainkit.Engine] = {}
    first: Tensors = {}
    for step, batch in enumerate(runtime.batches(images, batch_size=GAN_BATCH, num_steps=NUM_STEPS)):
        if step in (0, NUM_STEPS // 2):
            engines = _networks(runtime, widths, 4 if step == 0 else 8, grad_accumulation_steps, engines)
        _gan_step(runtime, engines, batch, widths, step)
        if step == 0:
            first = tensors_of(engines, "optimizer")
    return engines, first


def _networks(
    runtime: trainkit.Runtime,
    widths: Widths,
    resolution: int,
    grad_accumulation_steps: int,
    old: dict[str, trainkit.Engine],
) -> dict[str, trainkit.Engine]:
    torch.manual_seed(resolution)
    return {
        name: runtime.setup(
            network(widths, resolution, resolution == 8),
            # A little momentum, because its buffer holds the gradient of the first step.
            lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.1),
            name=name,
            grad_accumulation_steps=grad_accumulation_steps,
            inherit=old.get(name),
        )
        for name, network in (("G", Generator), ("D", Discriminator))
    }


def _gan_step(
    runtime: trainkit.Runtime, engines: dict[str, trainkit.Engine], batch: Any, widths: Widths, step: int
) -> None:
    G, D = engines["G"], engines["D"]
    loss_of, fade = LOSSES[step >= NUM_STEPS // 2], 0.1 * step
    resolution = D.module.resolution
    for micro in D.micro_batches(batch):
        images = micro.data.to(runtime.dtype)
        real = torch.nn.functional.avg_pool2d(images, images.shape[-1] // resolution)
        with torch.no_grad():
            fake = G(runtime.randn(micro, widths.latent_dim, name="D"), fade)
        mix, weight = runtime.rand(micro, name="mix"), loss_of.penalty_weight(step)
        loss, _ = loss_of.of_discriminator(D, real, fake, mix, fade=fade, penalty_weight=weight)
        D.backward(loss)
    D.step()
    for micro in G.micro_batches(batch):
        with D.frozen():
            G.backward(loss_of.of_generator(D(G(runtime.randn(micro, widths.latent_dim, name="G"), fade), fade)))
    G.step()


MODELS: dict[str, Callable[..., tuple[dict[str, trainkit.Engine], Tensors]]] = {"bert": bert, "gan": gan}


# -- figures -----------------------------------------------------------------------------------------------------------


def distance(a: Tensors, b: Tensors) -> float:
    """max|a - b| / max|b|, the latter over the whole model. NaN if anything is."""
    differences = torch.stack([(a[name] - b[name]).abs().max() for name in a])
    return float(differences.max() / torch.stack([tensor.abs().max() for tensor in b.values()]).max())


def distances_by_tensor(a: Tensors, b: Tensors) -> Tensor:
    """norm|a - b| / norm|b| of each tensor of `a`."""
    return torch.stack([(a[name] - b[name]).norm() / b[name].norm() for name in a])


@dataclass(frozen=True)
class Reference:
    """The single process with the whole batch, and what merely splitting its batch does to it."""

    model: str
    precision: str
    whole: tuple[Tensors, Tensors]
    split: tuple[Tensors, Tensors]

    def measured(self, cell: Cell, ranks: list[tuple[Tensors, Tensors]]) -> Cell:
        """The cell with its figures: the worst of what the ranks hold."""
        for mine, ours in zip(ranks[0], self.whole, strict=True):
            if mine.keys() != ours.keys():
                raise RuntimeError(f"the runs hold different tensors: {sorted(mine.keys() ^ ours.keys())[:3]}")
        weights, gradients = self.whole
        far = torch.tensor([distance(held, weights) for held, _ in ranks if held])
        far_at_first = [distances_by_tensor(held, gradients) for _, held in ranks if held]
        first = float(torch.cat(far_at_first).max()) if far_at_first else None
        return replace(cell, weights=float(far.max()), gradients=first)

    def rounding(self) -> Cell:
        return self.measured(Cell(self.model, "single", self.precision, 1, 4), [self.split])


# -- the table ---------------------------------------------------------------------------------------------------------


def cells(models: list[str], strategies: list[str], ranks: list[int]) -> Iterator[Cell]:
    for model in models:
        for precision in GOALS:
            for strategy in strategies:
                if model in KINDS and (precision == "fp32") != strategy.startswith("zero"):
                    continue
                for world_size in ranks:
                    for grad_accumulation_steps in ACCUMULATIONS:
                        yield Cell(model, strategy, precision, world_size, grad_accumulation_steps)


def measure(wanted: list[Cell]) -> tuple[list[Cell], list[Reference]]:
    """The cells with their figures, and what they are held against."""
    pools, done = Pools(), []
    references: dict[tuple[str, str], Reference] = {}
    try:
        for number, cell in enumerate(wanted, start=1):
            key = (cell.model, cell.precision)
            if key not in references:
                whole, split = (pools.run(1, run, cell.model, "single", cell.precision, n)[0] for n in (1, 4))
                references[key] = Reference(*key, whole, split)
            try:
                ranks = pools.run(
                    cell.ranks, run, cell.model, cell.strategy, cell.precision, cell.grad_accumulation_steps
                )
                done.append(references[key].measured(cell, ranks))
            except RankError as error:
                done.append(replace(cell, error=str(error)))
            at = f"{cell.model} {cell.precision} {cell.strategy} on {cell.ranks}"
            print(f"\r{number} of {len(wanted)}: {at:<24}", end="", file=sys.stderr, flush=True)
    finally:
        pools.end()
        print(file=sys.stderr)
    return done, list(references.values())


def table(done: list[Cell], references: list[Reference]) -> str:
    columns = list(dict.fromkeys((cell.ranks, cell.grad_accumulation_steps) for cell in done))
    errors = list(dict.fromkeys(cell.error for cell in done if cell.error is not None))
    lines = [
        f"after {NUM_STEPS} steps, over the single process with the whole batch; columns: ranks x micro-batches",
        _line("model", "of", "", "strategy", [f"{r} x {a}" for r, a in columns], "rounding", "goal"),
    ]
    for reference in references:
        mine = [cell for cell in done if (cell.model, cell.precision) == (reference.model, reference.precision)]
        rounding = reference.rounding()
        for what, goal in GOALS[reference.precision].items():
            if getattr(rounding, what) is None:
                continue
            for strategy in dict.fromkeys(cell.strategy for cell in mine):
                row = {(cell.ranks, cell.grad_accumulation_steps): cell for cell in mine if cell.strategy == strategy}
                shown = [figure(row[at], what, errors) for at in columns]
                sizes = figure(rounding, what, errors), f"{goal:.0e}"
                lines.append(_line(reference.model, what, reference.precision, strategy, shown, *sizes))
    return "\n".join([*lines, *(f"[{number}] {error}" for number, error in enumerate(errors, start=1))])


def _line(model: str, of: str, precision: str, strategy: str, shown: list[str], rounding: str, goal: str) -> str:
    start = f"{model:<15}{of:<11}{precision:<6}{strategy:<10}"
    return start + "".join(f"{text:<11}" for text in [*shown, rounding]) + goal


def figure(cell: Cell, what: str, errors: list[str]) -> str:
    if cell.error is not None:
        return f"[{errors.index(cell.error) + 1}]" + ("!" if cell.misses else "")
    return f"{getattr(cell, what):.1e}" + ("!" if cell.misses else "")


def results(done: list[Cell], references: list[Reference]) -> list[dict[str, Any]]:
    return [
        {
            "model": reference.model,
            "precision": reference.precision,
            "goals": GOALS[reference.precision],
            "rounding": {what: getattr(reference.rounding(), what) for what in GOALS[reference.precision]},
            "cells": [
                {name: value for name, value in asdict(cell).items() if name not in ("model", "precision")}
                for cell in done
                if (cell.model, cell.precision) == (reference.model, reference.precision)
            ],
        }
        for reference in references
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "kinds", *KINDS, "all"], default="all")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="NAME",
                        help=f"of {', '.join(STRATEGIES)} (default: all)")  # fmt: skip
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS), metavar="N",
                        help="numbers of processes: 1, 2, 4 (default: all)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    named = {"all": [*MODELS, *KINDS], "kinds": list(KINDS)}
    models = named.get(arguments.model, [arguments.model])
    done, references = measure(list(cells(models, arguments.strategies, arguments.ranks)))
    print(table(done, references))
    write("parity", facts, results(done, references), arguments.output)
    missed = [cell for cell in done if cell.misses]
    print(f"{len(missed)} of {len(done)} cells miss their goal, and are marked with an exclamation mark")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
