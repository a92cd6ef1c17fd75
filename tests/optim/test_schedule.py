"""Schedules against the formulas of the papers that they are from."""

import pytest
import torch

import trainkit
from trainkit.errors import ConfigError
from trainkit.optim.schedule import Unit


@pytest.mark.parametrize(("total", "warmup", "batch"), [(7038, 0.2843 * 7038, 65536), (1563, 0.128 * 1563, 32768)])
def test_polynomial_is_that_of_bert_large(total, warmup, batch):
    schedule = trainkit.Schedule(warmup=warmup, total=total, shape="polynomial")
    for step in range(total):
        # Warm-up counts the step that is being made, so that the first has a rate; what follows, those before it.
        expected = (step + 1) / warmup if step + 1 < warmup else (1 - step / total) ** 0.5
        assert schedule(step * batch, batch) == pytest.approx(expected, rel=1e-12)
    assert schedule(total * batch, batch) == schedule(2 * total * batch, batch) == 0.0


def test_polynomial_jumps_where_warm_up_ends():
    schedule = trainkit.Schedule(warmup=40, total=100, shape="polynomial", power=2.0, final=0.1, unit="samples")
    assert schedule(38, 1) == pytest.approx(39 / 40)
    assert schedule(40, 1) == pytest.approx(0.1 + 0.9 * 0.36)
    assert schedule(100, 1) == pytest.approx(0.1)


def test_a_total_of_none_is_filled_in_or_refused():
    schedule = trainkit.Schedule(warmup=5, shape="cosine")
    assert schedule.until(20, 4) == trainkit.Schedule(warmup=5, shape="cosine", total=20)
    given = trainkit.Schedule(warmup=5, total=9)
    assert given.until(20, 4) is given and trainkit.Schedule(shape="constant").until(20, 4).total is None
    runtime, network = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker()), torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"schedule\.total=null is the length of the run, which is not known here"):
        runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1), schedule=schedule)


def test_a_power_that_does_not_go_down_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.power=0: must be a number above 0"):
        trainkit.Schedule(total=5, shape="polynomial", power=0)
    with pytest.raises(ConfigError, match=r"schedule\.shape='polynomal': must be .* Did you mean 'polynomial'"):
        trainkit.Schedule(total=5, shape="polynomal")  # type: ignore[arg-type]


IN_UNITS: dict[Unit, tuple[float, float, float | None]] = {
    "run": (0.1, 0.25, None),
    "steps": (4, 10, None),
    "samples": (32, 80, 320),
}


@pytest.mark.parametrize("unit", IN_UNITS)
def test_a_trapezoid_rises_stays_and_falls_at_the_end(unit):
    warmup, decay, total = IN_UNITS[unit]
    given = trainkit.Schedule(shape="trapezoidal", warmup=warmup, decay=decay, total=total, unit=unit, final=0.2)
    made = given.until(40, 8)
    for schedule in (made, made.in_samples(8)):
        for step in range(42):
            fall = min(1.0, max(0.0, (step - 30) / 10))
            expected = (step + 1) / 4 if step < 3 else 1.0 - 0.8 * fall
            assert schedule(step * 8, 8) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shape": "trapezoidal"}, r"schedule\.decay=0\.0: must be above 0 with shape=trapezoidal"),
        ({"shape": "linear", "decay": 3}, r"schedule\.decay=3: .* and 0 with others"),
        ({"shape": "trapezoidal", "decay": 8, "warmup": 4, "total": 10}, r"decay=8: begins before .*warmup=4 ends"),
    ],
)
def test_a_fall_that_does_not_fit_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        trainkit.Schedule(**settings)
