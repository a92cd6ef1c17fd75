"""The report of a run: one file that holds everything, with the right numbers at the right places."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from trainkit.cli.main import main
from trainkit.tracking import Jsonl, Media, Run, Trackers
from trainkit.tracking.report import Report
from trainkit.tracking.report.document import document
from trainkit.tracking.report.record import read_record
from trainkit.tracking.series import read_series

MILESTONES = ((0, "4x4 training"), (40, "8x8 fading in"), (70, "8x8 training"))


def _data(text):
    """What the script of a page draws."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(data)


def _document(run_dir):
    record = read_record(run_dir)
    assert record is not None
    return document([record])["runs"][0]


class _Page(HTMLParser):
    """Tags, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def _logged(directory, num_steps=10, resumed_step=None):
    """Trackers that have logged ten steps of ten samples: an evaluation with a picture every two."""
    trackers = Trackers(jsonl=Jsonl(), media=Media(), report=Report())
    trackers.start(
        Run(directory, "run <1>", num_samples=100, milestones=MILESTONES, resumed_step=resumed_step),
    )
    trackers.baselines(resumed_step or 0, {"swd": {"as many training images": 2.0}})
    for step in range((resumed_step or 0) + 1, num_steps + 1):
        trackers.log(step, {"d_loss": 1 / step, "augmentation_probability": step / 50, "position": 10 * step})
        if step % 2 == 0:
            trackers.image(step, "samples", np.full((4, 4, 3), 20 * step, np.uint8))
            trackers.table(step, "neighbours", ["image", "distance"], [["<b>", 0.123456], ["c", 7]])
            trackers.text(step, "note", f"at {step} & after")
            trackers.evaluation(step, {"swd": 10.0 - step})
    return trackers


def test_a_page_shows_all_that_was_logged(tmp_path):
    _logged(tmp_path).finish("finished")
    (tmp_path / "config.yaml").write_text("recipe:\n  name: <gan>\n")
    (tmp_path / "summary.txt").write_text("G: 5 parameters\nnext: trainkit evaluate run\n")
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    said = " ".join(page.words)
    assert not re.search(r"(?:src|href)=['\"]?(?!data:)[\w/:.]", text), "something is fetched from elsewhere"
    assert [picture["data-step"] for picture in page.of("img")] == ["2", "4", "6", "8", "10"]
    assert all(picture["src"].startswith("data:image/webp;base64,") for picture in page.of("img"))
    assert ["hidden" in picture for picture in page.of("img")] == [True] * 4 + [False]
    assert page.of("input")[0]["data-steps"] == "[2, 4, 6, 8, 10]"
    assert "[hidden]{display:none!important}" in text  # or `display:block` of pictures would show all at once
    charts = [chart["family"] for chart in _data(text)["charts"]]
    assert charts == ["loss", "swd", "probability"]
    for expected in ("G: 5 parameters", "name: <gan>", "trainkit evaluate run", "0.1235", "at 10 & after", "step 10"):
        assert expected in said, expected
    assert "as many training images: 2" in said and "lowest 0, highest 8" in said
    widths = [svg["width"] for svg in page.of("svg") if svg["width"] != "100%"]
    assert widths == ["40%", "30%", "30%"]


def test_milestones_lie_at_the_steps_that_reach_them(tmp_path):
    _logged(tmp_path, num_steps=5).finish("interrupted")
    _logged(tmp_path, resumed_step=4).finish("finished")
    measured = read_series(tmp_path / "metrics.jsonl")
    assert measured.milestones == ((0.0, "4x4 training"), (4.0, "8x8 fading in"), (7.0, "8x8 training"))
    assert measured.training["d_loss"][0].tolist() == list(range(1, 11))
    marks = [(mark["step"], mark["text"]) for mark in _document(tmp_path)["marks"]]
    assert marks == [(4, "8x8 fading in"), (7, "8x8 training"), (4, "the run continues after step 4")]


def test_what_is_not_finite_is_left_out_and_counted(tmp_path):
    trackers = Trackers(jsonl=Jsonl())
    trackers.start(Run(tmp_path, "run"))
    for step, value in ((2, 0.0), (4, 10.0), (6, float("nan")), (8, 5.0)):
        trackers.evaluation(step, {"swd": value})
    trackers.finish("finished")
    (swd,) = _document(tmp_path)["evaluation"]
    assert (swd["s"], swd["v"], swd["left_out"]) == ([2, 4, 8], [0, 10, 5], 1)


def test_a_page_is_written_whatever_lies_in_media(tmp_path):
    _logged(tmp_path).finish("finished")
    samples = tmp_path / "media" / "samples"
    (samples / "00000004.png").write_bytes((samples / "00000004.png").read_bytes()[:20])
    (samples / "00000003.txt").write_text("of the same name")
    (tmp_path / "media" / "neighbours" / "00000010.csv").write_bytes(b"a,b\n\xff,2\n")
    mine = tmp_path / "report.tmp.html"
    mine.write_text("mine")
    assert main(["report", str(tmp_path)]) == 0
    page = _Page((tmp_path / "report.html").read_text())
    assert [picture["data-step"] for picture in page.of("img")] == ["2", "6", "8", "10"]
    assert "00000004.png cannot be read as an image" in page.words and "of the same name" in page.words
    assert page.of("input")[0]["data-steps"] == "[2, 3, 4, 6, 8, 10]"
    assert mine.read_text() == "mine" and not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("line", [b'{"step": 1}\n', b'{"st\n', b"\xff\n"])
def test_other_files_called_metrics_are_one_line(tmp_path, capsys, line):
    (tmp_path / "metrics.jsonl").write_bytes(line + b"{}\n")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "metrics.jsonl is no record of a run" in said
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["report", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert not list(tmp_path.parent.glob(".*.part"))


def test_a_directory_without_a_run_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no metrics.jsonl: give the directory of a run" in capsys.readouterr().err
