"""The page of a sweep: what it says, and how a browser shows it."""

import json
import re
from dataclasses import replace

import pytest

from tests.sweep.studies import drawn, opened, trial, value
from tests.tracking.browser import MISSING, Seen, browser
from tests.tracking.hostile import IMAGE, NASTY
from trainkit.cli.main import main
from trainkit.config.variation import Variation
from trainkit.sweep.report import importance, write_report
from trainkit.sweep.report.document import MAX_CURVES, document, thinned
from trainkit.sweep.table import front, ordered

in_a_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


def _study(directory, trials, metrics=("held_out_loss",), **settings):
    study = opened(directory, metrics, **({"sampler": "nsga2"} if len(metrics) > 1 else {}) | settings)
    study.trials = lambda: trials
    return study


def _written(directory, trials, metrics=("held_out_loss",), **settings):
    write_report(_study(directory, trials, metrics, **settings), directory / "report.html")
    return directory / "report.html"


def _data(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def _opened(chromium, path, **given):
    seen = Seen(chromium, **({"viewport": {"width": 1280, "height": 900}} | given))
    seen.page.goto(path.as_uri())
    seen.page.wait_for_selector("html[data-ready]", state="attached")
    return seen


# -- what it says ----------------------------------------------------------------------------------------------------


def test_a_page_says_what_was_found_without_a_script(tmp_path):
    path = _written(tmp_path / "sweep", drawn(60))
    text = path.read_text().partition("<script")[0]
    best = front(drawn(60), [1.0])[0]
    assert f"best: trial {best.number}: held_out_loss {value(best):.6g}" in text
    assert "42 finished, 12 pruned, 6 failed of 40" in text
    assert "Failed trials: 6" in text and "CUDA out of memory" in text
    assert re.search(r"<tbody><tr><th scope=\"row\">optimizer\.lr</th><td>(9\d|100)%", text), (
        "nothing else decides the value"
    )
    assert text.count("<tr><td>") == 20 and f"optimizer.lr={best.params['optimizer.lr']}" in text
    assert "http:" not in text and "https:" not in text and " style=" not in text


def test_a_page_has_all_values(tmp_path):
    trials = drawn(30)
    trials[3] = replace(trials[3], values=[9.0])  # Optuna's of one that was pruned
    data, best_first = _data(_written(tmp_path / "sweep", trials)), ordered(trials, [1.0])
    assert data["number"] == [one.number for one in best_first]
    wanted = [float(f"{value(one):.8g}") if one.state == "finished" else None for one in best_first]
    assert data["values"] == [wanted] and wanted.count(None) == 9
    choices = [key.get("choices") for key in data["keys"]]
    assert choices == [None, ["4", "8", "16"], None] and data["keys"][0]["log"] and not data["keys"][2]["log"]
    assert [data["keys"][1]["choices"][i] for i in data["params"][1]] == [
        one.params["recipe.batch_size"] for one in best_first
    ]
    assert data["best"] == [0] and len(data["curves"]) == 27


def test_links_lead_to_runs_and_to_their_reports(tmp_path):
    study = _study(tmp_path / "javascript:alert(1) #&", [trial(0, [1.0]), trial(1, [2.0]), trial(2, [3.0])])
    for number in (0, 1):
        study.run_dir(number).mkdir(parents=True)
    (study.run_dir(1) / "report.html").write_text("")
    outside = tmp_path / "page.html"
    write_report(study, outside)
    text = outside.read_text()
    before = "javascript%3Aalert%281%29%20%23%26/trials"
    assert f'<a href="{before}/00000/">0</a></td>' in text
    assert f'<a href="{before}/00001/">1</a> <a href="{before}/00001/report.html">report</a></td>' in text
    assert "00002" not in text and _data(outside)["links"] == [1, 2, 0] and _data(outside)["trials"] == before


def test_curves_of_many_trials_are_thinned_evenly(tmp_path):
    trials = [trial(number, [float(number)], reported={1: 2.0 * number, 2: float(number)}) for number in range(2000)]
    kept = [one.number for one in thinned(ordered(trials, [1.0]))]
    assert kept[:250] == [*range(250)] and kept[250:] == [*range(250, 2000, 7)] and len(kept) == MAX_CURVES
    text = _written(tmp_path / "sweep", trials).read_text()
    assert "500 of 2,000 curves are drawn: those of the best 250 trials, and of every 7th of the others" in text
    assert thinned(trials[:500]) == trials[:500] and thinned([trial(0, [1.0])]) == []


@pytest.mark.parametrize("signs", [[1.0], [-1.0], [1.0, -1.0]])
def test_the_key_that_decides_is_the_important_one(tmp_path, signs):
    trials = [
        replace(one, values=[s * v for s, v in zip(signs, [one.values[0]] * 2, strict=False)]) for one in _finished()
    ]
    study = _study(tmp_path / "sweep", trials)
    found = importance.importances(trials, signs, study.varied)
    assert found is not None and next(iter(found)) == "optimizer.lr" and found["optimizer.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def _finished(num=200):
    return [one for one in drawn(num, states=False) if one.values[0] < 20]


def test_importance_is_not_said_of_few_trials(tmp_path):
    trials = drawn(19, states=False)
    path = _written(tmp_path / "sweep", trials)
    assert "Too few trials for it: 19 trials have finished, and it takes 20" in path.read_text()
    outside = [trial(n, [1.0], params={"optimizer.lr": 9.0, "recipe.batch_size": "4"}) for n in range(30)]
    assert importance.importances(outside, [1.0], opened(tmp_path / "other").varied) is None
    assert importance.share_of_best(20) == 0.25 and importance.share_of_best(500) == 0.1


def test_a_sweep_without_a_trial_has_a_page(tmp_path):
    text = _written(tmp_path / "sweep", []).read_text()
    assert "no trials yet of 40" in text and "No trial has finished yet." in text


def test_a_front_is_listed(tmp_path):
    trials = drawn(80, num_metrics=2)
    path = _written(tmp_path / "sweep", trials, ["loss", "-accuracy"])
    text, best = path.read_text(), front(trials, [1.0, -1.0])
    assert f"{len(best)} of the trials are on the Pareto front of loss, accuracy" in text
    assert _data(path)["best"] == [*range(len(best))] and _data(path)["metrics"][1] == {"name": "accuracy", "sign": -1}


def test_the_command_writes_the_page(tmp_path, capsys):
    study = opened(tmp_path / "sweep")
    study.finish(study.take(), [1.0], seconds=1.0)
    study.close()
    assert main(["sweep", "report", str(study.directory)]) == 0
    assert f"the report is in {study.directory / 'report.html'}" in capsys.readouterr().err
    assert main(["sweep", "report", str(study.directory), "--output", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in study.directory.glob("*.html")] == ["report.html"]


# -- how a browser shows it ------------------------------------------------------------------------------------------


@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_all_charts_are_drawn_without_any_request(chromium, tmp_path, width, scheme):
    seen = _opened(
        chromium,
        _written(tmp_path / "sweep", drawn(60)),
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    page = seen.page
    assert seen.errors == [] and len(seen.requests) == 1
    assert int(seen.flag("charts") or 0) == page.locator("figure").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    painted = page.evaluate(
        "[...document.querySelectorAll('canvas:not(.over)')].map(c => c.getContext('2d').getImageData(0, 0, c.width, "
        "c.height).data.reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0))"
    )
    assert len(painted) == 7 and min(painted) > 500
    labels = [page.locator(".plot").nth(i).get_attribute("aria-label") for i in range(7)]
    assert all("Left and right go through the trials" in label for label in labels)
    assert labels[0].startswith("held_out_loss over trials: ") and "best: trial" in labels[0]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(18, 22, 31)") == (scheme == "dark")


@in_a_browser
def test_a_trial_is_named_by_mouse_and_keyboard(chromium, tmp_path):
    trials = drawn(40)
    seen = _opened(chromium, _written(tmp_path / "sweep", trials))
    page, order = seen.page, ordered(trials, [1.0])
    for title in ("held_out_loss over trials", "held_out_loss", "a line for each trial"):
        figure = page.locator(f'[data-chart="{title}"]')
        figure.locator(".plot").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert figure.locator(".said").inner_text().startswith(f"trial {order[1].number} · finished · held_out_loss 0.")
        page.keyboard.press("ArrowLeft")
        assert seen.flag("at") == str(order[0].number)
        page.keyboard.press("Escape")
        assert figure.locator(".said").inner_text().strip() == ""
    curve = page.locator('[data-chart="held_out_loss"] .u-over')
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 12)
    assert seen.flag("at") == str(order[0].number)
    assert page.locator('[data-chart="held_out_loss over trials"] .ring').is_visible()
    assert seen.errors == []


@in_a_browser
def test_an_axis_chooses_trials_for_the_table(chromium, tmp_path):
    trials = drawn(60, states=False)
    seen = _opened(chromium, _written(tmp_path / "sweep", trials))
    page, sheet = seen.page, seen.page.locator(".sheet .over")
    sheet.scroll_into_view_if_needed()
    box = sheet.bounding_box()
    x = box["x"] + 64
    page.mouse.move(x, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(x, box["y"] + 40 + (340 - 16 - 40) / 3, steps=4)
    page.mouse.up()
    wanted = sum(one.params["optimizer.lr"] >= 0.01 for one in trials)
    # Not wait_for_function, which evaluates text where it has to wait: the page's policy forbids that.
    page.locator("#pages output", has_text=re.compile(f"of {wanted}$")).wait_for()
    page.mouse.click(x, box["y"] + 200)
    page.locator("#pages output", has_text=re.compile("of 60$")).wait_for()
    assert 0 < wanted < 60 and seen.errors == []


@in_a_browser
def test_the_table_is_sorted_filtered_and_turned(chromium, tmp_path):
    trials = drawn(120)
    study = _study(tmp_path / "sweep", trials)
    study.run_dir(front(trials, [1.0])[0].number).mkdir(parents=True)
    write_report(study, tmp_path / "sweep" / "report.html")
    seen = _opened(chromium, tmp_path / "sweep" / "report.html")
    page = seen.page

    def column(i):
        return page.locator(f"#table tbody tr td:nth-child({i})").all_inner_texts()

    assert column(1) == [("★ " if i == 0 else "") + str(t.number) for i, t in enumerate(ordered(trials, [1.0])[:50])]
    assert (
        page.locator("#table tbody a").count() == 1 and page.locator("#pages output").inner_text() == "1 to 50 of 120"
    )
    link = page.locator("#table tbody a").get_attribute("href")
    assert (tmp_path / "sweep" / link).resolve() == study.run_dir(front(trials, [1.0])[0].number)
    head = page.locator("#table th").nth(4)
    head.locator("button").click()
    rates = sorted(one.params["optimizer.lr"] for one in trials)
    assert [float(text) for text in column(5)] == pytest.approx(rates[:50], rel=1e-3)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert float(column(5)[0]) == pytest.approx(rates[-1], rel=1e-3) and head.get_attribute("aria-sort") == "descending"
    page.locator("#filter select").select_option("failed")
    assert set(column(2)) == {"failed"} and len(column(2)) == 12 and page.locator(".after").is_disabled()
    page.locator("#filter select").select_option("")
    page.locator(".after").click()
    assert page.locator("#pages output").inner_text() == "51 to 100 of 120"


@in_a_browser
def test_charts_follow_their_controls(chromium, tmp_path):
    seen = _opened(chromium, _written(tmp_path / "sweep", drawn(60)))
    label = "document.querySelector('[data-chart=\"held_out_loss over trials\"] .plot').getAttribute('aria-label')"
    note = seen.page.locator('[data-chart="held_out_loss over trials"] .note')
    assert "54 trials" in seen.page.evaluate(label) and "outside of the chart" in note.inner_text()
    seen.page.get_by_label("logarithmic").check()
    assert note.is_hidden()
    seen.page.get_by_label("stopped early").uncheck()
    assert "42 trials" in seen.page.evaluate(label) and seen.errors == []


@in_a_browser
@pytest.mark.parametrize("metrics", [["loss", "-accuracy"], ["a", "b", "-c"]])
def test_several_metrics_have_a_chart_of_their_front(chromium, tmp_path, metrics):
    num = len(metrics)
    seen = _opened(chromium, _written(tmp_path / "sweep", drawn(60, num_metrics=num), metrics))
    titles = seen.page.locator("#charts-front figure").evaluate_all("all => all.map(one => one.dataset.chart)")
    assert titles == (["accuracy over loss"] if num == 2 else ["b over a", "c over a", "c over b"])
    assert seen.page.locator("#charts-curves").count() == 0 and seen.errors == []


@in_a_browser
def test_names_and_texts_of_others_run_nothing(chromium, tmp_path):
    params = {NASTY: NASTY, IMAGE: 0.5}
    trials = [
        trial(
            n, [1.0 + n], params=params, reported={1: 2.0, 2: 1.0 + n}, state="finished" if n else "failed", error=NASTY
        )
        for n in range(25)
    ]
    study = _study(tmp_path / f"sweep {IMAGE}".replace("/", "_"), trials)
    study.varied = {
        NASTY: Variation(NASTY, NASTY, choices=(NASTY, "b")),
        IMAGE: Variation(IMAGE, "", low=0.1, high=1.0),
    }
    study.metrics = [NASTY]
    write_report(study, study.directory / "report.html")
    seen = _opened(chromium, study.directory / "report.html")
    assert seen.flag("hit") is None and seen.errors == [] and len(seen.requests) == 1
    seen.page.locator(".plot").first.focus()
    seen.page.keyboard.press("ArrowRight")
    seen.page.locator("#table th button").nth(4).click()
    assert NASTY[:20] in seen.page.locator(".said").first.inner_text()
    assert seen.flag("hit") is None and seen.errors == []


@in_a_browser
def test_ten_thousand_trials_are_drawn(chromium, tmp_path):
    seen = _opened(chromium, _written(tmp_path / "sweep", drawn(10_000)))
    assert seen.page.locator("#pages output").inner_text().endswith("of 10,000") and seen.errors == []


def test_a_document_is_of_finite_numbers(tmp_path):
    trials = [trial(0, [float("nan")]), trial(1, state="pruned", reported={1: float("inf"), 2: 1.0})]
    study = _study(tmp_path / "sweep", trials)
    written = json.dumps(document(study, trials, [], tmp_path / "page.html"), allow_nan=False)  # raises for any other
    assert "NaN" not in written and "Infinity" not in written
