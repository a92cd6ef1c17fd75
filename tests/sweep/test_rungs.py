"""Rungs: who goes on, held against the algorithm as published, played step by step."""

import math
import random

import pytest

from trainkit.sweep.rungs import Rungs


def test_rungs_end_at_the_whole_run():
    assert Rungs(num_evaluations=27).after(0) == [1, 3, 9]
    assert Rungs(num_evaluations=12).after(0) == [1, 4]
    assert Rungs(num_evaluations=16, eta=4).after(0) == [1, 4]
    assert Rungs(num_evaluations=2).after(0) == []


def test_the_best_comes_to_the_end_and_few_others_do():
    """27 trials in a random order. Results that come later may be better: a rung may let some more than a third go."""
    for seed in range(20):
        draw, rungs = random.Random(seed), Rungs(num_evaluations=27)
        quality = [draw.random() for _ in range(27)]
        values = {number: {1: quality[number]} for number in range(27)}
        able = [0]
        while able:
            able = [n for n in values if max(values[n]) < 27 and rungs.goes_on(n, values)]
            if able:
                number = draw.choice(able)
                values[number][next((at for at in rungs.after(number) if at not in values[number]), 27)] = quality[
                    number
                ]
        reached = [sum(at in each for each in values.values()) for at in (1, 3, 9, 27)]
        assert reached[:2] == [27, 9] and 3 <= reached[2] <= 6 and 1 <= reached[3] <= 3
        assert 27 in values[min(values, key=lambda n: quality[n])]


def test_the_first_is_not_promoted_before_there_are_eta():
    rungs = Rungs(num_evaluations=9)
    assert not rungs.goes_on(0, {0: {1: 0.5}})
    assert not rungs.goes_on(0, {0: {1: 0.5}, 1: {1: 0.7}})
    assert rungs.goes_on(0, {0: {1: 0.5}, 1: {1: 0.7}, 2: {1: 0.9}})
    assert not rungs.goes_on(1, {0: {1: 0.5}, 1: {1: 0.7}, 2: {1: 0.9}})
    assert rungs.goes_on(3, {3: {}}), "one that has come to no rung"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_the_worst(bad):
    rungs = Rungs(num_evaluations=9)
    values = {number: {1: bad} for number in range(3)}
    assert not any(rungs.goes_on(number, values) for number in values)
    values[3] = {1: 7.0}
    assert [n for n in values if rungs.goes_on(n, values)] == [3]


def test_brackets_of_hyperband_as_published():
    """Table 1 of Li et al. 2018: R = 81, eta = 3; brackets begin at 1, 3, 9, 27 and 81 with 81, 34, 15, 8, 5."""
    rungs = Rungs.hyperband(81)
    numbers = range(81 + 34 + 15 + 8 + 5)
    firsts = [next(iter(rungs.after(number)), 81) for number in numbers]
    assert {first: firsts.count(first) for first in (1, 3, 9, 27, 81)} == {1: 81, 3: 34, 9: 15, 27: 8, 81: 5}
    assert [rungs.bracket_of(number) for number in numbers] == [rungs.bracket_of(n + len(numbers)) for n in numbers]
