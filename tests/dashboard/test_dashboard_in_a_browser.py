"""The dashboard as a browser shows it."""

import pytest

from tests.dashboard.test_dashboard import _run, _serving
from tests.tracking.browser import MISSING, Seen, browser
from tests.tracking.hostile import hostile_run

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


def test_a_running_job_is_followed(chromium, tmp_path):
    tracker = _run(tmp_path / "a")
    _run(tmp_path / "b").finish("finished")
    with _serving(tmp_path) as dashboard:
        seen = Seen(chromium, viewport={"width": 390, "height": 800})
        seen.page.goto(dashboard.url)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        seen.page.get_by_role("link", name="a", exact=True).click()
        plot = seen.page.locator("[data-family=loss] .plot")
        assert "loss 20" in plot.get_attribute("aria-label")
        assert "step 2" in seen.page.locator("header").inner_text()
        seen.page.get_by_text("following, checked").wait_for()
        plot.focus()
        seen.page.keyboard.press("+")
        view = seen.flag("view")
        tracker.log(3, {"loss": 7.0, "position": 24})
        seen.page.locator("header", has_text="step 3").wait_for()
        seen.page.locator("[data-family=loss] .plot[aria-label*='loss 7']").wait_for()
        assert seen.flag("view") == view, "what the user has chosen stays"
        assert seen.errors == [] and all(url.startswith(dashboard.url) for url in seen.requests)
        seen.page.get_by_role("link", name="all runs").click()
        for name in ("a", "b"):
            seen.page.get_by_label(f"compare {name}").check()
        seen.page.get_by_role("button", name="compare the chosen runs").click()
        assert "2 runs" in seen.page.locator("h1").inner_text()
        assert seen.page.locator("[data-family=loss] .legend button").count() == 2
    tracker.finish("finished")


def test_a_hostile_run_runs_no_script_here_either(chromium, tmp_path):
    hostile_run(tmp_path)
    with _serving(tmp_path) as dashboard:
        seen = Seen(chromium)
        seen.page.goto(dashboard.url)
        assert seen.flag("hit") is None
        seen.page.locator("table a").first.click()
        seen.page.get_by_text("following, checked").wait_for()
        assert seen.flag("hit") is None and seen.page.locator("canvas").count() > 0
        assert seen.errors == [] and all(url.startswith(dashboard.url) for url in seen.requests)


def test_the_token_of_the_address_is_enough(chromium, tmp_path):
    _run(tmp_path / "a").finish("finished")
    with _serving(tmp_path, host="0.0.0.0") as dashboard:
        local, token = f"http://127.0.0.1:{dashboard.port}/", dashboard.url.partition("?")[2]
        seen = Seen(chromium)
        assert seen.page.goto(local).status == 403
        seen.page.goto(f"{local}?{token}")
        assert seen.page.url == local, "the token is not left in the address"
        seen.page.get_by_role("link", name="a", exact=True).click()
        assert seen.page.locator("canvas").count() > 0
