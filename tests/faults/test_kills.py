"""A covering part of what benchmarks/faults.py counts: kills at random moments, and nothing lost."""

import random

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
    seed = random.randrange(1 << 30)
    result = kills.measure(10, 2, tmp_path, seed=seed)
    assert result["kills"] >= 10 and result["restarts from a checkpoint"] > 0
    assert (result["lost"], result["differing"]) == (0, 0), f"seed {seed}: {result}"
