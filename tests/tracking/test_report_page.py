"""The page of a report: nothing in a run's files becomes markup, and nothing runs but its own scripts."""

import base64
import hashlib
import json
import re
import socket
from html.parser import HTMLParser

import pytest

from tests.tracking.hostile import NASTY, hostile_run
from trainkit.cli.main import main
from trainkit.tracking import Jsonl, Run
from trainkit.tracking.report.document import document
from trainkit.tracking.report.links import links_picture
from trainkit.tracking.report.machine import memory_of, memory_picture
from trainkit.tracking.report.markup import ASSETS, SCRIPTS, json_in_script, tag
from trainkit.tracking.report.record import read_record

UPLOT = {  # of npm's uplot 1.6.32, unpacked from its package
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
ALLOWED = {
    "html", "head", "body", "main", "meta", "title", "style", "script", "section", "header", "h1", "h2", "p", "div",
    "span", "b", "i", "small", "ul", "ol", "li", "label", "input", "button", "output", "figure", "figcaption",
    "img", "pre", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "line", "text",
    "noscript", "a",
}  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.text = [], None, []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in self.content:
            self.inside = tag
            self.content[tag].append("")

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside:
            self.content[self.inside][-1] += data
        else:
            self.text.append(data)


def _sha256(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_plotting_library_is_the_one_that_was_published():
    for name, digest in UPLOT.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest
    assert "(v1.6.32)" in (ASSETS / "uPlot.iife.min.js").read_text()[:100]
    assert "Leon Sorokin" in (ASSETS / "uPlot.LICENSE").read_text()


def test_a_hostile_run_adds_no_markup(tmp_path):
    run_dir = hostile_run(tmp_path)
    assert main(["report", str(run_dir), "--output", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    page = _Tags(text)
    assert {name for name, _ in page.tags} <= ALLOWED
    attributes = {attribute for _, given in page.tags for attribute in given}
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "href")]
    assert len(page.content["script"]) == len(SCRIPTS) + 1 and len(page.content["style"]) == 2  # and the data
    assert all(given["src"].startswith("data:image/webp;base64,") for name, given in page.tags if name == "img")
    assert "root:" not in text, "a link out of the directory was followed"
    assert NASTY.replace("\u2028", "") in "".join(page.text).replace("\u2028", "")
    data = json.loads(page.content["script"][0])
    assert data["runs"][0]["evaluation"][0]["name"] == NASTY


def test_only_what_is_hashed_may_run(tmp_path):
    run_dir = hostile_run(tmp_path)
    main(["report", str(run_dir)])
    page = _Tags((run_dir / "report.html").read_text())
    (policy,) = [given["content"] for name, given in page.tags if name == "meta" and "http-equiv" in given]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["script-src"].split() == [_sha256(script) for script in page.content["script"][1:]]
    assert rules["style-src"].split() == [_sha256(style) for style in page.content["style"]]


def test_json_stays_in_its_script():
    text = json_in_script([NASTY, "\u2029", "\ud800"])
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == [NASTY, "\u2029", "?"]


def test_only_markup_is_markup():
    made = tag("p", "<b>", [tag("i", "&")], None, 3, title='"<', hidden=False)
    assert made == '<p title="&quot;&lt;">&lt;b&gt;<i>&amp;</i>3</p>'


def _run(parent, name, values, **lines):
    tracker = Jsonl()
    (parent / name).mkdir(parents=True)
    tracker.start(Run(directory=parent / name, name=name))
    for step, value in enumerate(values, 1):
        tracker.log(step, {"loss": value, "position": 8 * step})
    tracker.evaluation(len(values), {"held_out_loss": 2 * values[-1]})
    tracker.finish("finished")
    for file, value in lines.items():
        (parent / name / f"{file}.json").write_text(json.dumps(value))
    return parent / name


def test_several_runs_are_one_page_beside_each_other(tmp_path, capsys):
    runs = [_run(tmp_path, "a/same", [3.0, 2.0]), _run(tmp_path, "b/same", [5.0, 4.0]), _run(tmp_path, "c", [1.0])]
    assert main(["report", *map(str, runs)]) == 0
    assert f"the report is in {tmp_path / 'report.html'}" in capsys.readouterr().err
    page = _Tags((tmp_path / "report.html").read_text())
    boxes = [given["data-shows"] for name, given in page.tags if name == "input" and "data-shows" in given]
    assert boxes == ["0", "1", "2"]
    said = " ".join(page.text)
    assert "3 runs" in said and str(runs[0]) in said and str(runs[1]) in said, "two are called the same"
    data = json.loads(page.content["script"][0])
    assert [run["training"][0]["v"] for run in data["runs"]] == [[3, 2], [5, 4], [1]]
    assert [chart["family"] for chart in data["charts"]] == ["loss"]
    cells = [given.get("data-run") for name, given in page.tags if name == "td" and "data-run" in given]
    assert cells[:3] == ["0", "1", "2"]


def test_the_verdict_is_the_first_line_and_intervals_are_shown(tmp_path):
    verdict = {"text": "better than the bigram", "beats_baseline": True}
    result = {"verdict": verdict, "intervals": {"held_out_loss": [3.5, 4.5]}, "metrics": {"held_out_loss": 4.0}}
    run = _run(tmp_path, "run", [3.0, 2.0], result=result, manifest={"code": {"commit": "abc"}, "history": []})
    main(["report", str(run)])
    text = (run / "report.html").read_text()
    page = _Tags(text)
    said = [part for part in page.text if part.strip()]
    assert said[1] == "better than the bigram" and 'class="verdict good"' in text  # after the title
    assert "95 %: 3.5 to 4.5" in said and "commit" in said and "abc" in said
    assert any("finished" in part for part in said)


def test_what_cannot_be_read_is_said(tmp_path):
    run = _run(tmp_path, "run", [3.0, 2.0], links={"plan": {"kind": "new"}})
    (run / "manifest.json").write_text("{")
    main(["report", str(run)])
    text = (run / "report.html").read_text()
    assert "manifest.json cannot be read" in text and "links.json is not of a version" in text


def test_a_killed_run_is_called_so(tmp_path):
    run = _run(tmp_path, "run", [3.0, 2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "ti')
    owner = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1", "job": None, "beat": 3}
    (run / ".lock").write_text(json.dumps(owner))
    assert main(["report", str(run)]) == 0
    assert "killed · step 2" in (run / "report.html").read_text()


def test_memory_is_counted_where_it_can_be():
    lines = [
        "G: on each rank, predicted: parameters 4.0 kB, gradients 2.0 kB, optimizer ?",
        "D: on each rank, predicted: parameters 1.0 MB, gradients 1.0 MB, optimizer 2.0 MB",
        "D: on each rank, counted after a step: parameters 1.5 MB, gradients 1.0 MB, optimizer 2.5 MB",
        "something else",
    ]
    assert memory_of(lines) == {
        "G": ("predicted", [4000.0, 2000.0, 0.0]),
        "D": ("counted after a step", [1.5e6, 1e6, 2.5e6]),
    }
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="16"', str(memory_picture(lines)))]
    assert widths[3:] == pytest.approx([560 * part / 5.0 for part in (1.5, 1.0, 2.5)], abs=0.01)
    assert memory_picture(["nothing"]) is None


@pytest.mark.parametrize(
    ("kind", "groups", "within", "between"),
    [
        ("flat", [[0, 1]], 0, 1),
        ("flat", [[0, 1, 2, 3]], 0, 4),
        ("hierarchical", [[0, 1], [2, 3]], 2, 2),
        ("leader", [[0, 1, 2], [3, 4]], 3, 1),
    ],
)
def test_the_plan_is_drawn(kind, groups, within, between):
    hosts = [{"name": f"host{i}", "ranks": ranks} for i, ranks in enumerate(groups)]
    plan = {"kind": kind, "groups": groups, "wire_dtype": "exact", "chunk_bytes": None}
    drawn = links_picture({"hosts": hosts, "plan": plan, "why": ["because"], "transport": "gloo"})
    assert drawn is not None
    assert drawn.count('class="rank"') == sum(map(len, groups))
    assert (drawn.count('class="within"'), drawn.count('class="between"')) == (within, between)
    assert "because" in drawn and "all-reduce over gloo" in drawn and "host0: ranks 0, 1" in drawn


def test_events_are_listed_and_marked(tmp_path):
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run"))
    tracker.log(1, {"loss": 1.0})
    tracker.message("a loss of rank 1 is nan. The step is skipped")
    tracker.log(2, {"loss": 1.0})
    tracker.message("rank 3 on b is slow in compute (x): 9.0 ms a step, the median rank 3.0 ms, in 3 windows")
    tracker.message("anything else")
    tracker.finish("finished")
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    record = read_record(tmp_path)
    assert record is not None
    marks = [(mark["step"], mark["kind"]) for mark in document([record])["runs"][0]["marks"]]
    assert marks == [(1, "skipped"), (2, "checkpoint"), (2, "straggler")]
    main(["report", str(tmp_path)])
    assert "anything else" in (tmp_path / "report.html").read_text()
