"""Growth: the resolution of a run as a function of the number of images so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainkit.errors import ConfigError

PerResolution = int | Mapping[int, int]
_RESOLUTIONS = [4 << i for i in range(9)]
_LISTED = ", ".join(map(str, _RESOLUTIONS))


@dataclass(frozen=True)
class Phase:
    """A phase of training at one resolution: while its new layers fade in, or after.

    Args:
        number: of the phase, from 0.
        resolution: pixels of a side.
        is_fading: whether the new layers fade in.
        start: samples before the phase.
        num_images: samples in the phase.
        batch_size: samples in a global batch.
    """

    number: int
    resolution: int
    is_fading: bool
    start: int
    num_images: int
    batch_size: int

    @property
    def end(self) -> int:
        """Samples before the next phase."""
        return self.start + self.num_images

    def fade(self, position: int) -> float:
        """Returns the weight of the new layers at a position: 0 at the start of a fade, 1 after it."""
        return min(1.0, max(0.0, (position - self.start) / self.num_images)) if self.is_fading else 1.0

    def step(self, position: int) -> int:
        """Returns the number of steps from the start of the phase to a position."""
        return (position - self.start) // self.batch_size

    @property
    def name(self) -> str:
        """The resolution, and whether it fades in."""
        return f"{self.resolution}x{self.resolution} {'fading in' if self.is_fading else 'training'}"

    def __str__(self) -> str:
        return f"{self.name} for {self.num_images:,} images"


def resolutions_up_to(resolution: int, start: int = 4) -> list[int]:
    """Returns `start` ... `resolution`, each twice the one before.

    Args:
        resolution: the last one.
        start: the first one.

    Raises:
        ConfigError: unless both are powers of two from 4 to 1024, in this order.

    Example:
        >>> resolutions_up_to(16)
        [4, 8, 16]
    """
    if resolution not in _RESOLUTIONS:
        raise ConfigError(f"recipe.resolution={resolution}: must be one of {_LISTED}")
    if start not in _RESOLUTIONS or start > resolution:
        raise ConfigError(
            f"recipe.resolution={resolution} is below the {start}x{start} that growth starts at; set it to {start} or "
            f"more"
        )
    return _RESOLUTIONS[_RESOLUTIONS.index(start) : _RESOLUTIONS.index(resolution) + 1]


def require_resolutions(name: str, values: Mapping[int, object]) -> None:
    """Raises ConfigError for a key of `recipe.<name>` that is no resolution of a network and would have no effect."""
    for key in values:
        if key not in _RESOLUTIONS:
            raise ConfigError(f"recipe.{name}={dict(values)}: {key} must be one of the resolutions {_LISTED}")


def plan(
    resolution: int,
    *,
    stable_images: PerResolution,
    fade_images: PerResolution,
    batch_size: PerResolution,
    num_images: float | None = None,
    start: int = 4,
) -> list[Phase]:
    """Plans the phases: one at `start`, then for each resolution up to `resolution` a fade and a stable phase.

    Each argument is a number or a mapping from resolution; a resolution that a mapping lacks takes the value of the
    nearest one below it. Phases are rounded up to whole batches.

    Args:
        resolution: the last one.
        stable_images: samples of a stable phase.
        fade_images: samples of a fade.
        batch_size: samples in a global batch.
        num_images: of all phases together, in proportion to `stable_images` and `fade_images`; None: their sum.
        start: the first resolution.

    Returns:
        The phases, in order.

    Raises:
        ConfigError: for a resolution without a value, and values below 1.
    """
    stages = []
    for size in resolutions_up_to(resolution, start):
        batch = _of("batch_size", batch_size, size)
        if size > start:
            stages.append((size, True, batch, _of("fade_images", fade_images, size)))
        stages.append((size, False, batch, _of("stable_images", stable_images, size)))
    scale = 1 if num_images is None else num_images / sum(images for *_, images in stages)
    phases: list[Phase] = []
    for size, is_fading, batch, images in stages:
        start = phases[-1].end if phases else 0
        phases.append(Phase(len(phases), size, is_fading, start, math.ceil(images * scale / batch) * batch, batch))
    return phases


def phase_at(phases: list[Phase], position: int) -> Phase:
    """Returns the phase of the batch that begins at `position`; after the end, the last one."""
    return next((phase for phase in phases if position < phase.end), phases[-1])


def require_next(now: Phase, phase: Phase, position: int) -> None:
    """Raises ConfigError unless a network in phase `now` may grow to `phase`, which `position` lies in."""
    if phase.number != now.number + 1:
        raise ConfigError(
            f"the run is at {now}, and recipe.stable_images and fade_images put position {position:,} at {phase}: a "
            f"network grows one phase at a time; set those of the checkpoint, or a new run_dir"
        )


def images_of(phases: list[Phase]) -> dict[str, dict[int, int]]:
    """Returns the `stable_images` and, where there are fades, the `fade_images` that make `plan` return these phases.

    Args:
        phases: as `plan` returns them.

    Example:
        >>> images_of(plan(8, stable_images=10, fade_images=20, batch_size=5))
        {'stable_images': {4: 10, 8: 10}, 'fade_images': {8: 20}}
    """
    images: dict[str, dict[int, int]] = {"stable_images": {}, "fade_images": {}}
    for phase in phases:
        images["fade_images" if phase.is_fading else "stable_images"][phase.resolution] = phase.num_images
    return {name: numbers for name, numbers in images.items() if numbers}  # a network of 4x4 never fades


def _of(name: str, values: PerResolution, resolution: int) -> int:
    if isinstance(values, Mapping):
        require_resolutions(name, values)
        below = [size for size in values if size <= resolution]
        if not below:
            raise ConfigError(f"recipe.{name}={dict(values)}: has no value for {resolution}x{resolution} or below")
        value = values[max(below)]
    else:
        value = values
    if value < 1:
        raise ConfigError(f"recipe.{name}={value} at {resolution}x{resolution}: must be 1 or more")
    return value
