"""Real images: what a data set holds, as the networks take it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.data import Datasets
from trainkit.errors import DataError


def at_resolution(dataset: Any, resolution: int) -> Any:
    """Returns a data set of the same images at a resolution, where it holds several; otherwise itself."""
    return dataset.at(resolution) if hasattr(dataset, "at") else dataset


def real_images(data: Any, resolution: int, dtype: torch.dtype) -> Tensor:
    """Makes images that a network takes of a batch's data.

    Args:
        data: of the batch: images [B, C, H, W], or a mapping with `images`: uint8, or floats of -1 .. 1.
        resolution: in pixels; larger images are averaged over boxes.
        dtype: of the result, where the images are bytes.

    Returns:
        [B, C, resolution, resolution] of -1 .. 1.

    Raises:
        DataError: for a mapping without `images`.
    """
    images = _tensor_of(data)
    images = images.to(dtype) / 127.5 - 1.0 if images.dtype == torch.uint8 else images
    return images if images.shape[-1] == resolution else F.avg_pool2d(images, images.shape[-1] // resolution)


def some_of(dataset: Any, resolution: int, num: int) -> Tensor:
    """Returns at most `num` images of a data set, evenly spread over it: [num, C, R, R] of -1 .. 1."""
    chosen = at_resolution(dataset, resolution)
    num = min(num, len(chosen))
    images = [_tensor_of(chosen[i * len(chosen) // num])[None] for i in range(num)]
    return torch.cat([real_images(image, resolution, torch.float32) for image in images])


def labels_of(data: Any) -> Tensor:
    """Returns the labels, int64 [B], of a batch's data. Raises DataError where it has none."""
    if not isinstance(data, Mapping) or "labels" not in data:
        has = f"these have {[*data]}" if isinstance(data, Mapping) else "these are images alone"
        raise DataError(f"data with classes need items with 'images' and 'labels'; {has}")
    return data["labels"]


def require_fitting(datasets: Datasets, resolution: int, channels: int) -> None:
    """Checks the first training image, and whether images are held out, before anything trains on them.

    Args:
        datasets: with a training image.
        resolution: that images are averaged to.
        channels: of an image.

    Raises:
        DataError: for an image of another shape, with classes for one without a label of theirs; and where no image is
            held out.
    """
    _require_shape(at_resolution(datasets.train, resolution)[0], resolution, channels, len(datasets.classes))
    if not len(datasets.held_out):  # the end of a run would have nothing to measure against
        raise DataError(
            f"none of {len(datasets.train):,} images is held out, and what is generated is measured against those: set "
            f"a larger data.held_out, such as 0.2, or give more images"
        )


def _require_shape(item: Any, resolution: int, channels: int, num_classes: int) -> None:
    if num_classes and not 0 <= (label := int(labels_of(item))) < num_classes:
        raise DataError(
            f"the label {label} of an item is none of 0 .. {num_classes - 1}: there are {num_classes} classes"
        )
    image = _tensor_of(item)
    if image.ndim != 3 or image.shape[0] != channels or image.shape[-1] % resolution or image.shape[-1] < resolution:
        raise DataError(
            f"recipe.resolution={resolution} and recipe.channels={channels} do not fit images of shape "
            f"{[*image.shape]}: set data.resolution and data.channels to the same"
        )


def _tensor_of(data: Any) -> Tensor:
    if isinstance(data, Mapping):
        if "images" not in data:
            raise DataError(
                f"recipe=progressive_gan needs items that are images or have 'images'; these have {[*data]}"
            )
        data = data["images"]
    return data[0] if isinstance(data, list | tuple) else data
