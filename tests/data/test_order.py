"""The order of samples: permutations that are pure functions of the position."""

import numpy as np
import pytest

from trainkit.data.order import Order
from trainkit.errors import ConfigError


@pytest.mark.parametrize("num_samples", [1, 2, 3, 10, 64, 1000, 4097])
def test_every_epoch_is_a_permutation_and_epochs_differ(num_samples):
    order = Order(num_samples, seed=0)
    epochs = [order.indices(np.arange(e * num_samples, (e + 1) * num_samples)) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(num_samples))
    if num_samples >= 10:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[0], Order(num_samples, seed=1).indices(np.arange(num_samples)))


def test_any_position_alone_gives_what_a_pass_gives():
    order = Order(1000, seed=5)
    whole = order.indices(np.arange(40_000))
    for position in (0, 999, 1000, 16_383, 16_384, 39_999):
        assert Order(1000, seed=5).indices(np.array([position]))[0] == whole[position]
    assert np.array_equal(Order(1000, seed=5).indices(np.arange(16_380, 16_390)), whole[16_380:16_390])


def test_first_places_are_uniform_over_epochs():
    num_samples, num_epochs = 20, 4000
    order = Order(num_samples, seed=1)
    firsts = order.indices(np.arange(num_epochs) * num_samples)
    counts = np.bincount(firsts, minlength=num_samples)
    expected = num_epochs / num_samples
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 43.8  # 0.999 quantile of chi-squared with 19 degrees of freedom


def test_neighbours_are_not_kept_together():
    order = Order(10_000, seed=2).indices(np.arange(10_000))
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.05


def test_a_billion_samples_need_no_memory():
    indices = Order(10**9, seed=0).indices(np.arange(4 * 10**9 - 100, 4 * 10**9))
    assert len(set(indices.tolist())) == 100 and indices.max() < 10**9


def test_an_empty_data_set_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        Order(0, seed=0)
