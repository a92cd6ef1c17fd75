"""The model against what others published: the goals, those that are missed as they are, and that no row is bent."""

import json
from collections import Counter

import pytest
import yaml

from benchmarks.predictions import (
    GOALS_PERCENT,
    MIB,
    PUBLISHED,
    UNSEEN,
    groups,
    ranges,
    results,
    rows,
    share_in_range,
    summary,
    unseen,
)
from trainkit.planning.accuracy import PUBLISHED_RANGES

MISSED_PERCENT = {
    "up to 128 MiB, held out": (17.0, 121),
    "above 128 MiB, held out": (4.4, 103),
    "up to 128 MiB, never used": (25.9, 112),
    "above 128 MiB, never used": (14.5, 96),
}
"""Median and worst error where a goal of GOALS_PERCENT is missed; cards staged by AMD hosts are the worst."""


@pytest.mark.parametrize("name", GOALS_PERCENT)
def test_errors_are_those_stated_beside_their_goals(name):
    found, goal, stated = summary(groups()[name]), GOALS_PERCENT[name], MISSED_PERCENT[name]
    assert found["median"] == pytest.approx(stated[0], abs=0.3)
    assert found["worst"] == pytest.approx(stated[1], abs=2)
    assert stated > goal  # a goal that is met needs no figure here


def test_switches_and_hosts_meet_the_goal_of_small_messages():
    for kind in ("NVSwitch", "several hosts"):
        assert summary(groups()[f"up to 128 MiB, held out, {kind}"])["median"] <= 15


def test_switches_meet_the_goal_of_large_messages():
    found = summary(groups()["above 128 MiB, held out, NVSwitch"])
    assert found["median"] <= 3
    assert found["worst"] <= 30


def test_fitted_rows_are_nearer_than_the_goals():
    assert summary(groups()["up to 128 MiB, fitted"])["median"] <= 15
    assert summary(groups()["above 128 MiB, fitted"])["median"] <= 3


def test_there_are_as_many_rows_as_the_goal_asks():
    kinds = Counter(row.kind for row in rows())
    assert len(rows()) >= 60
    assert kinds["staged"] + kinds["PCIe and NVLink pairs"] >= 25
    assert sum(row.num_bytes < 128 * MIB for row in rows()) >= 20
    assert len({row.source for row in rows()}) >= 40


def test_a_source_is_fitted_or_held_out_as_a_whole():
    fitted = {row.source for row in rows() if row.fitted}
    held_out = {row.source for row in rows() if not row.fitted}
    assert not fitted & held_out
    assert abs(len(fitted) - len(held_out)) <= len(PUBLISHED_RANGES)


def test_no_source_of_an_unseen_row_is_used():
    assert not {row.source for row in unseen()} & {row.source for row in rows()}
    assert sum(row.is_small for row in unseen()) >= 20


def test_unseen_rows_say_where_they_were_read():
    for entry in yaml.safe_load(UNSEEN.read_text()):
        assert entry["source"].startswith("https://")
        assert entry["read"]


def test_half_of_the_unseen_rows_are_in_the_range_of_their_kind():
    assert share_in_range(unseen()) == pytest.approx(0.46, abs=0.02)  # the ranges are meant for eight of ten


def test_every_row_has_a_source_and_sane_figures():
    for row in (*rows(), *unseen()):
        assert len(row.source) > 20
        assert row.published > 0
        assert row.num_bytes >= MIB / 4


def test_ranges_are_the_percentiles_of_the_rows():
    for kind, pair in ranges().items():
        for stated, limits in zip(PUBLISHED_RANGES[kind], pair, strict=True):
            assert stated == pytest.approx(limits, abs=0.011)


def test_eight_of_ten_rows_are_within_their_range():
    assert 0.75 <= share_in_range(rows()) <= 0.9


def test_the_written_results_are_those_of_this_model():
    written = json.loads(max(PUBLISHED.parent.glob("results/predictions_*.json")).read_text())
    found = json.loads(json.dumps(results()))
    assert written["summary_percent"] == found["summary_percent"]
    assert written["ranges"] == found["ranges"]
