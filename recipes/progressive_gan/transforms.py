"""Transforms of images for adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676, appendix B).

Pixel blitting, geometric and colour transforms, each with a probability and per sample. An image is sampled once: blits
and geometry are one affine map. Everything is linear in the image, and can be differentiated any number of times.

Shape suffixes: B samples, C channels, H height, W width, N sampled points.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

NUM_UNIFORM, NUM_NORMAL = 21, 7  # random numbers of a sample
_NUM_GATES = 13
_LARGEST_SHIFT = 0.125  # of an integer translation, and deviation of a fractional one, in sizes of the image
_LOG_SCALE, _LOG_CONTRAST, _LOG_SATURATION = (factor * math.log(2.0) for factor in (0.2, 0.5, 1.0))
_BRIGHTNESS = 0.2
# The biorthogonal 9/7 pair of Cohen, Daubechies and Feauveau (1992), from the centre: low-pass filters with which an
# image at twice its size, halved again, is the image. They are symmetric, unlike the paper's sym6, so that flips, turns
# by 90 degrees and whole-pixel shifts remain permutations of pixels, and reflection at the border is exact.
_UP = (1.115087052456994, 0.5912717631142470, -0.05754352622849957, -0.09127176311424948)
_DOWN = (0.6029490182363579, 0.2668641184428723, -0.07822326652898785, -0.01686411844287495, 0.02674875741080976)


def transform(images_BCHW: Tensor, uniform_BK: Tensor, normal_BK: Tensor, probability: float) -> Tensor:
    """Transforms each image with its own random numbers.

    Args:
        images_BCHW: square images of about -1 .. 1 with 1 or 3 channels, at least 4 pixels a side.
        uniform_BK: [B, NUM_UNIFORM] of [0, 1).
        normal_BK: [B, NUM_NORMAL] of N(0, 1).
        probability: of each transform; 0 returns `images_BCHW` itself.

    Returns:
        [B, C, H, W].
    """
    if probability == 0:
        return images_BCHW
    chances, values_BK = _chances(probability, uniform_BK), uniform_BK[:, _NUM_GATES:]
    is_on = uniform_BK[:, :_NUM_GATES] < chances
    linear_B22, shift_B2 = affine(is_on[:, :8], values_BK[:, :6], normal_BK[:, :4], images_BCHW.shape[-1])
    moved_BCHW = resample(images_BCHW, linear_B22, shift_B2)
    return recolour(moved_BCHW, is_on[:, 8:], values_BK[:, 6:], normal_BK[:, 4:])


def affine(is_on: Tensor, uniform: Tensor, normal: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Composes blits and geometric transforms into the map from a point of the result to one of the image.

    In this order: horizontal flip, turn by 90 degrees, whole-pixel translation, isotropic scaling, rotation,
    anisotropic scaling, rotation, translation.

    Args:
        is_on: bool [B, 8], which of these happen.
        uniform: [B, 6] of [0, 1): flip, turn, both translations, both rotations.
        normal: [B, 4] of N(0, 1): both scalings, translation.
        size: pixels of a side.

    Returns:
        [B, 2, 2] and [B, 2] in pixels: image point = linear @ point + shift, as (x, y) from the centre.
    """
    flip, turn, move, scale, before, stretch, after, drift = is_on.to(uniform.dtype).unbind(1)
    mirror = 1.0 - 2.0 * flip * (uniform[:, 0] < 0.5)
    # Sine and cosine from a table: those of a computed angle are not exactly 0 and 1.
    quarters = (turn * (4.0 * uniform[:, 1]).floor()).long()
    cosines = uniform.new_tensor([1.0, 0.0, -1.0, 0.0])
    cosine, sine = cosines[quarters], cosines[(quarters - 1) % 4]
    blit_B22 = _matrices(mirror * cosine, mirror * sine, -sine, cosine)
    whole_B2 = move[:, None] * ((2.0 * uniform[:, 2:4] - 1.0) * (_LARGEST_SHIFT * size)).round()
    shrink = torch.exp(-_LOG_SCALE * normal[:, 0] * scale)
    narrow = torch.exp(-_LOG_SCALE * normal[:, 1] * stretch)
    first_B22 = _rotations(before * (2.0 * uniform[:, 4] - 1.0) * math.pi) * shrink[:, None, None]
    second_B22 = _rotations(after * (2.0 * uniform[:, 5] - 1.0) * math.pi)
    geometric_B22 = first_B22 @ (torch.stack([narrow, 1.0 / narrow], 1)[:, :, None] * second_B22)
    drift_B2 = drift[:, None] * normal[:, 2:4] * (_LARGEST_SHIFT * size)
    inner_B2 = (geometric_B22 @ drift_B2[:, :, None]).squeeze(2) + whole_B2
    return blit_B22 @ geometric_B22, -(blit_B22 @ inner_B2[:, :, None]).squeeze(2)


