import json
import math
import random

import numpy as np
import pytest
from PIL import Image

from trainkit.tracking import Curve, Jsonl, Run, Trackers, curves, series
from trainkit.tracking.curves import _dashed, draw
from trainkit.tracking.series import read_series


def bert(tracker):
    for step in range(1, 201):
        tracker.log(step, {"loss": 3 + 5 * math.exp(-step / 50) + random.gauss(0, 0.2), "lr": 1e-3, "position": step})
        if step % 50 == 0:
            tracker.evaluation(step, {"held_out_loss": 3.2, "held_out_accuracy": step / 800, "num_tokens": 5})


def gan(tracker):
    for step in range(1, 201):
        tracker.log(step, {"d_loss": math.sin(step), "g_loss": float("nan") if step == 7 else -math.cos(step)})
        if step % 50 == 0:
            tracker.evaluation(step, {"swd": 400.0 / step})


@pytest.mark.parametrize(("tell", "num_panels"), [(bert, 2), (gan, 2)])
def test_a_run_is_drawn(tell, num_panels, tmp_path):
    tracker = Trackers(jsonl=Jsonl(), curve=Curve())
    tracker.start(Run(directory=tmp_path, name="run"))
    tell(tracker)
    tracker.finish("finished")
    assert tracker.names == ["jsonl", "curve"]
    with Image.open(tmp_path / "curve.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    coloured = picture.max(axis=2) - picture.min(axis=2) > 60  # frames, grid and text are grey
    panels = np.array_split(coloured, num_panels, axis=1)
    assert all(panel.sum() > 150 for panel in panels), [int(panel.sum()) for panel in panels]
    assert all(np.ptp(np.flatnonzero(panel.any(axis=1))) > 50 for panel in panels)


@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_the_loss_is_drawn_the_right_way_up(slope, tmp_path):
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run"))
    for step in range(100):
        tracker.log(step, {"loss": slope * step})
    draw(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 120)  # the blue line, and its legend in a corner
    assert -slope * np.corrcoef(rows, columns)[0, 1] > 0.7  # rows count downwards


def test_baselines_are_drawn_from_where_they_hold(tmp_path, monkeypatch):
    drawn = []

    def dashed(axes, *given):
        drawn.append(given)
        _dashed(axes, *given)

    monkeypatch.setattr(curves, "_dashed", dashed)
    tracker = Trackers(jsonl=Jsonl(), curve=Curve())
    tracker.start(Run(directory=tmp_path, name="run"))
    for step, floor in ((10, 5.0), (20, float("inf")), (30, 3.0)):
        tracker.baselines(step, {"swd": {"training images": floor}, "of_nothing": {"x": 1.0}})
        tracker.evaluation(step, {"swd": 100.0 / step, "swd_16": 9.0})
    tracker.finish("finished")
    assert tracker.names == ["jsonl", "curve"]
    name, steps, values, last_step, _ = drawn[-1]
    assert (name, steps.tolist(), values.tolist(), last_step) == ("training images", [10, 30], [5.0, 3.0], 30)
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width < 800, "one panel: swd_16 is a swd"


def test_the_mean_of_a_noisy_curve_stays_a_mean_to_its_end():
    values = np.full(300, 2.0)
    values[-1] = 100.0
    smooth = series.running_mean(values)
    assert smooth[-1] == pytest.approx(2 + 98 / 6) and smooth[0] == 2.0
    assert np.allclose(series.running_mean(np.arange(300.0))[:294], np.arange(294))


def test_nothing_measured_draws_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    draw(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_a_frequent_evaluation_is_not_drawn_every_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("trainkit.tracking.curves.draw", lambda *args, **kwargs: drawn.append(args))
    now = [100.0]
    monkeypatch.setattr("trainkit.tracking.curves.time.monotonic", lambda: now.__setitem__(0, now[0] + 0.5) or now[0])
    tracker = Curve()
    tracker.start(Run(directory=tmp_path, name="run"))
    for step in range(100):  # a drawing takes half a second of this clock, which also ticks at every question
        tracker.evaluation(step, {})
    assert 1 < len(drawn) <= 4
    tracker.finish("finished")
    assert len(drawn) <= 5


def test_the_end_draws_only_what_was_not_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("trainkit.tracking.curves.draw", lambda *args, **kwargs: drawn.append(args))
    for measured_after in (False, True):
        drawn.clear()
        directory = tmp_path / str(measured_after)
        directory.mkdir()
        trackers = Trackers(jsonl=Jsonl(), curve=Curve())
        trackers.start(Run(directory=directory, name="run"))
        trackers.evaluation(5, {"held_out_loss": 1.0})
        if measured_after:
            trackers.log(6, {"loss": 2.0})
        trackers.finish("finished")
        assert len(drawn) == 1 + measured_after


def test_what_is_measured_at_another_resolution_is_another_line():
    training = {"resolution": (np.array([10, 20, 30, 40]), np.array([4.0, 4.0, 8.0, 8.0]))}
    steps, values = series.with_gaps(np.array([10, 20, 30, 40]), np.array([1.0, 2.0, 7.0, 6.0]), training)
    assert np.array_equal(steps, [10, 20, np.nan, 30, 40], equal_nan=True)
    assert np.array_equal(values, [1, 2, np.nan, 7, 6], equal_nan=True)
    same = series.with_gaps(np.array([10, 20]), np.array([1.0, 2.0]), {})
    assert [part.tolist() for part in same] == [[10, 20], [1.0, 2.0]]


def test_intervals_are_read_and_unknown_kinds_passed_over(tmp_path):
    lines = [
        {"step": 1, "time": 0, "kind": "evaluation", "accuracy": 0.9},
        {"step": 1, "time": 0, "kind": "interval", "accuracy": [0.8, 0.95]},
        {"step": 1, "time": 0, "kind": "of a later trainkit", "text": "x"},
        {"step": 2, "time": 1, "kind": "evaluation", "accuracy": 0.92},
        {"step": 2, "time": 1, "kind": "interval", "accuracy": [0.85, 0.96]},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = read_series(path)
    assert [part.tolist() for part in measured.intervals["accuracy"]] == [[1, 2], [0.8, 0.85], [0.95, 0.96]]
    assert measured.training == {} and [*measured.evaluation] == ["accuracy"]
    draw(path, tmp_path / "with.png")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["kind"] == "evaluation"))
    draw(path, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
