import pytest

from trainkit.tracking.waits import Waits


def test_nothing_is_said_of_the_first_seconds_or_of_fast_data():
    waits = Waits(lambda: 0)
    assert waits.add({"data_wait": 0.9, "comm_wait": 0.0}, 19.0) is None
    assert Waits(lambda: 0).add({"data_wait": 0.19, "comm_wait": 0.1}, 1000.0) is None
    assert Waits(lambda: 0).add({}, 1000.0) is None


@pytest.mark.parametrize(("num_workers", "advised"), [(0, 2), (1, 2), (4, 8)])
def test_slow_data_are_said_once_with_what_to_set(num_workers, advised):
    waits = Waits(lambda: num_workers)
    assert waits.add({"data_wait": 0.1}, 10.0) is None
    line = waits.add({"data_wait": 0.4}, 20.0)
    assert line is not None
    assert line.startswith(f"30% of the time rank 0 waited for its batches, with num_workers={num_workers}: ")
    assert f"set num_workers={advised} " in line
    assert waits.add({"data_wait": 0.9}, 60.0) is None


def test_slow_links_are_told_from_slow_data():
    waits = Waits(lambda: 0)
    line = waits.add({"data_wait": 0.05, "comm_wait": 0.5}, 30.0)
    assert line is not None and line.startswith("50% of the time rank 0 waited for the gradients of other ranks: ")
