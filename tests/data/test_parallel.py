"""Threads that decode: in order, and with little under way at a time."""

import pytest

from trainkit.data.parallel import in_order


def test_threads_keep_the_order_and_run_ahead_only_a_little():
    taken: list[int] = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(lambda number: number * 2, items(), num_threads=2)
    assert [next(results) for _ in range(10)] == list(range(0, 20, 2))
    assert len(taken) <= 10 + 2 * 8
    assert list(results) == list(range(20, 2000, 2))


def test_an_error_in_a_thread_is_raised_in_its_place():
    results = in_order(lambda number: 1 // (3 - number), range(100), num_threads=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
