"""Augmenter: every image that D sees transformed with a probability, which may adapt to how much D overfits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch, Datasets
from trainkit.errors import ConfigError, nearest, require_above_zero
from trainkit_recipes.progressive_gan.scores import Scores, overfitting_of
from trainkit_recipes.progressive_gan.transforms import NUM_NORMAL, NUM_UNIFORM, transform

KINDS = ("none", "ada", "fixed")
STEERED_BY = ("auto", "sign", "held_out")
STEPS_BETWEEN = 4  # from one measurement of D's scores to the next
LARGEST_PROBABILITY = 0.8  # above it generated images begin to look augmented themselves (Karras et al. 2020, figure 3)
_AVERAGE = 0.9  # decay of the averaged scores, per measurement
_FIXED = 0.4  # probability of data.augment=fixed, unless another is given
_TARGETS = {"sign": 0.6, "held_out": 0.5}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How images are augmented before D sees them: the keys of `recipe.augment`.

    With few images, D learns them by heart, and what it tells G becomes worthless. `ada` is adaptive discriminator
    augmentation (Karras et al. 2020, arXiv 2006.06676): each transform happens with a probability that rises while D
    overfits, and falls while it does not. Real and generated images are transformed alike, so generated ones do not
    learn to look transformed.

    How much D overfits is measured every 4 steps:

        sign: r_t, the mean sign of D's scores of training images. The zero must mean that D is undecided: with
            `loss.name=logistic` only.
        held_out: r_v = (mean score of training images - of held-out ones) / (of training images - of generated ones),
            which holds for any loss. Training then depends on held-out images, though by one number only.

    Args:
        kind: `none`; `ada`; `fixed`: with a constant probability.
        horizontal_flips: whether half of the training images are mirrored, for pictures whose mirror images are as
            likely; it doubles a data set. Independent of `kind`.
        probability: of each transform; with `ada` at the start. None: 0 with `ada`, and 0.4 with `fixed`.
        steer_by: `sign` or `held_out`, see above; `auto`: `sign` with the logistic loss, and `held_out` with others.
        target: what the measure is kept at; None: 0.6 of `sign`, and 0.5 of `held_out`.
        speed_images: images in which the probability changes by 1; smaller for runs of few images.

    Raises:
        ConfigError: for values out of range.
    """

    kind: str = "none"
    horizontal_flips: bool = False
    probability: float | None = None
    steer_by: str = "auto"
    target: float | None = None
    speed_images: int = 500_000

    def __post_init__(self) -> None:
        for key, value, allowed in (("data.augment", self.kind, KINDS), ("steer_by", self.steer_by, STEERED_BY)):
            if value not in allowed:
                name = key if "." in key else f"recipe.augment.{key}"
                raise ConfigError(f"{name}={value}: must be one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ConfigError(f"recipe.augment.probability={self.probability}: must be 0 to 1")
        if self.target is not None and not 0 < self.target < 1:
            raise ConfigError(f"recipe.augment.target={self.target}: must be above 0 and below 1")
        require_above_zero("recipe.augment.", speed_images=self.speed_images)
        self._require_of_use()

    def _require_of_use(self) -> None:
        of_ada = ("steer_by", "target", "speed_images")
        unused = {"none": ("probability", *of_ada), "fixed": of_ada, "ada": ()}[self.kind]
        for field in fields(self):
            if field.name in unused and (value := getattr(self, field.name)) != field.default:
                needed = "ada" if field.name in of_ada else "ada or data.augment=fixed"
                raise ConfigError(
                    f"recipe.augment.{field.name}={value}: nothing uses it with data.augment={self.kind}; set "
                    f"data.augment={needed}, or leave it out"
                )

    def steered_by(self, loss: str) -> str | None:
        """Returns `sign` or `held_out`; None where the probability is constant.

        Args:
            loss: its name.

        Raises:
            ConfigError: for `sign` with a loss whose zero means nothing.
        """
        if self.kind != "ada":
            return None
        if self.steer_by == "auto":
            return "sign" if loss == "logistic" else "held_out"
        if self.steer_by == "sign" and loss != "logistic":
            raise ConfigError(
                f"recipe.augment.steer_by=sign with recipe.loss.name={loss}: its scores have no zero that means that D "
                f"is undecided; set recipe.augment.steer_by=held_out, or recipe.loss.name=logistic"
            )
        return self.steer_by


class Augmenter:
    """Augments images, keyed by sample, and adapts the probability.

    Args:
        runtime: of the run.
        settings: see there.
        loss: name of the loss.
        datasets: training and held-out images; none of either where only engines are needed.

    Raises:
        ConfigError: for settings that do not fit the loss or the data.
    """

    def __init__(self, runtime: Runtime, settings: Augmentation, *, loss: str, datasets: Datasets) -> None:
        self.runtime, self.settings = runtime, settings
        self.steered_by = settings.steered_by(loss)
        if self.steered_by == "held_out" and len(datasets.train) and not len(datasets.held_out):
            raise ConfigError(
                "data.augment=ada measures D on held-out images, and there are none: set data.held_out, or "
                "data.augment=fixed"
            )
        start = {"none": 0.0, "ada": 0.0, "fixed": _FIXED}[settings.kind]
        self.probability = start if settings.probability is None or settings.kind == "none" else settings.probability
        self._averages: dict[str, float] = {}
        self._has_warned = False

    def __call__(self, images: Tensor, batch: Batch, name: str) -> Tensor:
        """Transforms images [len(batch), C, R, R]; with probability 0 it returns them as they are.

        Args:
            images: of about -1 .. 1; gradients flow through.
            batch: whose samples they belong to.
            name: of this use of randomness.
        """
        if self.probability == 0:
            return images
        uniform = self.runtime.rand(batch, NUM_UNIFORM, name=f"augment {name}").to(images.dtype)
        normal = self.runtime.randn(batch, NUM_NORMAL, name=f"augment {name}").to(images.dtype)
        return transform(images, uniform, normal, self.probability)

    def flipped(self, images: Tensor, batch: Batch) -> Tensor:
        """Mirrors half of the training images [len(batch), C, R, R], if `horizontal_flips` is set."""
        if not self.settings.horizontal_flips:
            return images
        is_mirrored = self.runtime.rand(batch, name="horizontal flips") < 0.5
        return torch.where(is_mirrored.view(-1, 1, 1, 1), images.flip(3), images)

    def is_due(self, step: int) -> bool:
        """Whether D's scores are measured in a step, counted from the start of a phase."""
        return self.steered_by is not None and (step + 1) % STEPS_BETWEEN == 0

    @property
    def steps_between(self) -> int:
        """Steps from one measurement of D's scores to the next; 0 where there are none."""
        return STEPS_BETWEEN if self.steered_by is not None else 0

    def assume_dearest(self) -> None:
        """Augments as much as it ever may, which needs the most memory; for a recipe that only tries steps."""
        if self.steered_by is not None:
            self.probability = max(self.probability, LARGEST_PROBABILITY)

    def adapt(self, scores: Scores, num_images: int) -> None:
        """Moves the probability towards the target.

        Args:
            scores: of D on this step's images, the same on every rank.
            num_images: in a global batch.
        """
        assert self.steered_by is not None, "data.augment=ada"
        of_kinds = {"train": scores.train, "held_out": scores.held_out, "fake": scores.fake}
        measured = {"sign": scores.sign} if self.steered_by == "sign" else of_kinds
        if not all(map(math.isfinite, measured.values())):
            return  # the average would never be finite again
        for name, value in measured.items():
            before = self._averages.get(name, value)
            self._averages[name] = _AVERAGE * before + (1.0 - _AVERAGE) * value
        target = _TARGETS[self.steered_by] if self.settings.target is None else self.settings.target
        change = STEPS_BETWEEN * num_images / self.settings.speed_images
        change = change if self.overfitting > target else -change
        self.probability = min(max(self.probability + change, 0.0), LARGEST_PROBABILITY)

    def warning(self, scores: Scores | None) -> str | None:
        """Returns one line if D overfits, the first time; None otherwise."""
        if scores is None or self._has_warned or not scores.is_overfitting:
            return None
        self._has_warned = True
        advice = {
            "none": "set data.augment=ada, data.horizontal_flips=true if mirror images are as likely, or add images",
            "fixed": f"set data.augment=ada, or recipe.augment.probability above {self.probability:g}",
            "ada": f"with recipe.augment.speed_images below {self.settings.speed_images:,} augmentation follows faster",
        }[self.settings.kind]
        return (
            f"D overfits: its mean scores are {scores.train:.3g} of training images, {scores.held_out:.3g} of held-out "
            f"ones and {scores.fake:.3g} of generated ones; {advice}"
        )

    def metrics(self) -> dict[str, float]:
        """Returns what to log with `ada`: the probability, and the measure that steers it."""
        if self.steered_by is None:
            return {}
        return {"augment_probability": self.probability, "augment_measure": self.overfitting}

    @property
    def overfitting(self) -> float:
        """The measure that steers, of averaged scores; 0 before the first measurement."""
        if not self._averages:
            return 0.0
        if self.steered_by == "sign":
            return self._averages["sign"]
        return overfitting_of(self._averages["train"], self._averages["held_out"], self._averages["fake"])

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next steps depend on; empty where the probability is constant."""
        if self.steered_by is None:
            return {}
        return {"probability": self.probability, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the probability of a checkpoint, if it was trained with `ada` too."""
        if state and self.steered_by is not None:
            self.probability, self._averages = state["probability"], dict(state["averages"])
