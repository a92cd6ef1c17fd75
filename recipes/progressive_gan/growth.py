"""Growth: which resolution a run is at, as a function of the images seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainkit.errors import ConfigError

PerResolution = int | Mapping[int, int]
_RESOLUTIONS = [4 << i for i in range(9)]
_LISTED = ", ".join(map(str, _RESOLUTIONS))


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one resolution: while its new layers fade in, or after.

    start, num_images: in samples.  batch_size: samples of a global batch.
    """

    number: int
    resolution: int
    is_fading: bool
    start: int
    num_images: int
    batch_size: int

    @property
    def end(self) -> int:
        return self.start + self.num_images

    def fade(self, position: int) -> float:
        """Share of the new layers in the image: 0 at the start of a fade, 1 after it."""
        return min(1.0, max(0.0, (position - self.start) / self.num_images)) if self.is_fading else 1.0

    def __str__(self) -> str:
        what = "fading in" if self.is_fading else "training"
        return f"{self.resolution}x{self.resolution} {what} for {self.num_images:,} images"


def resolutions_up_to(resolution: int) -> list[int]:
    """4, 8, ... `resolution`. Raises ConfigError when that is no power of two from 4 to 1024."""
    if resolution not in _RESOLUTIONS:
        raise ConfigError(f"recipe.resolution={resolution}: allowed are {_LISTED}")
    return _RESOLUTIONS[: _RESOLUTIONS.index(resolution) + 1]


def require_resolutions(name: str, values: Mapping[int, object]) -> None:
    """Raises ConfigError for a key of `recipe.<name>` that no network ever has, and whose value would never act."""
    for key in values:
        if key not in _RESOLUTIONS:
            raise ConfigError(f"recipe.{name}={dict(values)}: {key} is no resolution; allowed are {_LISTED}")


def plan(
    resolution: int,
    *,
    stable_images: PerResolution,
    fade_images: PerResolution,
    batch_size: PerResolution,
    num_images: float | None = None,
) -> list[Phase]:
    """The phases 4x4, then for each resolution up to `resolution` a fade and a stable one.

    Each argument is one number or a mapping from resolution; a resolution that a mapping lacks takes the value of the
    nearest one below it. Phases are rounded up to whole batches.
    num_images: of all phases together; `stable_images` and `fade_images` are the proportions then.
    """
    parts = []
    for size in resolutions_up_to(resolution):
        batch = _of("batch_size", batch_size, size)
        if size > _RESOLUTIONS[0]:
            parts.append((size, True, batch, _of("fade_images", fade_images, size)))
        parts.append((size, False, batch, _of("stable_images", stable_images, size)))
    scale = 1 if num_images is None else num_images / sum(images for *_, images in parts)
    phases: list[Phase] = []
    for size, is_fading, batch, images in parts:
        start = phases[-1].end if phases else 0
        phases.append(Phase(len(phases), size, is_fading, start, math.ceil(images * scale / batch) * batch, batch))
    return phases


def phase_at(phases: list[Phase], position: int) -> Phase:
    """The phase of the batch that begins at `position`; after the end, the last one."""
    return next((phase for phase in phases if position < phase.end), phases[-1])


def _of(name: str, values: PerResolution, resolution: int) -> int:
    if isinstance(values, Mapping):
        require_resolutions(name, values)
        below = [size for size in values if size <= resolution]
        if not below:
            raise ConfigError(f"recipe.{name}={dict(values)}: has nothing for {resolution}x{resolution} or below")
        value = values[max(below)]
    else:
        value = values
    if value < 1:
        raise ConfigError(f"recipe.{name}={value} at {resolution}x{resolution}: allowed is 1 or more")
    return value
