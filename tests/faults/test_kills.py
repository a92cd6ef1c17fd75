"""A covering part of what benchmarks/faults.py counts: kills at random moments, and nothing lost."""

import random

import pytest

from benchmarks import kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_kills", "num_steps"), [(5, 60), pytest.param(10, kills.NUM_STEPS, marks=pytest.mark.nightly)]
)
def test_killed_some_times_it_ends_with_the_same_bits(tmp_path, num_kills, num_steps):
    seed = random.randrange(1 << 30)
    result = kills.measure(num_kills, 2, tmp_path, seed=seed, num_steps=num_steps)
    assert result["kills"] >= num_kills
    assert result["restarts from a checkpoint"] > 0 or num_kills < 10, "a few may all come before the first checkpoint"
    assert (result["lost"], result["differing"]) == (0, 0), f"seed {seed}: {result}"
