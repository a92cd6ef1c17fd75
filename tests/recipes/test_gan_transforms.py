"""Transforms of augmentation against one image at a time in NumPy and SciPy, float64."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from trainkit_recipes.progressive_gan.transforms import NUM_NORMAL, NUM_UNIFORM, affine, resample, transform

# The synthesis and analysis low-pass filters of JPEG 2000's irreversible transform (ITU-T T.800, annex F).
UP = np.array([-0.091271763114250, -0.057543526228500, 0.591271763114250, 1.115087052457000, 0.591271763114250])
UP = np.append(UP, UP[[1, 0]])
DOWN = np.array([0.026748757410810, -0.016864118442875, -0.078223266528990, 0.266864118442875, 0.602949018236360])
DOWN = np.append(DOWN, DOWN[3::-1])


def _random(num, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num, channels, size, size, generator=generator, dtype=torch.float64) * 2 - 1
    uniform = torch.rand(num, NUM_UNIFORM, generator=generator, dtype=torch.float64)
    return images, uniform, torch.randn(num, NUM_NORMAL, generator=generator, dtype=torch.float64)


def _points(u, n, on, size):
    """The 3x3 matrix from an image's point to the transformed one's, (x, y) from the centre; y points down."""

    def matrix(linear, shift=(0.0, 0.0)):
        return np.block([[np.array(linear), np.array(shift)[:, None]], [np.zeros((1, 2)), np.ones((1, 1))]])

    def rotation(angle):
        return matrix([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    s, a = np.exp2(0.2 * n[0]), np.exp2(0.2 * n[1])
    steps = [
        matrix([[-1.0 if u[0] < 0.5 else 1.0, 0], [0, 1]]),
        rotation(math.pi / 2 * math.floor(4 * u[1])),
        matrix(np.eye(2), np.round((2 * u[2:4] - 1) * 0.125 * size)),
        matrix([[s, 0], [0, s]]),
        rotation((2 * u[4] - 1) * math.pi),
        matrix([[a, 0], [0, 1 / a]]),
        rotation((2 * u[5] - 1) * math.pi),
        matrix(np.eye(2), n[2:4] * 0.125 * size),
    ]
    whole = np.eye(3)
    for step, is_on in zip(steps, on, strict=True):
        whole = step @ whole if is_on else whole
    return whole


def _moved(plane, forward):
    """An image [H, W] under a map of points: doubled, sampled bilinearly, and halved."""
    size, margin = len(plane), 8
    index = np.abs((np.arange(-margin, size + margin) + size - 1) % (2 * size - 2) - (size - 1))
    padded = plane[np.ix_(index, index)]  # reflected about the first and the last pixel
    fine = np.zeros((2 * len(padded),) * 2)
    fine[::2, ::2] = padded
    for axis in (0, 1):
        fine = np.apply_along_axis(np.convolve, axis, fine, UP, "same")
    fine = fine[2 * margin : 2 * (margin + size) - 1, 2 * margin : 2 * (margin + size) - 1]
    centre = (size - 1) / 2
    ys, xs = (axis.ravel() for axis in np.mgrid[-4 : 2 * size + 3, -4 : 2 * size + 3] / 2 - centre)
    x, y, _ = np.linalg.inv(forward) @ np.stack([xs, ys, np.ones_like(xs)])
    sampled = map_coordinates(fine, [2 * (y + centre), 2 * (x + centre)], order=1, mode="mirror")
    sampled = sampled.reshape(2 * size + 7, -1)
    for axis in (0, 1):
        sampled = np.apply_along_axis(np.convolve, axis, sampled, DOWN, "valid")
    return sampled[::2, ::2]


def _recoloured(image, u, n, on):
    """An image [C, H, W] under one 4x4 matrix."""
    luma, identity = np.append(np.ones(3) / math.sqrt(3), 0), np.eye(4)
    scale = np.diag([*[np.exp2(0.5 * n[1])] * 3, 1])
    turn = identity.copy()
    turn[:3, :3] = Rotation.from_rotvec((2 * u[1] - 1) * math.pi * luma[:3]).as_matrix()
    onto = np.outer(luma, luma)
    brighten = identity + np.outer([1, 1, 1, 0], [0, 0, 0, 0.2 * n[0]])
    steps = [brighten, scale, identity - 2 * onto * (u[0] < 0.5), turn, onto + (identity - onto) * np.exp2(n[2])]
    whole = identity
    for step, is_on in zip(steps, on, strict=True):
        whole = step @ whole if is_on else whole
    pixels = np.concatenate([np.broadcast_to(image, (3, *image.shape[1:])), np.ones((1, *image.shape[1:]))])
    return np.tensordot(whole, pixels, 1)[: len(image)]


@pytest.mark.parametrize(("channels", "size", "probability"), [(3, 16, 0.5), (1, 4, 0.8), (3, 8, 1.0), (1, 16, 0.3)])
def test_every_image_is_the_one_transformed_by_itself(channels, size, probability):
    images, uniform, normal = _random(6, channels, size)
    found = transform(images, uniform, normal, probability)
    chances = np.full(13, probability)
    chances[[4, 6]] = 1 - math.sqrt(1 - probability)  # two rotations, either of them with the probability
    for image, u, n, result in zip(images.numpy(), uniform.numpy(), normal.numpy(), found.numpy(), strict=True):
        on = u[:13] < chances
        forward = _points(u[13:19], n[:4], on[:8], size)
        moved = np.stack([_moved(plane, forward) for plane in image])
        assert np.abs(_recoloured(moved, u[19:], n[4:], on[8:]) - result).max() < 1e-10
        one, own_u, own_n = (torch.from_numpy(x[None]) for x in (image, u, n))
        alone = transform(one, own_u, own_n, probability)
        assert np.abs(alone[0].numpy() - result).max() < 1e-12


@pytest.mark.parametrize("size", [4, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blits_are_permutations_of_pixels(size, dtype):
    images, uniform, normal = (x.to(dtype) for x in _random(24, 3, size))
    is_on = torch.zeros(24, 8, dtype=torch.bool)
    is_on[:, :3] = uniform[:, 13:16] < 0.7
    moved = resample(images, *affine(is_on, uniform[:, :6], normal[:, :4], size))
    for image, on, u, result in zip(images.numpy(), is_on, uniform.numpy(), moved.numpy(), strict=True):
        if on[0] and u[0] < 0.5:
            image = image[..., ::-1]
        if on[1]:
            image = np.rot90(image, -math.floor(4 * u[1]), (1, 2))
        if on[2]:
            x, y = np.round((2 * u[2:4] - 1) * 0.125 * size).astype(int)
            padded = np.pad(image, ((0, 0), (size // 8,) * 2, (size // 8,) * 2), mode="reflect")
            image = padded[:, size // 8 - y :, size // 8 - x :][:, :size, :size]
        assert np.abs(image - result).max() < (5e-6 if dtype == torch.float32 else 1e-12)


def test_no_probability_leaves_every_bit():
    images, uniform, normal = _random(4, 3, 8)
    assert transform(images, uniform, normal, 0.0) is images


def test_shrinking_does_not_alias():
    lines = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(16).expand(1, 1, 32, 32)
    half = resample(lines, 1.9 * torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2, dtype=torch.float64))
    assert half.abs().max() < 0.15, "lines of one pixel turn grey; sampled at points, they would stay lines"


@pytest.mark.parametrize("channels", [1, 3])
def test_it_can_be_differentiated_twice(channels):
    images, uniform, normal = _random(2, channels, 4, seed=1)
    images.requires_grad_(True)

    def transformed(x):
        return transform(x, uniform, normal, 0.8).square()

    assert torch.autograd.gradcheck(transformed, (images,))
    assert torch.autograd.gradgradcheck(transformed, (images,))
