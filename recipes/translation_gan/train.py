"""TranslationGAN: two generators and two discriminators, four engines that train together."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainkit import Engine, Last, Recipe, Runtime, Schedule
from trainkit.data import Batch, Datasets
from trainkit.errors import ConfigError, DataError, require_above_zero, require_at_least
from trainkit.evaluation import Better
from trainkit.export import Exporter
from trainkit_recipes.translation_gan.evaluation import (
    SIDES,
    TRAINING_IMAGES,
    UNTRANSLATED,
    Evaluation,
    Evaluator,
    Side,
    images_of,
    other,
)
from trainkit_recipes.translation_gan.export import to_onnx
from trainkit_recipes.translation_gan.losses import l1, least_squares
from trainkit_recipes.translation_gan.networks import Discriminator, Generator, Shape
from trainkit_recipes.translation_gan.pictures import rows_of

_NUM_EPOCHS = 200.0  # of the paper


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the generators' losses: the keys of `recipe.losses`.

    Args:
        cycle: of the difference of an image to what it is after a translation and back.
        identity: of the difference of an image of a generator's own side to its translation, as a fraction of `cycle`;
            0: none. The paper uses 0.5 for paintings, whose colours it keeps.

    Raises:
        ConfigError: for values below 0.
    """

    cycle: float = 10.0
    identity: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(0, "recipe.losses.", cycle=self.cycle, identity=self.identity)


