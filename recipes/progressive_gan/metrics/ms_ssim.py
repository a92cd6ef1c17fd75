"""Multi-scale structural similarity of pairs of images: how alike the images of a set are.

Wang, Simoncelli and Bovik (2003): an 11x11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, five scales with the
published weights. An image of less than 176 pixels does not hold the window at five scales: it gets as many as do, with
the first weights scaled to the sum of all.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Runtime

WINDOW, DEVIATION = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def num_scales(resolution: int) -> int:
    """Returns the number of scales of an image: five from 176 pixels on, none below 11.

    Example:
        >>> [num_scales(resolution) for resolution in (8, 16, 32, 64, 128, 256)]
        [0, 1, 2, 3, 4, 5]
    """
    return sum(resolution >> scale >= WINDOW for scale in range(len(WEIGHTS)))


def ms_ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Computes MS-SSIM of pairs, the mean over channels, in float64.

    Args:
        first_BCHW: images of -1 .. 1, of at least 11x11 pixels.
        second_BCHW: the other image of each pair.

    Returns:
        [B], 1 for equal images.
    """
    x, y = ((images.double() + 1) * 127.5 for images in (first_BCHW, second_BCHW))
    scales = num_scales(x.shape[-1])
    weights = torch.tensor(WEIGHTS[:scales], dtype=torch.float64, device=x.device)
    weights *= sum(WEIGHTS) / weights.sum()
    factors_SBC = []
    for scale in range(scales):
        luminance_BC, contrast_BC = _ssim(x, y)
        factors_SBC.append(luminance_BC if scale == scales - 1 else contrast_BC)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    product_BC = torch.stack(factors_SBC).relu().pow(weights[:, None, None]).prod(dim=0)
    return product_BC.mean(dim=1)


def diversity(runtime: Runtime, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Computes the mean MS-SSIM of pairs of images of one set: the lower, the more diverse. Collective.

    Args:
        runtime: of the run.
        pairs: this rank's images of -1 .. 1, [B, C, R, R] each.

    Returns:
        The mean over the pairs of all ranks.
    """
    total, num = 0.0, 0
    for first, second in pairs:
        if len(first):
            total += float(ms_ssim(first, second).sum())
            num += len(first)
    summed = runtime.ranks.all_reduce_sum({"total": total, "num": num})
    return summed["total"] / summed["num"]


def _ssim(x_BCHW: Tensor, y_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast and structure factor, means over the pixels, [B, C]."""
    window = _window(x_BCHW.shape[-1]).to(x_BCHW)

    def local(images_BCHW: Tensor) -> Tensor:
        return window.T @ images_BCHW @ window

    mean_x, mean_y = local(x_BCHW), local(y_BCHW)
    variance_x, variance_y = local(x_BCHW * x_BCHW) - mean_x**2, local(y_BCHW * y_BCHW) - mean_y**2
    covariance = local(x_BCHW * y_BCHW) - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return (luminance * contrast).mean(dim=(2, 3)), contrast.mean(dim=(2, 3))


def _window(size: int) -> Tensor:
    """The matrix [size, size - 10] that filters an axis with the Gaussian, where it is wholly inside."""
    distance = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * DEVIATION**2))
    matrix = torch.zeros(size, size - WINDOW + 1, dtype=torch.float64)
    for offset, weight in enumerate(weights / weights.sum()):
        matrix.diagonal(-offset).fill_(float(weight))
    return matrix
