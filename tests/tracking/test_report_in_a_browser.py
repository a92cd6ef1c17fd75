"""The page of a report as a browser shows it."""

import math
import time

import numpy as np
import pytest

from tests.tracking.browser import MISSING, Seen, browser
from tests.tracking.hostile import IMAGE, SCRIPT, hostile_run
from trainkit.cli.main import main
from trainkit.tracking import Jsonl, Media, Run, Trackers
from trainkit.tracking.report.markup import SCRIPTS

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SPIKE = 777


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


def _logged(run_dir, num_steps=40, level=1.0):
    trackers = Trackers(jsonl=Jsonl(), media=Media())
    run_dir.mkdir()
    trackers.start(Run(run_dir, run_dir.name, milestones=((0, "first"), (4 * num_steps, "second"))))
    trackers.baselines(0, {"held_out_loss": {"a simple one": 2.0}})
    for step in range(1, num_steps + 1):
        loss = level * (1 + math.exp(-step / 9) + 0.2 * math.sin(9 * step)) if step != SPIKE else 500.0
        waits = {"data_wait": 0.1, "comm_wait": 0.3, "samples_per_s": 99.0}
        trackers.log(step, {"loss": loss, "balance": math.cos(step), "position": 8 * step, **waits})
        if step % (num_steps // 4) == 0:
            trackers.image(step, "samples", np.full((8, 8, 3), 6 * step % 256, np.uint8))
            trackers.evaluation(step, {"held_out_loss": level * (1 + 5 / step)})
    trackers.message("a loss is nan. The step is skipped")
    trackers.finish("finished")
    return run_dir


def _opened(chromium, path, **given):
    seen = Seen(chromium, **({"viewport": {"width": 1280, "height": 900}} | given))
    seen.page.goto(path.as_uri())
    return seen


def _view(seen):
    return [float(end) for end in (seen.flag("view") or "").split()]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_page_is_drawn_without_any_request(chromium, tmp_path, width, scheme):
    run = _logged(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    seen = _opened(chromium, run / "report.html", viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert seen.errors == [] and len(seen.requests) == 1
    assert seen.page.locator("canvas").count() == int(seen.flag("charts") or 0) == 4
    label = seen.page.locator("[data-family=loss] .plot").get_attribute("aria-label")
    assert label.startswith("loss over steps; last values: loss 1.2") and "a simple one 2" in label
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    painted = seen.page.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data.reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0))"
    )
    assert min(painted) > 500
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(18, 22, 31)") == (scheme == "dark")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_label_of_the_last_step_is_not_cut_off(chromium, tmp_path, width):
    run = _logged(tmp_path / "run", num_steps=2000)
    assert main(["report", str(run)]) == 0
    seen = _opened(chromium, run / "report.html", viewport={"width": width, "height": 900})
    painted = seen.page.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => c.getContext('2d').getImageData(c.width - 2, 0, 2, c.height)"
        ".data.reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0))"
    )
    assert painted and max(painted) == 0


def test_a_label_of_many_digits_is_not_cut_off(chromium, tmp_path):
    trackers, run = Trackers(jsonl=Jsonl()), tmp_path / "run"
    run.mkdir()
    trackers.start(Run(run, run.name))
    for step in range(1, 5):
        trackers.log(step, {"lr": 1e-3 - 2e-7 * step, "samples_per_s": 9.0})
    trackers.finish("finished")
    assert main(["report", str(run)]) == 0
    seen = _opened(chromium, run / "report.html")
    painted = seen.page.locator("[data-family=lr] canvas").evaluate(
        "c => c.getContext('2d').getImageData(0, 0, 2, c.height).data"
        ".reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0)"
    )
    assert painted == 0 and seen.errors == []


