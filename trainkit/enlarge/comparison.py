"""Comparison: a classifier trained on real images, on generated ones, and on both, by its held-out accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainkit.data.progress import track
from trainkit.enlarge.classifier import SMALLEST, Labelled, is_right, train
from trainkit.errors import DataError, require_at_least

REAL, GENERATED, BOTH = "real", "generated", "both"
_CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        is_right: by what the classifier was trained on, bool [seeds, held-out samples]: whether it was right.
        num_samples: by the same, of the training data.
    """

    is_right: Mapping[str, Tensor]
    num_samples: Mapping[str, int]

    def accuracies(self, of: str) -> Tensor:
        """Returns the held-out accuracy of each seed."""
        return self.is_right[of].double().mean(1)

    @property
    def gain(self) -> float:
        """The mean accuracy with generated images minus that without."""
        return float((self.accuracies(BOTH) - self.accuracies(REAL)).mean())

    @property
    def standard_error(self) -> float:
        """Of `gain`: over seeds, or over held-out samples, whichever is larger."""
        differences = self.is_right[BOTH].double() - self.is_right[REAL].double()
        of_seeds, of_samples = differences.mean(1), differences.mean(0)
        errors = [float(values.std() / len(values) ** 0.5) for values in (of_seeds, of_samples) if len(values) > 1]
        return max(errors, default=0.0)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Returns a row for each: trained on, samples, mean accuracy and its standard deviation over seeds."""
        found = []
        for name, num in self.num_samples.items():
            accuracies = self.accuracies(name)
            spread = float(accuracies.std()) if len(accuracies) > 1 else 0.0
            found.append((name, f"{num:,}", f"{float(accuracies.mean()):.2%}", f"{spread:.2%}"))
        return found

    def verdict(self) -> str:
        """Says in one line whether generated images helped."""
        gain, error = self.gain, self.standard_error
        points = f"{100 * gain:+.2f} points of held-out accuracy (standard error {100 * error:.2f})"
        if abs(gain) <= _CLEAR * error or gain == 0:
            return f"no clear difference: real and generated images against real ones alone give {points}"
        return f"generated images {'helped' if gain > 0 else 'harmed'}: with them, {points}"


def require_usable(num_seeds: int, num_epochs: float) -> None:
    """Raises ConfigError for numbers out of range; see `compare`."""
    require_at_least(1, "--", seeds=num_seeds, epochs=num_epochs)


def compare(
    real: Labelled, generated: Labelled, held_out: Labelled, num_classes: int, *, num_seeds: int, num_epochs: float
) -> Comparison:
    """Trains classifiers, each for as many steps.

    Args:
        real: images.
        generated: images.
        held_out: real images.
        num_classes: of the labels.
        num_seeds: classifiers of each kind; each has other weights and another order.
        num_epochs: passes over the real images; the others are trained for as many steps.

    Returns:
        The comparison.

    Raises:
        DataError: where one of them has no sample, generated images have another shape, or the classifier cannot take
            it.
        ConfigError: for numbers out of range.
    """
    require_usable(num_seeds, num_epochs)
    for name, samples in ((REAL, real), (GENERATED, generated), ("held-out", held_out)):
        if not len(samples):
            raise DataError(f"there is no labelled {name} image to compare")
    if real.images.shape[1:] != generated.images.shape[1:]:
        raise DataError(
            f"real images of shape {[*real.images.shape[1:]]}, and generated ones of {[*generated.images.shape[1:]]}: "
            f"set data.resolution and data.channels to those of the generator"
        )
    height, width = real.images.shape[-2:]
    if height != width or width < SMALLEST or width & (width - 1):
        raise DataError(
            f"images of {width}x{height}: the classifier takes squares whose side is a power of two from {SMALLEST} "
            f"on; leave out --compare"
        )
    trained_on = {REAL: real, GENERATED: generated, BOTH: real.with_others(generated)}
    num_steps = max(1, round(num_epochs * len(real) / 64))
    pairs: Sequence[tuple[int, str]] = [(seed, name) for seed in range(num_seeds) for name in trained_on]
    right: dict[str, list[Tensor]] = {name: [] for name in trained_on}
    for seed, name in track(pairs, "training classifiers", len(pairs)):
        module = train(trained_on[name], num_classes, num_steps=num_steps, seed=seed)
        right[name].append(is_right(module, held_out))
    return Comparison(
        {name: torch.stack(of) for name, of in right.items()}, {name: len(of) for name, of in trained_on.items()}
    )
