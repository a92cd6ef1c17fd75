"""The model against what others published: the issue's goal, and that no row is bent to it."""

import json

import pytest

from benchmarks.predictions import CURVES, FITTED, PEAKS, results, summary


def test_the_goal_holds_over_all_rows_and_over_those_held_out():
    for rows in (PEAKS, [row for row in PEAKS if not row.fitted]):
        found = summary(rows)
        assert found["median"] <= 5
        assert found["worst"] <= 20


def test_a_few_constants_are_fitted_and_most_rows_are_held_out():
    assert len(FITTED) == sum(row.fitted for row in PEAKS) <= 5
    assert sum(not row.fitted for row in PEAKS) >= 25
    assert not any(row.fitted for row in CURVES)


def test_every_row_has_a_source():
    for row in (*PEAKS, *CURVES):
        assert row.source.startswith(("https://", "Oracle Japan"))
        assert row.published > 0


def test_small_messages_are_listed_separately():
    found = json.loads(json.dumps(results()))
    kinds = [row["kind"] for row in found["rows"]]
    assert kinds.count("peak") == len(PEAKS)
    assert kinds.count("curve") == len(CURVES)
    large = [row for row in CURVES if row.num_bytes == 1 << 30]
    assert summary(large)["worst"] == pytest.approx(16.7, abs=3)
