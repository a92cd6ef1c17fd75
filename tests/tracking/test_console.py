import io
import re

import pytest
import rich.console

from trainkit.tracking import Console, Run
from trainkit.tracking.console import duration, number, time_left

RUN = {"name": "run", "num_samples": 4000, "summary": ("bert: 1.2 M parameters",)}


def console(tmp_path, clock, *, terminal=False, width=80, **run):
    out = io.StringIO()
    screen = rich.console.Console(file=out, force_terminal=terminal, width=width, highlight=False)
    tracker = Console(console=screen, clock=lambda: clock[0])
    tracker.start(Run(directory=tmp_path, **{**RUN, **run}))
    return tracker, out


def values(step, **more):
    return {"loss": 8.0 / step, "lr": 0.001, "skipped": 0.0, "position": 8 * step, "samples_per_s": 160.0, **more}


def test_plain_lines(tmp_path):
    clock = [0.0]
    tracker, out = console(tmp_path, clock)
    for step in range(1, 301):
        clock[0] = 0.05 * step
        tracker.log(step, values(step, eta_s=(4000 - 8 * step) / 160))
    tracker.evaluation(300, {"held_out_loss": 0.5, "held_out_accuracy": 0.25, "num_tokens": 12345})
    tracker.text(300, "sentences", "the [cat] sat\n")
    tracker.table(300, "words", ["word", "share"], [["[cat]", 0.5], ["doormat", 1 / 3]])
    tracker.message("checkpoint saved")
    tracker.log(301, values(301, skipped=1.0))
    tracker.finish("finished")
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "bert: 1.2 M parameters",
        "step        1    0.2%     160 samples/s  ETA    0:25  loss 8          lr 0.001",
        "step      201   40.2%     160 samples/s  ETA    0:15  loss 0.0398     lr 0.001",
        "step      300   60.0%     160 samples/s  ETA    0:10  loss 0.02667    lr 0.001",
        "step      300  evaluation  held_out_loss 0.5  held_out_accuracy 0.25  num_tokens 12345",
        "step      300  sentences",
        "the [cat] sat",
        "step      300  words",
        "word     share",
        "[cat]    0.5",
        "doormat  0.3333",
        "checkpoint saved",
        "step      301   60.2%     160 samples/s  loss 0.02658    lr 0.001      skipped 1",
    ]


def test_intervals_have_a_line(tmp_path):
    tracker, out = console(tmp_path, [0.0], summary=())
    tracker.intervals(7, {"accuracy": (0.25, 0.5), "loss": (1.0, 2.0)})
    assert out.getvalue() == "step        7  95 % intervals  accuracy [0.25, 0.5]  loss [1, 2]\n"


def test_baselines_have_lines(tmp_path):
    tracker, out = console(tmp_path, [0.0], summary=())
    tracker.baselines(7, {"accuracy": {"most frequent class": 0.25, "nearest neighbour": 0.5}})
    assert out.getvalue() == "step        7  baselines of accuracy  most frequent class 0.25  nearest neighbour 0.5\n"


def test_a_message_may_come_before_the_start():
    out = io.StringIO()
    Console(console=rich.console.Console(file=out)).message("step_00000100 is damaged [sic]: going on from another")
    assert out.getvalue() == "step_00000100 is damaged [sic]: going on from another\n"


def test_long_plain_lines_are_not_wrapped(tmp_path):
    tracker, out = console(tmp_path, [0.0], summary=())
    tracker.log(1, {f"metric_{index}": float(index) for index in range(40)})
    assert len(out.getvalue().splitlines()) == 1


def test_a_resume_says_so(tmp_path):
    _, out = console(tmp_path, [0.0], resumed_step=17, summary=())
    assert out.getvalue() == "resumed after step 17\n"


def test_a_terminal_gets_one_live_bar_and_lines_above_it(tmp_path):
    clock = [0.0]
    tracker, out = console(tmp_path, clock, terminal=True, width=60)
    for step in range(1, 301):
        clock[0] = 0.05 * step
        tracker.log(step, values(step, eta_s=(4000 - 8 * step) / 160))
    tracker.evaluation(300, {"held_out_loss": 0.5})
    print("a print of someone else")
    tracker.finish("finished")
    written = out.getvalue()
    assert "\x1b[?25l" in written  # cursor hidden while the bar lives
    assert "\x1b[?25h" in written  # and shown again
    assert "step      300   60.0%     160 samples/s" in written
    assert "step      300  evaluation  held_out_loss 0.5\n" in written
    assert "a print of someone else\n" in written
    assert 100 < written.count("samples/s") < 200  # drawn at most ten times a second


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_line_keeps_its_bar_and_its_places(tmp_path, width):
    clock = [0.0]
    tracker, out = console(tmp_path, clock, terminal=True, width=width)
    for step, eta_s in ((1, 5000.0), (20, 250.0), (300, 9.0)):
        clock[0] += 1.0
        tracker.log(step, values(step, eta_s=eta_s, **{f"a_metric_{number}": 1.0 for number in range(9)}))
    tracker.finish("finished")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]", plain) if "samples/s" in line]
    assert {len(line) for line in lines} == {width}
    for part in ("step", "%", "samples/s", "ETA"):
        assert len({line.index(part) for line in lines}) == 1, part
    assert {line.index("step") for line in lines} == {13}, "after a bar of twelve"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.00123456, "0.001235"), (12.0, "12"), (7, "7"), (123456, "123456"), (54321.9, "54322"), (float("nan"), "nan")],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_a_range_of_the_time_left_keeps_the_places(tmp_path):
    clock = [0.0]
    tracker, out = console(tmp_path, clock, terminal=True)
    for step, low_s, high_s in ((1, 456.0, 7020.0), (2, 440.0, 6000.0), (3, 400.0, 400.0)):
        clock[0] += 1.0
        tracker.log(step, values(step, eta_s=(low_s + high_s) / 2, eta_low_s=low_s, eta_high_s=high_s))
    tracker.finish("finished")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]", plain) if "samples/s" in line]
    assert {len(line) for line in lines} == {80} and len({line.index("loss") for line in lines}) == 1
    assert [part in plain for part in ("ETA 7.6-117 min", "ETA 7.3-100 min", "ETA        6:40")] == [True] * 3


@pytest.mark.parametrize(
    ("low_s", "high_s", "expected"),
    [
        (50, 100, "50-100 s"),
        (100, 109, "1:44"),
        (1, 7199, "0-120 min"),
        (400, 9000, "0.1-2.5 h"),
        (1e5, 1e6, "1.2-12 d"),
        (1e9, 1e12, "11574-11574074 d"),
    ],
)
def test_ranges_of_time(low_s, high_s, expected):
    assert time_left((low_s + high_s) / 2, low_s, high_s) == expected


def test_durations():
    assert [duration(s) for s in (0.4, 75, 3600, 90061)] == ["0:00", "1:15", "1:00:00", "1d 1:01:01"]