def test_curves_are_zoomed_by_mouse_and_keyboard(chromium, tmp_path):
    run = _logged(tmp_path / "run")
    main(["report", str(run)])
    seen = _opened(chromium, run / "report.html")
    page, plot = seen.page, seen.page.locator("[data-family=loss] .u-over")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=3)
    page.mouse.up()
    assert _view(seen) == pytest.approx([10, 20], abs=0.3)
    page.mouse.dblclick(box["x"] + 100, box["y"] + 50)
    assert _view(seen) == []
    page.locator("[data-family=loss] .plot").focus()
    page.keyboard.press("+")
    assert _view(seen) == [10, 30]
    page.keyboard.press("ArrowRight")
    assert _view(seen) == [14, 34]
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert _view(seen) == []
    page.keyboard.press("+")
    page.keyboard.press("Escape")
    assert _view(seen) == []
    page.get_by_role("button", name="zoom in").click()
    assert _view(seen) == [10, 30]
    page.get_by_role("button", name="show all").click()
    page.locator("#controls select").select_option("samples")
    page.locator("[data-family=loss] .plot").focus()
    page.keyboard.press("+")
    assert _view(seen) == [80, 240]
    assert page.locator("[data-family=loss] .plot").get_attribute("aria-label").startswith("loss over samples")
    page.get_by_label("logarithmic").check()
    assert "have no logarithm" in page.locator("[data-family=balance] .note").inner_text()
    assert page.locator("[data-family=loss] .note").is_hidden()
    assert seen.errors == []


def test_pictures_follow_the_slider(chromium, tmp_path):
    run = _logged(tmp_path / "run")
    main(["report", str(run)])
    page = _opened(chromium, run / "report.html").page
    slider = page.get_by_role("slider", name="step")
    shown = page.locator("[data-through] img:visible")
    assert shown.count() == 1 and shown.get_attribute("data-step") == "40"
    slider.press("ArrowLeft")
    assert shown.get_attribute("data-step") == "30"
    assert page.locator(".steps output").inner_text() == "step 30 · second"


def test_runs_are_overlaid_and_hidden(chromium, tmp_path):
    runs = [_logged(tmp_path / "a"), _logged(tmp_path / "b", level=2.0)]
    main(["report", *map(str, runs)])
    seen = _opened(chromium, tmp_path / "report.html")
    legend = seen.page.locator("[data-family=loss] .legend button:visible")
    assert legend.count() == 6  # of each the loss, its evaluation and the baseline
    assert seen.page.locator("td[data-run='1']:visible").count() == 1
    seen.page.get_by_label("b", exact=True).uncheck()
    assert legend.count() == 3
    assert seen.page.locator("td[data-run='1']:visible").count() == 0
    label = seen.page.locator("[data-family=loss] .plot").get_attribute("aria-label")
    assert "a: loss" in label and "b: loss" not in label
    legend.first.click()
    assert legend.first.get_attribute("aria-pressed") == "false"
    assert "a: loss" not in seen.page.locator("[data-family=loss] .plot").get_attribute("aria-label")
    assert seen.errors == []


def test_a_hostile_run_runs_no_script(chromium, tmp_path):
    run_dir = hostile_run(tmp_path)
    main(["report", str(run_dir), "--output", str(tmp_path / "page.html")])
    seen = _opened(chromium, tmp_path / "page.html")
    seen.page.wait_for_timeout(300)
    assert seen.flag("hit") is None and len(seen.requests) == 1
    assert seen.errors == [], "the policy had nothing to refuse"
    assert seen.page.locator("canvas").count() > 0 and seen.page.locator("img[src=x]").count() == 0
    assert seen.page.evaluate("document.scripts.length") == len(SCRIPTS) + 1  # and the data


def test_the_policy_refuses_what_should_never_be_there(chromium, tmp_path):
    """Were a text to become markup after all."""
    run = _logged(tmp_path / "run")
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    planted = SCRIPT + "<img src='http://127.0.0.1:9/x'>" + IMAGE
    (run / "report.html").write_text(page.replace("<main>", f"<main>{planted}"))
    seen = _opened(chromium, run / "report.html")
    seen.page.wait_for_timeout(300)
    assert seen.flag("hit") is None and len(seen.errors) >= 2, "each is refused"
    assert seen.page.locator("canvas").count() == 4


def test_a_spike_of_one_step_is_seen_in_a_long_run(chromium, tmp_path):
    run = _logged(tmp_path / "run", num_steps=6000)
    main(["report", str(run)])
    begin = time.monotonic()
    seen = _opened(chromium, run / "report.html")
    assert time.monotonic() - begin < 10, "benchmarks/report_page.py measures it"
    row = seen.page.locator("tr", has=seen.page.locator("th", has_text="loss")).first
    seen.page.get_by_text("All values as a table").click()
    assert "500" in row.inner_text()
    drawn = seen.page.evaluate("JSON.parse(document.querySelector('#data').textContent).runs[0].training")
    (loss,) = [one for one in drawn if one["name"] == "loss"]
    assert loss["s"][loss["v"].index(500)] == SPIKE and len(loss["s"]) <= 4001
