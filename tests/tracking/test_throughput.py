import pytest

from trainkit.tracking import Throughput
from trainkit.tracking.time_left import TimeLeft


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
    throughput = Throughput(clock=lambda: clock[0])
    position = 0
    for second in range(1, 81):
        clock[0] = float(second)
        position += 1 if second <= 40 else 100
        rates = throughput.rates(position)
    assert rates == {"samples_per_s": 100.0}


def test_the_first_steps_count_only_until_there_are_others():
    clock = [0.0]
    throughput = Throughput(num_samples=1000, clock=lambda: clock[0])
    told = []
    for clock[0], position in ((10.0, 10), (11.0, 20), (12.0, 30)):  # the first ten samples took as long as a hundred
        told.append(throughput.rates(position))
    assert told == [
        {"samples_per_s": 1.0, "eta_s": 990.0},
        {"samples_per_s": 10.0, "eta_s": 98.0},
        {"samples_per_s": 10.0, "eta_s": 97.0},
    ]


def test_logs_rarer_than_the_window_use_the_last_two():
    clock = [0.0]
    throughput = Throughput(clock=lambda: clock[0])
    clock[0] = 100.0
    throughput.rates(100)
    clock[0] = 200.0
    assert throughput.rates(1100) == {"samples_per_s": 10.0}


def test_past_the_end_nothing_is_left():
    clock = [0.0]
    throughput = Throughput(num_samples=10, clock=lambda: clock[0])
    clock[0] = 1.0
    assert throughput.rates(12)["eta_s"] == 0.0


def _grown(seconds, costs, *, num=100):
    """What is told every 10 of 3 * `num` samples, of which those of stage i take `seconds[i]` and cost `costs[i]`."""
    clock, told = [0.0], []
    ends = [num, 2 * num, 3 * num]
    throughput = Throughput(num_samples=ends[-1], costs=list(zip(ends, costs, strict=True)), clock=lambda: clock[0])
    for position in range(10, 3 * num + 1, 10):
        clock[0] += 10 * seconds[(position - 1) // num] + (5.0 if position == num + 10 else 0.0)  # networks are made
        told.append((position, throughput.rates(position)))
    return told


def test_the_time_left_of_a_run_that_becomes_slower():
    seconds = (0.1, 0.3, 0.9)  # costs rise more, for a step is not all cost
    for position, rates in _grown(seconds, (1.0, 4.0, 16.0)):
        stage = (position - 1) // 100
        left = (100 - position % 100) % 100 * seconds[stage] + 100 * sum(seconds[stage + 1 :])
        if position in (110, 210):
            continue  # they hold the change
        assert rates["samples_per_s"] == pytest.approx(1 / seconds[stage])
        if stage == 2:
            assert rates["eta_s"] == pytest.approx(left) and "eta_low_s" not in rates
        elif position < 200:  # at its end the next stage alone is left
            assert rates["eta_low_s"] <= left <= rates["eta_high_s"], position
            assert rates["eta_low_s"] < rates["eta_s"] < rates["eta_high_s"]
            assert 0.4 < rates["eta_s"] / left < 2.5


def test_two_measured_costs_give_a_line():
    left = TimeLeft([(10, 1.0), (20, 3.0), (30, 5.0), (40, 1.0)])
    left.measured(10, 2.0)
    left.measured(15, 3.0)
    assert left.after(15) == pytest.approx((5 * 3 + 10 * 3 + 20, 5 * 3 + 10 * 4 + 20, 5 * 3 + 10 * 5 + 20))
    assert left.after(40) == (0.0, 0.0, 0.0)


def test_a_cheaper_sample_to_come_takes_no_longer():
    left = TimeLeft([(10, 4.0), (20, 1.0)])
    left.measured(5, 8.0)
    assert left.after(10) == pytest.approx((20.0, 40.0, 80.0))


def test_no_more_time_is_left_than_a_budget_has():
    now = [0.0]
    throughput = Throughput(num_samples=1000, clock=lambda: now[0])
    throughput.end_within(10.0)
    now[0] = 2.0
    assert throughput.rates(20) == {"samples_per_s": 10.0, "eta_s": 8.0}  # of 98
    now[0] = 9.0
    assert throughput.rates(200)["eta_s"] == pytest.approx(1.0)


def test_waits_are_fractions_of_training_alone():
    now = [0.0]
    throughput = Throughput(clock=lambda: now[0])
    assert throughput.fractions() == ({}, 0.0)
    now[0] = 10.0
    throughput.waited("data_wait", 1.0)
    throughput.waited("data_wait", 1.0)
    throughput.waited("comm_wait", 5.0)
    assert throughput.fractions()[0] == {"data_wait": 0.2, "comm_wait": 0.5}
    with throughput.paused():
        now[0] = 100.0
        throughput.waited("data_wait", 60.0)
    now[0] = 104.0
    assert throughput.fractions() == ({"data_wait": 0.0, "comm_wait": 0.0}, 4.0), "without the pause"
    now[0] = 105.0
    throughput.waited("comm_wait", 3.0)
    assert throughput.fractions()[0]["comm_wait"] == 1.0, "the end of a wait that began before"
