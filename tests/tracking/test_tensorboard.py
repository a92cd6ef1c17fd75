import numpy as np
import pytest

from trainkit.errors import ConfigError
from trainkit.tracking import Run, TensorBoard


def tell(directory, steps, resumed_step=None):
    tracker = TensorBoard()
    tracker.start(Run(directory=directory, name="run", resumed_step=resumed_step))
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step})
    tracker.evaluation(step, {"held_out_loss": 0.5})
    tracker.intervals(step, {"held_out_loss": (0.4, 0.75)})
    tracker.image(step, "grid", np.zeros((4, 4, 3), np.uint8))
    tracker.text(step, "sentences", "the [cat]")
    tracker.table(step, "words", ["word"], [["a|b"]])
    tracker.finish("finished")


def test_events_read_back_after_a_resume_hold_no_step_twice(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path, range(1, 13))
    tell(tmp_path, range(9, 21), resumed_step=8)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 21))
    assert [event.step for event in events.Scalars("held_out_loss")] == [20]
    ends = [events.Scalars(f"held_out_loss_{end}")[0].value for end in ("low", "high")]
    assert ends == pytest.approx([0.4, 0.75])
    assert events.Tags()["images"] == ["grid"]


def test_files_of_one_second_are_read_in_written_order(tmp_path, monkeypatch):
    """TensorBoard numbers the files of a process without zeros in front, so that 10 is read before 9."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    tell(tmp_path, range(1, 5))
    tell(tmp_path, range(5, 9), resumed_step=4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("trainkit.tracking.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard()
