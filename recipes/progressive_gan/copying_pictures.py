"""Pictures of samples beside their nearest training images, and of the distances to these."""

from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from trainkit_recipes.progressive_gan.evaluation import MOST_COMPARED, Evaluator
from trainkit_recipes.progressive_gan.image_sets import ImageSet
from trainkit_recipes.progressive_gan.metrics.copying import Copying
from trainkit_recipes.progressive_gan.metrics.nearest import Nearest
from trainkit_recipes.progressive_gan.pictures import CELL, grid

ROWS = 8


@torch.no_grad()
def neighbours(evaluator: Evaluator, images: ImageSet, nearest: Nearest, resolution: int) -> np.ndarray:
    """Draws samples, each followed by its nearest training images. Collective: every rank must call.

    Args:
        evaluator: that found the neighbours.
        images: the samples.
        nearest: their neighbours.
        resolution: of the images.

    Returns:
        uint8 [H, W, 3]. Left the samples that are nearest to a training image, the nearest first; right some that are
        spread evenly over all.
    """
    num = len(nearest.squared_Qk)
    # Rounded, so that samples that are equally near keep their order on any number of ranks and any processor.
    distances = nearest.squared_Qk[:, 0].clamp(min=0).sqrt().round(decimals=2)
    order = distances.argsort(stable=True).cpu()[:ROWS].tolist()
    spread = [i * num // min(num, ROWS) for i in range(min(num, ROWS))]
    samples = _taken(evaluator, images.some(MOST_COMPARED), {*order, *spread})
    training = evaluator.training(resolution)
    wanted = {int(i): nearest.indices_Qk[i].tolist() for i in samples}
    found = sorted({index for indices in wanted.values() for index in indices if index < len(training)})
    real = dict(zip(found, _taken(evaluator, training.of(found), {*range(len(found))}).values(), strict=True))
    blank = torch.ones_like(next(iter(samples.values())))
    cells: list[Tensor] = []
    for pair in zip(order, spread, strict=True):
        for i in pair:
            cells += [samples[i], *(real.get(index, blank) for index in wanted[i])]
    cells += [blank] * (2 * ROWS * (1 + nearest.k) - len(cells))
    return grid(torch.stack(cells), max(CELL, resolution))


def _taken(evaluator: Evaluator, images: ImageSet, numbers: set[int]) -> dict[int, Tensor]:
    """Some images by their number in the set, on every rank."""
    mine, before = {}, 0
    for batch, pictures in images.batches():
        offsets = range(evaluator.runtime.ranks.rank, batch.size, evaluator.runtime.ranks.world_size)
        for offset, picture in zip(offsets, pictures, strict=True):
            if before + offset in numbers:
                mine[before + offset] = picture.detach().float().cpu()
        before += batch.size
    everyone: dict[int, Tensor] = {}
    for part in evaluator.runtime.ranks.all_gather_object(mine):
        everyone |= part
    return dict(sorted(everyone.items()))


def histogram(copying: Copying) -> np.ndarray:
    """Draws how far samples and held-out images are from their nearest training image.

    Args:
        copying: the distances.

    Returns:
        uint8 [H, W, 3].
    """
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    both = torch.cat([copying.samples, copying.held_out])
    edges = np.linspace(0, float(both.max()) or 1.0, 41).tolist()
    for name, distances in (("samples", copying.samples), ("held-out images", copying.held_out)):
        weights = np.full(len(distances), 1 / len(distances))
        axes.hist(distances.numpy(), edges, weights=weights, alpha=0.55, label=f"{name} ({len(distances)})")
    axes.set_xlabel("distance to the nearest training image (RMS, grey levels of 255)")
    axes.set_ylabel("share")
    values = copying.values()
    axes.set_title(
        f"samples are nearer than held-out images in {values['nearer_than_held_out']:.0%} of pairs (alike: 50%)",
        fontsize=10,
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB")).copy()
