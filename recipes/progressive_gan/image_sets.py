"""Sets of images that are measured: real ones and generated ones, of which each rank reads its share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Subset

from trainkit import Runtime
from trainkit.data import Batch
from trainkit_recipes.progressive_gan.real_images import real_images

Generate = Callable[[Batch], Tensor]
"""Makes images [len(batch), C, R, R] for a batch of real ones."""


class ImageSet(Protocol):
    """A number of images in a fixed order."""

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yields this rank's (batch, images [B, C, R, R] of -1 .. 1 in steps of 1/127.5). Collective."""
        ...

    def some(self, most: int) -> "ImageSet":
        """Returns at most so many of the images."""
        ...

    def pairs(self, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this rank's share of at most `num` random pairs of different images. Collective."""
        ...


@dataclass(frozen=True)
class RealImages:
    """Images of a data set.

    Args:
        runtime: of the run.
        dataset: at the resolution, or a multiple of it.
        indices: which of its images, in this order.
        resolution: of the images, R.
        batch_size: samples in a global batch.
        collate: of the data set.
    """

    runtime: Runtime
    dataset: Any
    indices: Sequence[int]
    resolution: int
    batch_size: int
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def of(self, indices: Sequence[int]) -> "RealImages":
        """Returns other images of the same data set."""
        return replace(self, indices=indices)

    def some(self, most: int) -> "RealImages":
        """See `ImageSet`: they are spread evenly."""
        num = min(most, len(self))
        return self.of([self.indices[i * len(self) // num] for i in range(num)]) if num < len(self) else self

    def data(self) -> Iterator[Batch]:
        """Yields this rank's batches as the data set has them. Collective: every rank must call."""
        yield from self.runtime.evaluation_batches(
            Subset(self.dataset, self.indices), batch_size=self.batch_size, collate=self.collate
        )

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """See `ImageSet`."""
        for batch in self.data():
            yield batch, in_bytes(real_images(batch.data, self.resolution, self.runtime.dtype))

    def pairs(self, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ImageSet`: each image is in two pairs at most."""
        order = [self.indices[i] for i in shuffled(self.runtime, len(self), "pairs")]
        first, second = (self.of(x[:num]) for x in (order, order[1:] + order[:1]))
        for (_, one), (_, other) in zip(first.batches(), second.batches(), strict=True):
            yield one, other


@dataclass(frozen=True)
class GeneratedImages:
    """Images of a generator.

    Args:
        generate: makes them.
        held_out: real images, for each of which one is made; again from the first on where there are too few.
        num: number of images.
        start: number of the first image.
    """

    generate: Generate
    held_out: RealImages
    num: int
    start: int = 0

    def __len__(self) -> int:
        return self.num

    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """See `ImageSet`."""
        for done in range(0, self.num, len(self.held_out)):
            part = self.held_out.of(self.held_out.indices[: self.num - done])
            for batch in part.data():
                before = self.start + done
                moved = replace(batch, position=batch.position + before, positions=batch.positions + before)
                yield moved, in_bytes(self.generate(moved))

    def some(self, most: int) -> "GeneratedImages":
        """See `ImageSet`."""
        return replace(self, num=min(self.num, most), held_out=self.held_out.some(most))

    def pairs(self, num: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ImageSet`: no image is in two pairs."""
        sets = []
        for number, name in enumerate(("pairs", "others")):  # so that labels, if there are any, are independent
            order = shuffled(self.held_out.runtime, len(self.held_out), name)
            held_out = self.held_out.of([self.held_out.indices[i] for i in order])
            sets.append(replace(self, held_out=held_out, num=num, start=self.start + number * num))
        for (_, one), (_, other) in zip(*(images.batches() for images in sets), strict=True):
            yield one, other


def in_bytes(images_BCHW: Tensor) -> Tensor:
    """Rounds images of -1 .. 1 to the 256 values of a picture file."""
    return ((images_BCHW.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def shuffled(runtime: Runtime, num: int, name: str) -> list[int]:
    """Returns 0 .. num - 1 in an order that depends on the seed and the name."""
    numbers = torch.arange(num)
    keys = runtime.rand(Batch(None, 0, num, numbers, numbers), name=name)
    return [int(i) for i in keys.argsort(stable=True)]
