import numpy as np
import pytest

from trainkit.tracking.buckets import Buckets


@pytest.mark.parametrize("num", [1, 2, 1999, 2000, 2001, 100_003])
@pytest.mark.parametrize("chunk", [977, 4096])
def test_no_extreme_is_lost_and_memory_is_bounded(num, chunk):
    values = np.random.default_rng(0).normal(size=num)
    values[num // 3] = 1e6  # a spike of one step
    curve, steps = Buckets(), np.arange(num)
    for start in range(0, num, chunk):
        curve.extend(steps[start : start + chunk], values[start : start + chunk])
    drawn_steps, drawn = curve.points()
    assert len(curve) <= 2000 and len(drawn) <= 4001 and curve.num_points == num
    assert np.array_equal(drawn, values[drawn_steps.astype(int)]), "each is a point of the curve"
    assert np.array_equal(drawn_steps, np.unique(drawn_steps))
    assert (drawn.min(), drawn.max()) == (values.min(), values.max())
    assert (drawn_steps[-1], drawn[-1]) == (num - 1, values[-1]) == curve.last
    if num <= 2000:
        assert np.array_equal(drawn, values) and not curve.is_thinned


def test_each_part_of_a_long_curve_keeps_its_own_extremes():
    """Against the extremes of the same ranges of the whole curve."""
    num = 64_000
    values = np.random.default_rng(1).normal(size=num)
    curve = Buckets(most=1000)
    for start in range(0, num, 250):
        curve.extend(np.arange(start, start + 250), values[start : start + 250])
    assert len(curve) == 1000
    low_steps, means = curve.means()
    of_64 = values.reshape(1000, 64)
    assert np.allclose(means, of_64.mean(axis=1)) and np.allclose(low_steps, 31.5 + 64 * np.arange(1000))
    drawn_steps, drawn = curve.points()
    bucket = drawn_steps.astype(int) // 64
    for number in range(1000):
        own = drawn[bucket == number]
        assert own.min() == of_64[number].min() and own.max() == of_64[number].max()


def test_a_growing_curve_is_the_one_read_at_once():
    values = np.random.default_rng(2).normal(size=9001)
    at_once, grown = Buckets(most=100), Buckets(most=100)
    at_once.extend(np.arange(9001), values)
    for step, value in enumerate(values):
        grown.extend([step], [value])
    assert all(map(np.array_equal, at_once.points(), grown.points()))
    assert np.allclose(at_once.means(), grown.means())