def resample(images_BCHW: Tensor, linear_B22: Tensor, shift_B2: Tensor) -> Tensor:
    """Samples images at mapped points, reflected at the border, without aliasing: at twice the size, then halved.

    Args:
        images_BCHW: square images, at least 4 pixels a side.
        linear_B22: see `affine`.
        shift_B2: see `affine`.

    Returns:
        [B, C, H, W].
    """
    size = images_BCHW.shape[-1]
    up, down = _matrices_of(size, images_BCHW.dtype, images_BCHW.device)
    # Of twice the size, in pixels from the centre, with 4 more points a side for the filter.
    points = torch.arange(-4, 2 * size + 3, dtype=images_BCHW.dtype, device=images_BCHW.device) / 2.0 - (size - 1) / 2.0
    at_B2HW = points * linear_B22[:, :, :1, None] + (points[:, None] * linear_B22[:, :, 1:, None])
    at_B2HW = 2.0 * (at_B2HW + shift_B2[:, :, None, None]) + (size - 1)
    sampled_BCHW = _bilinear(up @ images_BCHW @ up.T, at_B2HW, float(2 * (size - 1)))
    return down @ sampled_BCHW @ down.T


def recolour(images_BCHW: Tensor, is_on: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Changes brightness, contrast, luma's sign, hue and saturation, in this order, as one affine map of a pixel.

    With c contrast, f = -1 where luma is flipped and P the projection onto grey, it is
    c * (f P + saturation * (cos P' + sin K)): P' = 1 - P, K the cross product with grey. Of grey images it is c * f.

    Args:
        images_BCHW: with 1 or 3 channels.
        is_on: bool [B, 5], which of these happen.
        uniform: [B, 2] of [0, 1): flip, hue.
        normal: [B, 3] of N(0, 1): brightness, contrast, saturation.

    Returns:
        [B, C, H, W].
    """
    brighten, stretch, flip, turn, saturate = is_on.to(uniform.dtype).unbind(1)
    gain = torch.exp(_LOG_CONTRAST * normal[:, 1] * stretch)
    of_grey = gain * (1.0 - 2.0 * flip * (uniform[:, 0] < 0.5))
    offset = of_grey * brighten * _BRIGHTNESS * normal[:, 0]
    if images_BCHW.shape[1] == 1:
        return images_BCHW * of_grey[:, None, None, None] + offset[:, None, None, None]
    angle = turn * (2.0 * uniform[:, 1] - 1.0) * math.pi
    chroma = gain * torch.exp(_LOG_SATURATION * normal[:, 2] * saturate)
    grey = uniform.new_full((3, 3), 1.0 / 3.0)
    cross = uniform.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    parts = torch.stack([grey, torch.eye(3, dtype=grey.dtype, device=grey.device) - grey, cross])
    factors_B3 = torch.stack([of_grey, chroma * angle.cos(), chroma * angle.sin()], 1)
    colour_B33 = torch.einsum("bk,kij->bij", factors_B3, parts)
    return torch.baddbmm(offset[:, None, None], colour_B33, images_BCHW.flatten(2)).view_as(images_BCHW)


def _chances(probability: float, like: Tensor) -> Tensor:
    """Of each gate; the two rotations share theirs: that either happens has the probability of one transform."""
    chances = like.new_full((_NUM_GATES,), probability)
    chances[[4, 6]] = 1.0 - math.sqrt(1.0 - probability)
    return chances


def _matrices(*entries: Tensor) -> Tensor:
    return torch.stack(entries, 1).view(-1, 2, 2)


def _rotations(angle_B: Tensor) -> Tensor:
    """Returns [B, 2, 2]: each turns back by its angle."""
    cosine, sine = angle_B.cos(), angle_B.sin()
    return _matrices(cosine, sine, -sine, cosine)


@lru_cache(maxsize=16)
def _matrices_of(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns [2 size, size], which doubles a reflected line of pixels, and [size, 2 size + 7], which halves one."""
    up, down = torch.zeros(2 * size, size, dtype=torch.float64), torch.zeros(size, 2 * size + 7, dtype=torch.float64)
    last = size - 1
    for row in range(2 * size):
        for pixel in range((row - 2) // 2, (row + 3) // 2 + 1):
            if abs(row - 2 * pixel) < len(_UP):
                up[row, last - abs(last - abs(pixel))] += _UP[abs(row - 2 * pixel)]
    taps = torch.tensor([*reversed(_DOWN[1:]), *_DOWN], dtype=torch.float64)
    for row in range(size):
        down[row, 2 * row : 2 * row + len(taps)] = taps
    return up.to(device, dtype), down.to(device, dtype)


def _bilinear(images_BCHW: Tensor, at_B2HW: Tensor, last: float) -> Tensor:
    """Samples images at (x, y), reflected about pixels 0 and `last`; there is one more after `last`, of no weight."""
    # Not grid_sample, whose gradient cannot be differentiated again.
    at_B2HW = last - (at_B2HW - 2.0 * last * torch.floor(at_B2HW / (2.0 * last)) - last).abs()
    first_B2HW = at_B2HW.floor()
    x_B1HW, y_B1HW = (at_B2HW - first_B2HW).split(1, 1)
    width, (batch, channels) = images_BCHW.shape[-1], images_BCHW.shape[:2]
    columns_BHW, rows_BHW = first_B2HW.long().unbind(1)
    index_B1N = (rows_BHW * width + columns_BHW).view(batch, 1, -1)
    offsets = torch.tensor([0, 1, width, width + 1], device=index_B1N.device)
    index_B1K = (index_B1N + offsets[:, None]).view(batch, 1, -1).expand(-1, channels, -1)
    values = images_BCHW.flatten(2).gather(2, index_B1K).view(batch, channels, 4, *columns_BHW.shape[1:])
    corners = values.unbind(2)
    return torch.lerp(torch.lerp(corners[0], corners[1], x_B1HW), torch.lerp(corners[2], corners[3], x_B1HW), y_B1HW)
