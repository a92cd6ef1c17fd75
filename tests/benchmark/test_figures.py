"""Medians, MFU, scaling and cost, by hand."""

import pytest

from trainkit.benchmark.figures import cost_per_million, is_measured, mfu, with_figures
from trainkit.benchmark.machines import prices_of
from trainkit.errors import ConfigError


def _cell(samples_per_s, processes=1, *, strategy="ddp", precision="fp32", tokens=None, joules=None, **more):
    repeats = []
    for factor in (0.9, 1.0, 1.2):
        repeat = {"seconds": 2.0, "samples": 2.0 * samples_per_s * factor}
        repeat |= {} if tokens is None else {"tokens": tokens * repeat["samples"]}
        repeats.append(repeat | ({} if joules is None else {"joules": joules * repeat["samples"]}))
    about = {"model": "m", "precision": precision, "strategy": strategy, "processes": processes}
    return {**about, "threads": 1, "model_settings": "s", "peak_memory_bytes": None, "repeats": repeats, **more}


def _figures(cells, **given):
    results = {
        "cells": {str(number): cell for number, cell in enumerate(cells)},
        "flops": {"m": {"flops_per_sample": 3e9, "model_settings": "s"}},
        "peaks": {"fp32": {"flops_per_s": 1e12, "threads": 1}},
    }
    return [cell["figures"] for cell in with_figures(results | given).values() if is_measured(cell)]


def test_figures_of_a_cell_by_hand():
    (found,) = _figures([_cell(100.0, tokens=64, joules=0.5)])
    assert found["samples"]["values"] == pytest.approx([90, 100, 120])
    assert found["samples"]["median"] == pytest.approx(100) and found["samples"]["spread"] == pytest.approx(0.3)
    assert found["tokens"]["median"] == pytest.approx(6400) and "images" not in found
    assert found["joules_per_sample"] == pytest.approx(0.5)
    assert found["flops_per_s"] == pytest.approx(3e11) and found["mfu"] == pytest.approx(0.3)
    assert found["efficiency"] == 1.0


def test_mfu_is_of_the_peak_of_all_processes():
    one, two = _figures([_cell(100.0), _cell(150.0, 2)])
    assert one["mfu"] == pytest.approx(100 * 3e9 / 1e12)
    assert two["mfu"] == pytest.approx(150 * 3e9 / 2e12) and two["efficiency"] == pytest.approx(0.75)
    assert mfu(1.0, flops_per_sample=None, peak_flops_per_s=1.0, processes=1) is None


def test_what_was_measured_otherwise_is_not_mixed():
    """FLOPs of another configuration, a peak of other threads, one process of either: unknown, not wrong."""
    cells = [_cell(100.0), _cell(150.0, 2, model_settings="other", threads=2)]
    one, two = _figures(cells)
    assert one["mfu"] is not None
    assert two["mfu"] is two["efficiency"] is two["flops_per_s"] is None
    (alone,) = _figures([_cell(100.0)], flops={"m": {"reason": "killed", "model_settings": "s"}}, peaks={})
    assert alone["mfu"] is None and alone["joules_per_sample"] is None


def test_efficiency_is_against_the_same_strategy_first():
    cells = [
        _cell(100.0),
        _cell(80.0, strategy="fsdp"),
        _cell(120.0, 2, strategy="fsdp"),
        _cell(120.0, 2, strategy="zero1"),
    ]
    assert [each["efficiency"] for each in _figures(cells)] == pytest.approx([1, 1, 0.75, 0.6])
    failed = {**_cell(1.0, strategy="fsdp"), "repeats": [], "reason": "out of memory"}
    assert [each["efficiency"] for each in _figures([cells[2], failed])] == [None]


def test_cost_of_a_million_samples():
    # 250 samples a second are 0.9 million an hour.
    assert cost_per_million(250.0, 1.8) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thiss=2", "with NAME of this, h100. Did you mean 'this'"),
        ("2.5", "must be NAME=USD_PER_HOUR"),
        ("this=much", "a number above 0, such as this=2.5"),
        ("this=0", "a number above 0"),
        ("this=nan", "a number above 0"),
        ("this=inf", "a number above 0"),
    ],
)
def test_what_is_no_price(text, says):
    assert prices_of(["this=2", "h100=3.5"], ["this", "h100"]) == {"this": 2.0, "h100": 3.5}
    with pytest.raises(ConfigError, match=says):
        prices_of([text], ["this", "h100"])
