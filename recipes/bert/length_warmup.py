"""LengthWarmup: sequences that get longer at the start of a run."""

from dataclasses import dataclass

from trainkit.errors import ConfigError, require_at_least

MULTIPLE = 8
"""Lengths are multiples of it, as tensor cores need."""


@dataclass(frozen=True, kw_only=True)
class LengthWarmup:
    """Sequences that grow in equal stages at the start of a run, from `first` tokens to the full length.

    So training is stable with larger batches and rates, and early steps cost less (Li et al., "The Stability-Efficiency
    Dilemma", arXiv 2108.06084; Press et al., "Shortformer", arXiv 2012.15832). A stage has windows of its length over
    the whole text: no token is cut off. Batches keep their number of samples, positions go on, and the schedule of the
    learning rate does not restart.

    Args:
        first: tokens in the first sequences, a multiple of 8.
        num_samples: samples of all shorter sequences together; each stage has an equal part, rounded up to whole
            batches.
        num_stages: lengths before the full one.

    Raises:
        ConfigError: for values out of range.
    """

    first: int
    num_samples: int
    num_stages: int = 4

    def __post_init__(self) -> None:
        counts = {"num_samples": self.num_samples, "num_stages": self.num_stages}
        require_at_least(1, "recipe.length_warmup.", **counts)
        if self.first < MULTIPLE or self.first % MULTIPLE:
            raise ConfigError(
                f"recipe.length_warmup.first={self.first}: must be a multiple of {MULTIPLE}; set "
                f"recipe.length_warmup.first={max(MULTIPLE, round(self.first / MULTIPLE) * MULTIPLE)}"
            )

    def lengths(self, full: int) -> list[int]:
        """Returns the lengths before `full`, each once: there may be fewer than `num_stages`.

        Raises:
            ConfigError: where the first one is not shorter.

        Example:
            >>> LengthWarmup(first=16, num_samples=96, num_stages=3).lengths(128)
            [16, 48, 88]
        """
        if self.first >= full:
            raise ConfigError(
                f"recipe.length_warmup.first={self.first}: must be below the full length, {full} tokens; set a smaller "
                f"one, or recipe.length_warmup=null"
            )
        step = (full - self.first) / self.num_stages
        lengths = [int((self.first + number * step) / MULTIPLE) * MULTIPLE for number in range(self.num_stages)]
        return list(dict.fromkeys(lengths))
