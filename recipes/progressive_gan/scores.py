"""Scores: what D says of training, held-out and generated images. Their distances show whether it overfits."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from trainkit import Engine, Runtime
from trainkit.data import Batch, Datasets
from trainkit_recipes.progressive_gan.real_images import at_resolution

NUM_SCORED = 1024  # images of each kind in an evaluation, at most
OVERFITTING = 0.5  # above it an evaluation warns
Score = Callable[[Batch], Tensor]


def overfitting_of(train: float, held_out: float, fake: float) -> float:
    """Computes r_v = (train - held_out) / (train - fake) of mean scores (Karras et al. 2020, section 3.1).

    Returns:
        0 where held-out images get the scores of training images, or generated ones do; 1 where held-out images get
        those of generated ones.

    Example:
        >>> overfitting_of(train=2.0, held_out=1.5, fake=0.0)
        0.25
    """
    return (train - held_out) / (train - fake) if train > fake else 0.0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Mean scores of D over as many images of each kind.

    Args:
        train: of training images.
        held_out: of held-out images.
        fake: of generated images.
        sign: mean sign of those of training images.
        deviation: standard error of `train - held_out`.
    """

    train: float
    held_out: float
    fake: float
    sign: float
    deviation: float

    @property
    def overfitting(self) -> float:
        """See `overfitting_of`."""
        return overfitting_of(self.train, self.held_out, self.fake)

    @property
    def is_overfitting(self) -> bool:
        """Whether held-out images get scores nearer to generated than to training images, by more than chance."""
        return self.overfitting > OVERFITTING and self.train - self.held_out > 3.0 * self.deviation

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of an evaluation."""
        return {"d_train_score": self.train, "d_held_out_score": self.held_out, "d_fake_score": self.fake}


class Scorer:
    """Measures scores of D. All methods are collective: every rank must call.

    Groups of the minibatch standard deviation are those of training, so that scores do not depend on ranks.

    Args:
        runtime: of the run.
        datasets: training and held-out images.
    """

    def __init__(self, runtime: Runtime, datasets: Datasets) -> None:
        self.runtime, self.datasets = runtime, datasets

    def of_step(self, batch: Batch, real: Score, fake: Score, resolution: int, D: Engine) -> Scores:
        """Measures a step's training images, as many held-out ones, and generated ones.

        Args:
            batch: this rank's share of the step.
            real: scores [len] of a batch of real images.
            fake: scores [len] of images generated for a batch.
            resolution: of the images.
            D: whose micro-batches they are scored in.

        Returns:
            The mean scores, the same on every rank. Of held-out images NaN if there are none.
        """
        num_micro_batches = D.grad_accumulation_steps
        others = self._held_out_of(batch, resolution)
        pairs = (
            tuple(None if each is None else each.micro_batch(number, num_micro_batches) for each in (batch, others))
            for number in range(num_micro_batches)
        )
        return self._mean(pairs, real, fake)

    def of_evaluation(self, real: Score, fake: Score, resolution: int, batch_size: int) -> Scores | None:
        """Measures held-out images, as many training ones, and as many generated ones.

        Args:
            real: see `of_step`.
            fake: see `of_step`.
            resolution: of the images.
            batch_size: of training.

        Returns:
            The mean scores, the same on every rank; None without held-out images or without training images.
        """
        num_held_out, num_train = len(self.datasets.held_out), len(self.datasets.train)
        if not num_held_out or not num_train:
            return None
        num = -(-min(num_held_out, NUM_SCORED) // batch_size) * batch_size
        chosen = [_rotated(i, min(num_held_out, num)) for i in range(num)]
        spread = max(1, num_train // num_held_out)  # neighbours in a split are often similar
        training = [i * spread % num_train for i in chosen]
        pairs = zip(
            self._batches(self.datasets.train, training, resolution, batch_size),
            self._batches(self.datasets.held_out, chosen, resolution, batch_size),
            strict=True,
        )
        return self._mean(pairs, real, fake)

    def _held_out_of(self, batch: Batch, resolution: int) -> Batch | None:
        """Returns held-out images in place of those of `batch`, with the same random numbers."""
        if not len(self.datasets.held_out):
            return None
        chosen = [_rotated(batch.position + i, len(self.datasets.held_out)) for i in range(batch.size)]
        (others,) = self._batches(self.datasets.held_out, chosen, resolution, batch.size)
        return replace(others, position=batch.position, positions=batch.positions)

    def _batches(self, dataset: Any, chosen: list[int], resolution: int, batch_size: int) -> Iterator[Batch]:
        subset = Subset(at_resolution(dataset, resolution), chosen)
        return self.runtime.evaluation_batches(
            subset, batch_size=batch_size, num_workers=0, collate=self.datasets.collate
        )

    def _mean(self, pairs: Iterable[tuple[Batch | None, ...]], real: Score, fake: Score) -> Scores:
        kinds: dict[str, list[Tensor]] = {"train": [], "held_out": [], "fake": []}
        with torch.no_grad():
            for train, held_out in pairs:
                assert train is not None
                kinds["train"].append(real(train))
                kinds["fake"].append(fake(train))
                if held_out is not None:
                    kinds["held_out"].append(real(held_out))
        scores = {kind: torch.cat(parts).double() for kind, parts in kinds.items() if parts}
        sums: dict[str, Tensor | float] = {"num": float(len(scores["train"])), "sign": scores["train"].sign().sum()}
        for kind, of_kind in scores.items():
            sums[kind], sums[f"{kind} squared"] = of_kind.sum(), of_kind.square().sum()
        found = self.runtime.ranks.all_reduce_sum(sums)
        means = {name: value / found["num"] for name, value in found.items()}
        variance = sum(means[f"{kind} squared"] - means[kind] ** 2 for kind in ("train", "held_out") if kind in means)
        return Scores(
            train=means["train"],
            held_out=means.get("held_out", math.nan),
            fake=means["fake"],
            sign=means["sign"],
            deviation=math.sqrt(max(0.0, variance) / found["num"]),
        )


def _rotated(position: int, num: int) -> int:
    """Returns the index of an image: each once, then again, shifted by one, so that no group holds one of them only."""
    return (position + position // num) % num
