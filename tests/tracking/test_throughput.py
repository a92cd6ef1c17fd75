import pytest

from trainkit.tracking import Throughput


def test_evaluation_and_saving_do_not_count():
    clock = [0.0]
    throughput = Throughput(start=100, num_samples=1000, clock=lambda: clock[0])
    assert throughput.rates(100) == {}
    clock[0] = 2.0
    assert throughput.rates(200) == {"samples_per_s": 50.0, "eta_s": 16.0}
    with throughput.paused():
        clock[0] = 60.0
    clock[0] = 62.0
    assert throughput.rates(300) == {"samples_per_s": 50.0, "eta_s": 14.0}


def test_an_evaluation_that_raises_is_still_not_training():
    clock = [0.0]
    throughput = Throughput(clock=lambda: clock[0])
    with pytest.raises(RuntimeError), throughput.paused():
        clock[0] = 10.0
        raise RuntimeError
    clock[0] = 12.0
    assert throughput.rates(100) == {"samples_per_s": 50.0}


def test_the_window_forgets_a_slow_start():
    clock = [0.0]
    throughput = Throughput(window_s=10.0, clock=lambda: clock[0])
    position = 0
    for second in range(1, 41):
        clock[0] = float(second)
        position += 1 if second <= 20 else 100
        rates = throughput.rates(position)
    assert rates == {"samples_per_s": 100.0}


def test_logs_rarer_than_the_window_use_the_last_two():
    clock = [0.0]
    throughput = Throughput(window_s=1.0, clock=lambda: clock[0])
    clock[0] = 100.0
    throughput.rates(100)
    clock[0] = 200.0
    assert throughput.rates(1100) == {"samples_per_s": 10.0}


def test_past_the_end_nothing_is_left():
    clock = [0.0]
    throughput = Throughput(num_samples=10, clock=lambda: clock[0])
    clock[0] = 1.0
    assert throughput.rates(12)["eta_s"] == 0.0
