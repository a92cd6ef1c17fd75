import json

import numpy as np
import pytest

from trainkit.errors import ConfigError
from trainkit.tracking import Jsonl, Run, Tracker, Trackers, WandB, trackers


class Broken(Tracker):
    def __init__(self, method):
        self.calls = 0

        def fail(*args):
            self.calls += 1
            raise OSError("disk\nis full")

        setattr(self, method, fail)


def tell_everything(tracker, directory):
    tracker.load_state({"broken": {"id": 1}})
    tracker.start(Run(directory=directory, name="run"))
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
        tracker.evaluation(step, {"held_out_loss": 2.0})
        tracker.image(step, "grid", np.zeros((4, 4, 3), np.uint8))
        tracker.text(step, "sentences", "a b")
        tracker.table(step, "words", ["word"], [["a"]])
        tracker.message("saved")
        tracker.state()
    tracker.finish("finished")


@pytest.mark.parametrize(
    "method", ["load_state", "start", "log", "evaluation", "image", "text", "table", "message", "state", "finish"]
)
def test_a_failing_tracker_is_reported_once_and_the_others_go_on(method, tmp_path, capfd):
    broken = Broken(method)
    fan_out = Trackers(broken=broken, jsonl=Jsonl())
    tell_everything(fan_out, tmp_path)

    assert broken.calls == 1
    assert fan_out.names == ["jsonl"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "'broken'" in line
    assert "OSError: disk is full" in line
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


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

        def state(self):
            return {"id": self.id}

        def load_state(self, state):
            self.id = state["id"]

    first = Remembering()
    first.id = 7
    state = json.loads(json.dumps(Trackers(first=first, silent=Tracker()).state()))
    assert state == {"first": {"id": 7}}

    second = Remembering()
    Trackers(other=Tracker(), first=second).load_state(state)
    assert second.id == 7


def test_a_failed_tracker_keeps_its_last_state_for_the_next_process():
    fan_out = Trackers(broken=Broken("log"))
    fan_out.load_state({"broken": {"id": 7}})
    fan_out.log(1, {})
    assert fan_out.state() == {"broken": {"id": 7}}


def test_choice_of_trackers():
    assert trackers().names == ["console", "jsonl", "media", "curve"]
    assert trackers(console=False, wandb=WandB(), others={"mine": Tracker()}).names[-1] == "mine"
    with pytest.raises(ConfigError, match=r"tracking\.jsonl=true"):
        trackers(jsonl=False)
    with pytest.raises(ConfigError, match=r"tracking\.others\.console"):
        trackers(others={"console": Tracker()})
