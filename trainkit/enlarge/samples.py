"""Samples: labelled images of a data set, or of a folder that was generated, which are read as they are needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit.enlarge.classifier import Labelled
from trainkit.enlarge.generated import Generated
from trainkit.enlarge.pictures import Read
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
    if not len(dataset):
        raise DataError("the data set is empty: nothing to compare with; check data.path")
    labels = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if not isinstance(sample, Mapping) or "labels" not in sample:
            raise DataError("the images have no labels to compare with: give a folder or .zip file with labels")
        labels.append(int(sample["labels"]))
    return Labelled(Read(len(dataset), lambda index: dataset[index]["images"]), torch.tensor(labels))


def of_folder(folder: Path, generated: Generated, classes: Sequence[str]) -> Labelled:
    """Reads what `Generated.write` has written, as another program would.

    Args:
        folder: that it was written to.
        generated: what was written.
        classes: that the generator knows.
    """
    from PIL import Image

    files = generated.files(classes)

    def read(i: int) -> Tensor:
        with Image.open(folder / files.of(i)[0]) as image:
            pixels = np.asarray(image)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())

    return Labelled(Read(generated.num, read), torch.tensor([files.label(i) for i in range(generated.num)]))
