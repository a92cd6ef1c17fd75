"""The page of a grid: its figures, its sources, and what a browser makes of it."""

import re

import pytest

from tests.tracking.browser import MISSING, Seen, browser
from trainkit.benchmark import machine, words
from trainkit.benchmark.machines import Machine, as_json
from trainkit.benchmark.page import write_page
from trainkit.benchmark.published import published
from trainkit.benchmark.results import Results
from trainkit.benchmark.rows import columns_of, row_of


def _results(path, speed=100.0, gpus=()):
    cells = {}
    for model in ("<b>bert", "gan"):
        for precision in ("fp32", "bf16"):
            for num in (1, 2, 4):
                fast = speed * num**0.9 * (1.5 if precision == "bf16" else 1)
                repeats = [
                    {"seconds": 1.0, "samples": fast * factor, "tokens": 64 * fast} for factor in (0.95, 1, 1.02)
                ]
                about = {"model": model, "precision": precision, "strategy": "ddp", "processes": num}
                more = {"batch_size": 8 * num, "batch_size_per_process": 8, "peak_memory_bytes": 3 * 10**9}
                cells[f"{model} {precision} {num}"] = {
                    **about, **more, "threads": 1, "model_settings": "s", "settings": "s", "repeats": repeats
                }  # fmt: skip
    cells["gan bf16 2"] = {"model": "gan", "precision": "bf16", "strategy": "ddp", "processes": 2, "settings": "s",
                           "reason": "out of memory: <script>alert(1)</script>"}  # fmt: skip
    own = {**machine.describe(), "gpus": [{"name": name} for name in gpus]}
    peak = {"flops_per_s": 1e12, "threads": 1, "settings": "s", "size": 8, "dtype": "float32"}
    value = {"format": 1, "machine": own, "date": "2026-11-29T12:00:00+0000", "settings": {}, "cells": cells,
             "flops": {"<b>bert": {"flops_per_sample": 1e9, "model_settings": "s", "settings": "s"}},
             "peaks": {"fp32": peak}}  # fmt: skip
    results = Results(path, value)
    results.write()
    return Results.read(path)


def _machines(tmp_path):
    one = Machine(name="this", results=_results(tmp_path / "a.json"), usd_per_hour=1.8)
    return [one, Machine(name="h100", results=_results(tmp_path / "b.json", 1000.0, ["NVIDIA H100"] * 2))]


def test_rows_and_columns_hold_what_is_known(tmp_path):
    one, other = _machines(tmp_path)
    rows = [row_of(one, cell) for cell in one.results.measured]
    assert len(rows) == 11
    assert rows[0] == {
        "model": "<b>bert", "machine": "this", "precision": "bf16", "strategy": "ddp", "processes": "1", "batch": "8",
        "samples/s": "150", "tokens/s": "9,600", "spread": "7.0 %", "efficiency": "100 %", "memory": "3.0 GB",
        "$/million": "$3.33",
    }  # fmt: skip
    assert rows[3]["MFU"] == "10 %" and rows[4]["efficiency"] == "93 %"
    names = columns_of([(one, cell) for cell in one.results.measured], is_one=True)
    assert "machine" not in names and "J/sample" not in names and names[-1] == "$/million"
    assert "$/million" not in row_of(other, other.results.measured[0])


def test_the_page_holds_every_cell_and_requests_nothing(tmp_path):
    page = tmp_path / "page.html"
    write_page(_machines(tmp_path), page)
    text = page.read_text()
    assert "<b>bert" not in text and "<script>alert" not in text and "&lt;b&gt;bert" in text
    assert text.count("<tr>") == 1 + 2 * 11 + sum(1 + len(source.rows) for source in published())
    assert "connect-src &#x27;none&#x27;" in text and "2 x NVIDIA H100" in text
    assert text.count("out of memory: &lt;script&gt;") == 2
    assert re.findall(r'(?:src|href)="(?!https://github.com/)', text) == []


def test_published_figures_name_their_source():
    sources = published()
    assert len(sources) >= 2
    for source in sources:
        assert re.match(r"https://github\.com/\S+/[0-9a-f]{40}/", source.url), "the very version"
        assert source.rows and source.date and source.accessed and source.note
        assert all(row.samples_per_s > 0 and row.num_gpus >= 1 for row in source.rows)
    figures = {(row.machine, row.num_gpus, row.model, row.precision, row.sequence_length): row.samples_per_s
               for source in sources for row in source.rows}  # fmt: skip
    assert figures["A100 80GB SXM4", 1, "bert-large", "fp16", 384] == 152
    assert figures["DGX-1 (V100 16 GB)", 8, "bert-large", "fp16", 128] == 919.04


def test_numbers_for_the_script(tmp_path):
    found = as_json(_machines(tmp_path))
    assert len(found["cells"]) == 22 and found["machines"][1]["words"] == "2 x NVIDIA H100"
    assert found["cells"][0]["samples"] == {"median": 150, "low": 142.5, "high": 153}
    assert found["cells"][0]["cost"]["median"] == pytest.approx(1.8 / (150 * 3600) * 1e6, rel=1e-5)
    assert "cost" not in found["cells"][11] and "mfu" not in found["cells"][0]


def test_words_of_small_and_large_figures():
    assert [words.number(value) for value in (1.0, 0.00001234, 999.6)] == ["1", "1.234e-05", "1,000"]
    assert words.flops(9.89e14) == "989 TFLOP/s" and words.flops(5) == "5 FLOP/s"


@pytest.fixture(scope="module")
def chromium():
    if MISSING:
        pytest.skip(MISSING)
    with browser() as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_draws_bars_and_curves(chromium, tmp_path, width, scheme):
    write_page(_machines(tmp_path), tmp_path / "page.html")
    seen = Seen(chromium, viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen.page.goto((tmp_path / "page.html").as_uri())
    page = seen.page
    assert seen.errors == [] and len(seen.requests) == 1
    assert page.locator(".bars li").count() == int(seen.flag("bars") or 0) == 22
    assert page.locator("canvas").count() == int(seen.flag("scaling") or 0) == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    widths = page.eval_on_selector_all(
        "[data-model=gan] .track > i", "all => all.map(one => parseFloat(one.style.width))"
    )
    assert max(widths) == pytest.approx(100 / 1.02, abs=0.01) and min(widths) < 5
    page.locator("#figure").select_option("cost")
    assert page.locator(".bars li").count() == 11, "the price of one machine is known"
    assert "$3.33" in page.locator("[data-model=gan] li").first.inner_text()
    page.locator("#figure").select_option("samples")
    page.get_by_label("best first").check()
    assert "h100 · bf16 · ddp · 4 processes" in page.locator("[data-model=gan] li").first.inner_text()
    page.get_by_role("checkbox", name="bf16").uncheck()
    assert page.locator(".bars li").count() == 12
    page.locator("[data-model=gan] li").first.focus()
    assert re.search(
        r"h100 · fp32 .* samples per second .* batch 32", page.locator("[data-model=gan] .said").inner_text()
    )
    assert seen.errors == []
