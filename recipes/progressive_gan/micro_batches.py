"""MicroBatches: into how many a rank splits its share of a batch, at each resolution."""

from collections.abc import Iterable, Mapping
from typing import Any

from trainkit import Stage
from trainkit.errors import ConfigError, require_at_least
from trainkit_recipes.progressive_gan.growth import Phase, require_resolutions

NAME = "grad_accumulation_steps"


class MicroBatches:
    """The micro-batches of each resolution, in which groups of the minibatch standard deviation stay whole.

    Args:
        given: a number for all resolutions, or a mapping from resolution; one that a mapping lacks takes the value of
            the nearest one below it, and 1 without.
        phases: of the run.
        world_size: number of ranks.
        stddev_group: samples that share a minibatch standard deviation.

    Raises:
        ConfigError: for a number below 1, and one that the batch of its resolution cannot be split into.
    """

    def __init__(
        self, given: int | Mapping[int, int], phases: Iterable[Phase], world_size: int, stddev_group: int
    ) -> None:
        self.phases = {phase.resolution: phase for phase in phases if not phase.is_fading}
        self.world_size, self.stddev_group = world_size, stddev_group
        if isinstance(given, Mapping):
            require_resolutions(NAME, given)
        self.steps = {resolution: _at(given, resolution) for resolution in self.phases}
        self._split: dict[int, int] = {}
        for resolution, num in self.steps.items():
            require_at_least(1, "recipe.", **{NAME: num})
            self._require_whole_groups(resolution, num)

    def at(self, resolution: int) -> int:
        """Returns the number of micro-batches at a resolution."""
        return self.steps[resolution]

    def split(self, resolution: int) -> str:
        """Splits batches of a resolution, which do not fit into memory, into the next larger number of micro-batches.

        Returns:
            A line that says so.

        Raises:
            ConfigError: where groups of the minibatch standard deviation would not stay whole.
        """
        batch, now = self.phases[resolution].batch_size, self.steps[resolution]
        larger = [num for num in self._possible(resolution) if num > now]
        if not larger:
            raise ConfigError(
                f"{resolution}x{resolution} does not fit into memory: recipe.batch_size={batch} on {self.world_size} "
                f"ranks with recipe.{NAME}={now} and groups of recipe.stddev_group={self.stddev_group} cannot be split "
                f"further; type precision=bf16, more processes, a smaller recipe.stddev_group or recipe.fmap_max"
            )
        self.steps[resolution] = self._split[resolution] = larger[0]
        return (
            f"{resolution}x{resolution} does not fit into memory in {now} micro-batches: the step is made again in "
            f"{larger[0]}, with the same global batch of {batch}"
        )

    def stages(self) -> dict[int, Stage]:
        """Returns the batch and the micro-batches of each resolution."""
        return {
            resolution: Stage(
                name=f"{resolution}x{resolution}",
                batch_size=phase.batch_size,
                grad_accumulation_steps=self.steps[resolution],
            )
            for resolution, phase in self.phases.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns what `split` has changed, on how many ranks; empty: nothing."""
        return {"micro_batches": {"world_size": self.world_size, "steps": {**self._split}}} if self._split else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `split` had changed: on other ranks, micro-batches of at most as many samples."""
        kept = state.get("micro_batches", {"world_size": self.world_size, "steps": {}})
        for name, num in kept["steps"].items():
            resolution = int(name)
            if resolution not in self.steps:
                continue
            at_least = max(self.steps[resolution], -(-num * kept["world_size"] // self.world_size))
            possible = [more for more in self._possible(resolution) if more >= at_least]
            if possible and possible[0] > self.steps[resolution]:
                self.steps[resolution] = self._split[resolution] = possible[0]

    def _possible(self, resolution: int) -> list[int]:
        """The numbers of micro-batches in which groups stay whole, smallest first."""
        groups = self.phases[resolution].batch_size // (self.world_size * self.stddev_group)
        return [num for num in range(1, groups + 1) if groups % num == 0]

    def _require_whole_groups(self, resolution: int, num: int) -> None:
        batch, whole = self.phases[resolution].batch_size, self.world_size * num * self.stddev_group
        if batch % whole:
            raise ConfigError(
                f"recipe.batch_size={batch} at {resolution}x{resolution}: with {self.world_size} ranks "
                f"and {NAME}={num}, groups of stddev_group={self.stddev_group} need a multiple of "
                f"{whole}; set such a batch_size, or a smaller recipe.stddev_group"
            )


def _at(given: int | Mapping[int, int], resolution: int) -> int:
    if not isinstance(given, Mapping):
        return given
    below = [size for size in given if size <= resolution]
    return given[max(below)] if below else 1
