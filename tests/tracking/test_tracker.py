import json
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import trainkit
from tests.present import present
from trainkit.errors import ConfigError
from trainkit.health.signals import REQUEUE_FILE, write_requeue
from trainkit.tracking import (
    Curve,
    Jsonl,
    Media,
    Run,
    TensorBoard,
    Tracker,
    Trackers,
    WandB,
    jsonl,
    tensorboard,
    trackers,
)
from trainkit.training.interruption import mark_requeue


class Broken(Tracker):
    def __init__(self, method):
        self.calls = 0

        def fail(*args):
            self.calls += 1
            raise RuntimeError("it has\nbroken")

        setattr(self, method, fail)


def tell_everything(tracker, directory):
    tracker.load_state_dict({"broken": {"id": 1}})
    tracker.start(Run(directory=directory, name="run"))
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
        tracker.evaluation(step, {"held_out_loss": 2.0})
        tracker.image(step, "grid", np.zeros((4, 4, 3), np.uint8))
        tracker.text(step, "sentences", "a b")
        tracker.table(step, "words", ["word"], [["a"]])
        tracker.message("saved")
        tracker.state_dict()
    tracker.finish("finished")


@pytest.mark.parametrize(
    "method",
    ["load_state_dict", "start", "log", "evaluation", "image", "text", "table", "message", "state_dict", "finish"],
)
def test_a_failing_tracker_is_reported_once(method, tmp_path, capfd):
    broken = Broken(method)
    fan_out = Trackers(broken=broken, jsonl=Jsonl())
    tell_everything(fan_out, tmp_path)

    assert broken.calls == 1
    assert fan_out.names == ["jsonl"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "'broken'" in line
    assert "RuntimeError: it has broken" in line
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_failing_tracker_of_ones_own_loop_does_not_end_it(capfd):
    class Rude(Tracker):
        def log(self, step, values):
            raise ValueError("boom")

    runtime = trainkit.Runtime(device="cpu", tracker=Rude(), log_every=1)
    assert [runtime.log(step, loss=1.0) for step in (1, 2)] == [{"loss": 1.0}] * 2
    runtime.close()
    said = [line for line in capfd.readouterr().err.splitlines() if "boom" in line]
    assert len(said) == 1 and "Rude" in said[0]


def test_an_interrupt_is_not_a_failing_tracker():
    class Interrupted(Tracker):
        def log(self, step, values):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trackers(interrupted=Interrupted()).log(1, {})


def test_the_tracker_of_other_ranks_leaves_nothing(tmp_path, capfd):
    tell_everything(Tracker(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_state_goes_back_to_the_tracker_of_its_name(tmp_path):
    class Remembering(Tracker):
        id = None

        def state_dict(self):
            return {"id": self.id}

        def load_state_dict(self, state):
            self.id = state["id"]

    first = Remembering()
    first.id = 7
    state = json.loads(json.dumps(Trackers(first=first, silent=Tracker()).state_dict()))
    assert state == {"first": {"id": 7}}

    second = Remembering()
    Trackers(other=Tracker(), first=second).load_state_dict(state)
    assert second.id == 7


def test_a_failed_tracker_keeps_its_state_for_a_resume():
    fan_out = Trackers(broken=Broken("log"))
    fan_out.load_state_dict({"broken": {"id": 7}})
    fan_out.log(1, {})
    assert fan_out.state_dict() == {"broken": {"id": 7}}


def test_choice_of_trackers():
    assert trackers().names == ["console", "jsonl", "media", "curve", "report"]
    assert trackers(console=False, wandb=WandB(), others={"mine": Tracker()}).names[-1] == "mine"
    with pytest.raises(ConfigError, match=r"tracking\.jsonl=true"):
        trackers(jsonl=False)
    with pytest.raises(ConfigError, match=r"tracking\.others\.console"):
        trackers(others={"console": Tracker()})


# -- what cannot be written now ----------------------------------------------------------------------------------------


@contextmanager
def full_disk(num_bytes):
    """The kernel refuses to make a file longer than that, after it has written what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_what_a_full_disk_refuses_is_written_later(tmp_path, capfd, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(tensorboard, "RETRY_S", 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    fan_out = Trackers(jsonl=Jsonl(), media=Media(), curve=Curve(), tensorboard=TensorBoard())
    fan_out.start(Run(directory=tmp_path, name="run"))

    def tell(steps):
        for step in steps:
            fan_out.log(step, {"loss": 1.0 / step, **{f"metric_{number}": number / 7 for number in range(40)}})
            fan_out.image(step, "noise", pixels)
            fan_out.evaluation(step, {"held_out_loss": 2.0 / step})

    tell([1, 2])
    with full_disk(2500):  # stderr is a file, too
        tell([3, 4, 5])
        assert [line["step"] for line in jsonl.read(tmp_path / "metrics.jsonl")][-1] < 5, "it was full"
    tell([6])
    fan_out.finish("finished")

    lines = list(jsonl.read(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [step for step in range(1, 7) for _ in range(2)]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    for step in range(1, 7):
        with Image.open(tmp_path / "media" / "noise" / f"{step:08}.png") as image:
            assert np.array_equal(np.asarray(image), pixels)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 7))
    assert [event.step for event in events.Scalars("held_out_loss")] == list(range(1, 7))
    assert Image.open(tmp_path / "curve.png").size[0] > 100
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("trainkit:")]
    for name in ("jsonl", "media", "tensorboard"):
        assert [("cannot write" in line, "writes again" in line) for line in said if repr(name) in line] == [
            (True, False),
            (False, True),
        ]


def test_a_full_disk_for_summary_and_requeue_is_one_line(tmp_path):
    said = []

    class Listening(Tracker):
        def message(self, text):
            said.append(text)

    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run", tracker=Listening())
    run_dir = present(runtime.run_dir)
    summary, word = run_dir / "summary.txt", run_dir / REQUEUE_FILE
    write_requeue(run_dir, number=signal.SIGTERM, step=1)
    runtime.run_log.start()
    before, first_word = summary.read_text(), word.read_text()
    with full_disk(0):
        runtime.run_log.message("said all the same")
        mark_requeue(runtime, signal.SIGTERM, 2)
        runtime.log(10, loss=1.0)
    assert said == [
        "said all the same",
        "summary.txt could not be written: File too large; training continues",
        "REQUEUE could not be written: File too large",
    ]
    assert (summary.read_text(), word.read_text()) == (before, first_word), "nothing half written"
    assert {path.name for path in run_dir.iterdir() if "REQUEUE" in path.name} == {REQUEUE_FILE}
    runtime.run_log.message("there is space again")
    mark_requeue(runtime, signal.SIGTERM, 2)
    assert summary.read_text() == before + "there is space again\n"
    assert json.loads(word.read_text())["step"] == 2
    runtime.close()


def test_what_was_never_written_is_said_at_the_end(tmp_path, capfd):
    class Full(Tracker):
        def log(self, step, values):
            raise OSError("full")

    fan_out = Trackers(full=Full())
    for step in (1, 2, 3):
        fan_out.log(step, {})
    fan_out.finish("finished")
    first, last = capfd.readouterr().err.splitlines()
    assert "tracker 'full' cannot write" in first and "OSError: full" in first
    assert "tracker 'full' could not write until the end: 4 of its calls are lost" in last
    assert fan_out.names == ["full"]


def test_memory_for_what_cannot_be_written_is_bounded(capfd, monkeypatch):
    from trainkit.tracking import fan_out as module

    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 100_000)

    class Heard(Tracker):
        is_full = True
        steps: tuple[int, ...] = ()

        def image(self, step, name, image):
            if self.is_full:
                raise OSError("full")
            self.steps += (step,)

    heard = Heard()
    fan_out = Trackers(heard=heard)
    for step in range(10):
        heard.is_full = step < 9
        fan_out.image(step, "a", np.zeros((100, 100, 3), np.uint8))
    assert heard.steps == (7, 8, 9) or heard.steps == (6, 7, 8, 9)
    assert "calls beyond the limit of the queue" in capfd.readouterr().err


# -- what trackers are given -------------------------------------------------------------------------------------------


class Seen(Tracker):
    def __init__(self):
        self.images, self.values = {}, {}

    def image(self, step, name, image):
        self.images[name] = image

    def log(self, step, values):
        self.values |= values


def test_pictures_of_every_kind_come_as_bytes():
    from matplotlib.figure import Figure

    seen = Seen()
    runtime = trainkit.Runtime(device="cpu", tracker=Trackers(seen=seen))
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    clear = np.zeros((4, 6, 4), np.uint8)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    runtime.log_image(
        3,
        array=red,
        chw=torch.from_numpy(red).permute(2, 0, 1),
        floats=torch.from_numpy(red).permute(2, 0, 1).to(torch.bfloat16) / 255,
        pil=Image.fromarray(red),
        palette=Image.fromarray(red).convert("P"),
        clear=Image.fromarray(clear),
        grey=np.full((4, 6), 0.5),
        mask=torch.ones(4, 6, dtype=torch.bool),
        figure=figure,
        axes=figure.axes[0],
    )
    runtime.close()
    for name in ("array", "chw", "floats", "pil", "palette"):
        assert np.array_equal(seen.images[name], red), name
    assert seen.images["clear"].tolist() == np.full((4, 6, 3), 255).tolist()
    assert seen.images["grey"].shape == (4, 6, 1) and set(seen.images["grey"].ravel()) == {128}
    assert set(seen.images["mask"].ravel()) == {255}
    assert seen.images["figure"].shape == seen.images["axes"].shape == (50, 100, 3)
    assert all(image.dtype == np.uint8 for image in seen.images.values())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a.png", "picture sample='a.png': must be a matplotlib figure"),
        (np.zeros((2, 3, 4, 4)), r"picture sample of shape \[2, 3, 4, 4\] must be"),
        (torch.randn(3, 8, 8), "picture sample has values of -.* must be 0 to 1"),
        (np.full((4, 4), np.nan), "picture sample has values of nan to nan"),
        (np.full((4, 4), 256), "must be 0 to 255"),
    ],
)
def test_what_is_no_picture_is_named_to_the_caller(given, says):
    fan_out = Trackers(seen=Seen())
    with pytest.raises(ConfigError, match=says):
        fan_out.image(0, "sample", given)
    assert fan_out.names == ["seen"]


def test_what_cannot_be_logged_is_named_to_the_caller():
    seen = Seen()
    fan_out = Trackers(seen=seen)
    for method in (fan_out.log, fan_out.evaluation):
        with pytest.raises(ConfigError, match="metric a='x': must be a number"):
            method(0, {"a": "x"})
    with pytest.raises(ConfigError, match=r"text words=\[1\]: must be a string"):
        fan_out.text(0, "words", [1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"table words: row \[1\] must have a cell for each of the columns a, b"):
        fan_out.table(0, "words", ["a", "b"], [[1]])
    fan_out.log(1, {"a": np.float32(0.5), "b": torch.tensor(2), "c": 3})
    assert seen.values == {"a": 0.5, "b": 2.0, "c": 3} and {type(v) for v in seen.values.values()} == {float, int}
    assert fan_out.names == ["seen"]
