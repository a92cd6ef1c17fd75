"""The sliced Wasserstein distance: where patches are, what levels there are, and one direction by hand."""

import numpy as np
import pytest
import torch

from trainkit import Runtime, Tracker
from trainkit_recipes.progressive_gan.metrics import sliced_wasserstein as metrics


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(tracker=Tracker(), device="cpu")
    yield runtime
    runtime.close()


def _distance(runtime, a, b, num_channels=1):
    where = torch.rand(len(a), 32, 2, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(a.shape[1] * 49, 64, generator=torch.Generator().manual_seed(1))
    first, second = (metrics.patches(x, where).flatten(0, 1) for x in (a, b))
    return metrics.sliced_wasserstein(runtime, first, second, directions, num_channels)


def test_distance_is_zero_for_equal_images_and_grows_with_noise(runtime):
    images = torch.rand(64, 1, 16, 16).round()
    images = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1)), 3, 1)
    distances = [_distance(runtime, images, images + s * torch.randn_like(images)) for s in (0.0, 0.1, 0.3, 1.0)]
    assert distances[0] == 0.0
    assert distances == sorted(distances) and distances[3] > 2 * distances[1]


def test_distance_in_one_direction_is_that_of_sorted_values(runtime):
    a, b = torch.randn(100, 49, dtype=torch.float64), torch.rand(100, 49, dtype=torch.float64)
    direction = torch.randn(49, 1, dtype=torch.float64)
    unit = (direction / direction.norm()).numpy()
    standard = [(x.numpy() - x.numpy().mean()) / x.numpy().std() for x in (a, b)]
    expected = np.abs(np.sort((standard[0] @ unit)[:, 0]) - np.sort((standard[1] @ unit)[:, 0])).mean() * 1000
    assert metrics.sliced_wasserstein(runtime, a, b, direction, 1) == pytest.approx(expected, rel=1e-12)


def test_patches_are_where_they_are_said_to_be():
    images = torch.arange(2 * 1 * 16 * 16, dtype=torch.float64).view(2, 1, 16, 16)
    found = metrics.patches(images, torch.tensor([[[0.0, 0.0]], [[0.999, 0.55]]]))
    assert torch.equal(found[0, 0].view(7, 7), images[0, 0, :7, :7])
    assert torch.equal(found[1, 0].view(7, 7), images[1, 0, 9:16, 5:12])
    assert metrics.patches(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 2)).shape == (2, 1, 48)


def test_pyramid_has_the_levels_counted_and_sums_up():
    images = torch.randn(2, 3, 64, 64)
    levels = metrics.laplacian_pyramid(images)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    assert [len(metrics.laplacian_pyramid(torch.zeros(1, 1, size, size))) for size in (4, 16, 32)] == [1, 1, 2]
    flat = metrics.laplacian_pyramid(torch.full((1, 1, 32, 32), 3.0))
    assert flat[0].abs().max() < 1e-5 and torch.allclose(flat[1], torch.tensor(3.0))
