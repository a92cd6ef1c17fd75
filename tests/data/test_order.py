"""The order of samples: permutations that are pure functions of the position."""

import numpy as np
import pytest

from trainkit.data.order import Order, WeightedOrder
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


def test_samples_come_in_proportion_to_their_weights():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    drawn = WeightedOrder(weights, 6, seed=2).indices(np.arange(100_000))
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert (shares[weights == 0] == 0).all()
    assert np.abs(shares - weights / 10).max() < 0.006  # four standard deviations of a share
    assert (WeightedOrder([0, 0, 1e-300, 0], 4, seed=0).indices(np.arange(1000)) == 2).all()
    rare = WeightedOrder(np.append(np.ones(1 << 20), 1 << 20), (1 << 20) + 1, seed=0).indices(np.arange(10_000))
    assert abs((rare == 1 << 20).mean() - 0.5) < 0.02


def test_weighted_draws_are_functions_of_seed_and_position():
    order = WeightedOrder(np.arange(1.0, 51.0), 50, seed=2)
    whole = order.indices(np.arange(5000))
    assert np.array_equal(order.indices(np.array([7, 4000, 12])), whole[[7, 4000, 12]])
    assert not np.array_equal(WeightedOrder(np.arange(1.0, 51.0), 50, seed=3).indices(np.arange(5000)), whole)


@pytest.mark.parametrize(
    "weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, np.nan, 1.0], [[1.0], [1.0], [1.0]]]
)
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ConfigError, match=r"weights of shape .* each of the 3 samples"):
        WeightedOrder(weights, 3, seed=0)