class TranslationGAN(Recipe):
    """Learns to translate between two sets of images without pairs (CycleGAN, arXiv 1703.10593).

    The generators are updated together, as in the paper, from a loss of both: each engine's turn computes the gradient
    of its own parameters, and both step after the second turn. Then the discriminators see the images that the
    generators made in these turns, exchanged with those of a pool.

    Args:
        runtime: of the run.
        data: a specification such as `UnpairedImages`, or data sets whose items are {"first": ..., "second": ...}, each
            images: uint8, or floats of -1 .. 1.
        optimizer: makes one from parameter groups; each of the four networks gets its own.
        schedule: of the learning rates.
        networks: sizes of the networks.
        batch_size: samples in a global batch, of each side.
        num_steps: length of the run in global batches; None: see `num_epochs`.
        num_epochs: length in passes over the larger set. At most one of the two may be given; without both, 200.
        grad_accumulation_steps: micro-batches per step.
        ema_decay: of the averaged generators, per step.
        losses: weights of the generators' losses; None: the defaults of `Losses`.
        pool_size: generated images of earlier steps for each discriminator; 0: it sees only new ones.
        evaluation: what an evaluation measures and shows; None: the defaults of `Evaluation`.

    Raises:
        ConfigError: for values out of range or that do not match.
        DataError: for images of another shape.
    """

    best_metric: str | None = "swd"
    better: Mapping[str, Better] = {f"swd_{side}": "lower" for side in SIDES}
    ideals = (TRAINING_IMAGES,)
    task_name = "image-to-image"

    def __init__(
        self,
        runtime: Runtime,
        *,
        data: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule | None = None,
        networks: Shape | None = None,
        batch_size: int = 1,
        num_steps: PositiveInt | None = None,
        num_epochs: float | None = None,
        grad_accumulation_steps: int = 1,
        ema_decay: float = 0.999,
        losses: Losses | None = None,
        pool_size: int = 50,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.shape, self.losses = networks or Shape(), losses or Losses()
        require_at_least(1, "recipe.", batch_size=batch_size, grad_accumulation_steps=grad_accumulation_steps)
        require_at_least(0, "recipe.", pool_size=pool_size)
        require_above_zero("recipe.", num_epochs=num_epochs)
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"recipe.ema_decay={ema_decay}: must be 0 or more, and below 1")
        if num_steps is not None and num_epochs is not None:
            raise ConfigError(f"recipe.num_steps={num_steps}, recipe.num_epochs={num_epochs}: give one of the two")
        least = runtime.ranks.world_size * grad_accumulation_steps
        if batch_size < least:
            raise ConfigError(
                f"recipe.batch_size={batch_size}: with {runtime.ranks.world_size} ranks and "
                f"grad_accumulation_steps={grad_accumulation_steps}, it must be {least} or more; set "
                f"recipe.batch_size={least}"
            )
        self.runtime, self.batch_size = runtime, batch_size
        self.datasets: Datasets = runtime.ranks.first_on_host(data.load)
        if num_steps is None:
            num_steps = max(1, math.ceil((num_epochs or _NUM_EPOCHS) * self._epoch_length() / batch_size))
            self.length_key = "recipe.num_epochs"
        self.num_samples = num_steps * batch_size
        if len(self.datasets.train):
            _require_fitting(self.datasets.train[0], self.shape)
        self.evaluator = Evaluator(runtime, evaluation or Evaluation(), self.datasets)
        self._measured: tuple[int, dict[str, float]] | None = None
        """The position of the last evaluation, and what it has measured."""
        setup = partial(
            runtime.setup,
            schedule=schedule.until(num_steps, batch_size) if schedule is not None else None,
            grad_accumulation_steps=grad_accumulation_steps,
        )
        self.generators: dict[Side, Engine] = {
            side: setup(Generator(self.shape), optimizer, name=f"to_{side}", ema_decay=ema_decay) for side in SIDES
        }
        self.discriminators: dict[Side, Engine] = {
            side: setup(Discriminator(self.shape, pool_size), optimizer, name=f"D_{side}") for side in SIDES
        }

    def engines(self) -> dict[str, Engine]:
        """Returns the engines: `to_first`, `to_second`, `D_first` and `D_second`."""
        generators = {f"to_{side}": engine for side, engine in self.generators.items()}
        return {**generators, **{f"D_{side}": engine for side, engine in self.discriminators.items()}}

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """Returns no data if only engines are needed."""
        return {"data": Datasets(train=(), held_out=()) if data is None else data}

    def epochs_at(self, position: int) -> float | None:
        """Returns the passes over the larger set before a position."""
        length = self._epoch_length()
        return position / length if length else None

    def _epoch_length(self) -> int:
        return int(getattr(self.datasets.train, "epoch_length", len(self.datasets.train)))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Returns this rank's share of the batches, each side in epochs and in an order of its own."""
        train = self.datasets.train
        return self.runtime.batches(
            train,
            batch_size=self.batch_size,
            start=start,
            num_steps=max(0, -(-(self.num_samples - int(start)) // self.batch_size)),
            collate=self.datasets.collate,
            order=getattr(train, "order", None),
        )

    # -- a step ------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Updates both generators, then both discriminators."""
        fakes: dict[Side, list[Tensor]] = {}
        logged: dict[str, Tensor | float | Last] = {}
        for side in SIDES:
            fakes[side], terms = self._generator_turn(batch, side, fakes.get(other(side)))
            logged |= {f"{name}_{side}": value for name, value in terms.items()}
        results = [self.generators[side].step() for side in SIDES]
        for side, result in zip(SIDES, results, strict=True):
            logged |= {f"g_loss_{side}": result.loss, f"g_grad_norm_{side}": result.grad_norm}
        for side in SIDES:
            results.append(self._update_discriminator(batch, side, fakes[side]))
            logged |= {f"d_loss_{side}": results[-1].loss, f"d_grad_norm_{side}": results[-1].grad_norm}
        return {
            **logged,
            "lr": Last(results[0].lr),
            "skipped": float(any(result.skipped for result in results)),
        }

    def _generator_turn(
        self, batch: Batch, side: Side, others: list[Tensor] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Adds the gradient of both generators' loss with respect to the one that translates to `side`.

        Args:
            batch: this rank's share.
            side: that it translates to.
            others: what the other generator made in its turn, by micro-batch; None: its turn comes later.

        Returns:
            The translated images of each micro-batch, and terms of the loss in the last one by name.
        """
        forth, back, judge = self.generators[side], self.generators[other(side)], self.discriminators[side]
        weights, fakes, terms = self.losses, list[Tensor](), dict[str, Tensor]()
        for micro in forth.micro_batches(batch):
            source, target = (images_of(micro.data, name, self.runtime.dtype) for name in (other(side), side))
            if others is None:
                with torch.no_grad():
                    away = back(target)
            else:
                away = others[len(fakes)]
            with back.frozen(), judge.frozen():
                fake = forth(source)
                terms["fooling"] = least_squares(judge(fake), 1.0)
                # Each generator has a part in both cycles: it begins one, and ends the other.
                terms["cycle"] = l1(back(fake), source) + l1(forth(away), target)
                loss = terms["fooling"] + weights.cycle * terms["cycle"]
                if weights.identity:
                    loss = loss + weights.cycle * weights.identity * l1(forth(target), target)
                forth.backward(loss)
            fakes.append(fake.detach())
        return fakes, {name: value.detach() for name, value in terms.items()}

    def _update_discriminator(self, batch: Batch, side: Side, fakes: list[Tensor]) -> Any:
        judge = self.discriminators[side]
        fake = self._exchanged(batch, side, _joined(fakes, len(batch)))
        both = replace(batch, data={"real": images_of(batch.data, side, self.runtime.dtype), "fake": fake})
        for micro in judge.micro_batches(both):
            real, generated = judge(torch.cat((micro.real, micro.fake))).chunk(2)
            # Half of it, so that it learns more slowly than the generators (section 7.1).
            judge.backward((least_squares(real, 1.0) + least_squares(generated, 0.0)) / 2)
        return judge.step()

    def _exchanged(self, batch: Batch, side: Side, fake: Tensor) -> Tensor:
        """Exchanges this rank's translated images with those of the pool, which all ranks hold alike. Collective."""
        ranks, judge = self.runtime.ranks, self.discriminators[side].module
        assert isinstance(judge, Discriminator)
        positions = torch.arange(batch.position, batch.position + batch.size)
        draws = self.runtime.rand(Batch(None, batch.position, batch.size, positions, positions), 2, name=f"pool {side}")
        shown = judge.pool.exchanged(ranks.all_gather(fake, batch.size), draws, batch.position)
        return shown[ranks.rank :: ranks.world_size].to(fake.dtype)

    # -- evaluation --------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[dict[Side, nn.Module]]:
        """Context manager that gives the generators with their averaged weights, by the side that they translate to."""
        with ExitStack() as stack:
            yield {side: stack.enter_context(engine.averaged()) for side, engine in self.generators.items()}

    def evaluate(self) -> dict[str, float]:
        """Returns distances and cycle errors (see `Evaluator.measure`), and logs a picture of translations."""
        with self.averaged() as generators:
            measured = self.evaluator.measure(generators)
            with torch.no_grad():
                picture = rows_of(*self.evaluator.shown(), generators)
        self._measured = self.runtime.position, measured
        self.runtime.tracker.image(self.runtime.step, "translations", picture)
        return measured

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Returns the distances of images that are not translated, and as ideals those of training images."""
        by_side = [self.evaluator.baselines(side) for side in SIDES]
        both = {name: sum(of[name] for of in by_side) / 2 for name in by_side[0] if name in by_side[1]}
        return {"swd": both, **{f"swd_{side}": of for side, of in zip(SIDES, by_side, strict=True)}}

    def finish(self) -> None:
        """Logs a table of distances: of untranslated, translated and training images."""
        if self._measured is not None and self._measured[0] == self.runtime.position:
            measured = self._measured[1]
        else:  # an earlier process has evaluated here
            with self.averaged() as generators:
                measured = self.evaluator.measure(generators)
        rows = []
        for side in SIDES:
            distances = dict(self.evaluator.baselines(side))
            untranslated = distances.pop(UNTRANSLATED)
            named = {UNTRANSLATED: untranslated, "translated images": measured[f"swd_{side}"], **distances}
            for name, distance in named.items():
                fraction = round(distance / untranslated, 3) if untranslated else None  # both sets may be the same
                rows.append((f"{side}: {name}", round(distance, 2), fraction))
        title = "sliced Wasserstein distance to held-out images"
        self.runtime.tracker.table(self.runtime.step, title, ("images of", "swd", "fraction of untranslated"), rows)

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Returns the command that translates a folder."""
        command = ["python", "-m", "trainkit_recipes.translation_gan.translate", str(run_dir)]
        return [[*command, "FOLDER", "--to", "second", "--output", "translated"]]

    def exporters(self) -> dict[str, Exporter]:
        """Returns what writes an ONNX file of each generator."""
        return {f"onnx_to_{side}": partial(to_onnx, self, side) for side in SIDES}


def _joined(parts: list[Tensor], num: int) -> Tensor:
    """Joins what was made of micro-batches, in the order of the local batch."""
    whole = parts[0].new_empty(num, *parts[0].shape[1:])
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def _require_fitting(sample: Any, shape: Shape) -> None:
    wanted = (shape.channels, shape.resolution, shape.resolution)
    for side in SIDES:
        found = (*images_of(sample, side, torch.float32).shape,)
        if found != wanted:
            raise DataError(
                f"recipe.networks.resolution={shape.resolution} and recipe.networks.channels={shape.channels} do not "
                f"fit the {side} images, of shape {[*found]}: set data.images.resolution and data.images.channels to "
                f"the same"
            )
