"""Samples: labelled images of a data set, or of a folder that was generated, as tensors in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainkit.data.progress import track
from trainkit.enlarge.classifier import Labelled
from trainkit.enlarge.generated import Generated
from trainkit.errors import DataError


def of_dataset(dataset: Any, resolution: int) -> Labelled:
    """Reads a data set whose items are {"images": uint8 [C, H, W], "labels": int64}.

    Args:
        dataset: map-style; one that holds several resolutions, as `Pyramid`, is read at `resolution`.
        resolution: pixels.

    Raises:
        DataError: for items without labels.
    """
    dataset = dataset.at(resolution) if hasattr(dataset, "at") else dataset
    images, labels = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, Mapping) or "labels" not in sample:
            raise DataError("the images have no labels to compare with: set data.labels=folders or json")
        images.append(sample["images"])
        labels.append(int(sample["labels"]))
    if not images:
        raise DataError("the data set is empty: nothing to compare with; check data.path")
    return Labelled(torch.stack(images), torch.tensor(labels))


def of_folder(folder: Path, generated: Generated, classes: Sequence[str]) -> Labelled:
    """Reads what `Generated.write` has written, as another program would.

    Args:
        folder: that it was written to.
        generated: what was written.
        classes: that the generator knows.
    """
    from PIL import Image

    images, labels = [], []
    for file, label in track(generated.files(classes), "reading generated images", generated.num):
        with Image.open(folder / file) as image:
            pixels = np.asarray(image)
        images.append(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()))
        labels.append(label)
    return Labelled(torch.stack(images), torch.tensor(labels))
