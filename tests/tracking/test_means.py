import math

import numpy as np
import pytest
import torch

import trainkit
from tests.faults import sick
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit.tracking import Means


def _means(steps):
    means = Means()
    for metrics, share in steps:
        means.add(metrics, share)
    return {name: total / shares for name, (total, shares) in means.take().items() if shares}


def test_every_step_counts_by_its_samples():
    running = torch.zeros(())
    steps = []
    for loss, share in ((1.0, 3.0), (5.0, 1.0), (math.nan, 0.0)):  # the last one: a rank without a sample
        running += 1
        steps.append(({"loss": torch.tensor(loss), "running": running.clone(), "kind": np.float32(2)}, share))
    steps.append(({"other": 7}, 2.0))
    assert _means(steps) == {"loss": 2.0, "running": 1.25, "kind": 2.0, "other": 7.0}


def test_of_a_last_the_newest_value_is_logged():
    steps = [({"loss": 1.0, "resolution": trainkit.Last(4)}, 4.0), ({"loss": 3.0, "resolution": trainkit.Last(8)}, 4.0)]
    assert _means(steps) == {"loss": 2.0, "resolution": 8.0}
    assert _means([*steps, ({"skipped": 1.0}, 4.0)])["resolution"] == 8.0, "a step that was left out gives none"
    assert not isinstance(trainkit.Last(4), float) and _means([({"at": trainkit.Last(torch.tensor([2]))}, 4.0)]) == {
        "at": 2
    }
    empty_share = ({"loss": 0.0, "resolution": trainkit.Last(16)}, 0.0)
    assert _means([*steps, empty_share]) == {"loss": 2.0, "resolution": 16.0}


def test_a_value_is_taken_when_it_is_given():
    means, value = Means(), torch.ones(())
    means.add({"a": value}, 1.0)
    value.fill_(100.0)
    assert means.take() == {"a": (1.0, 1.0)}
    assert means.take() == {}


def test_what_a_skipped_step_spoils_does_not_count():
    steps = [
        ({"loss": 1.0, "d_loss": 1.0, "d_skipped": 0.0, "skipped": 0.0}, 1.0),
        ({"loss": math.nan, "d_loss": 2.0, "d_skipped": 0.0, "skipped": 1.0}, 1.0),
        ({"loss": 4.0, "d_loss": math.inf, "d_skipped": 1.0, "skipped": 0.0}, 2.0),
    ]
    assert _means(steps) == {"loss": 3.0, "d_loss": 1.5, "d_skipped": 0.5, "skipped": 0.25}
    assert math.isnan(_means([*steps, ({"loss": math.nan, "skipped": 0.0}, 1.0)])["loss"]), "nothing else is hidden"


@pytest.mark.parametrize(
    ("value", "given"),
    [("x", "'x'"), (None, "None"), (torch.ones(2), r"Tensor of shape \[2\]"), (1j, "1j"), (np.ones(3), r"ndarray of")],
)
def test_what_is_no_number_is_named(value, given):
    with pytest.raises(ConfigError, match=rf"metric accuracy={given}.*: must be a number, or a tensor or array of"):
        Means().add({"accuracy": value}, 1.0)
    with pytest.raises(ConfigError, match=rf"metric accuracy={given}.*: must be a number, or a tensor or array of"):
        Means().add({"accuracy": trainkit.Last(value)}, 1.0)


def _logged(strategy, run_dir, log_every):
    """What `log` returned; a rank's own metric counts by the samples of its share, and is NaN where it has none."""
    runtime = sick.make_runtime(strategy, "stop", run_dir, log_every=log_every)
    told = []
    for step, batch in enumerate(runtime.batches(torch.arange(11.0), batch_size=5, num_steps=6), 1):
        told.append(runtime.log(step, own=batch.data.double().mean(), number=step, at=trainkit.Last(step)))
    return [means for means in told if means is not None]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_means_are_over_the_samples_of_all_steps_and_ranks(ranks, tmp_path):
    order = trainkit.data.order.Order(11, 0).indices(np.arange(30)).astype(float)
    for told in run_ranks(_logged, ranks, "ddp", tmp_path, 3):
        assert [means["own"] for means in told] == pytest.approx([order[:15].mean(), order[15:].mean()], rel=1e-12)
        assert [means["number"] for means in told] == [2.0, 5.0]
        assert [means["at"] for means in told] == [3.0, 6.0]
    assert [line["own"] for line in sick.metrics(tmp_path)] == [means["own"] for means in told]


def _logged_to_its_end(strategy, run_dir):
    """What `log` returned of seven steps, and of two more after which the loop is left early."""
    runtime = sick.make_runtime(strategy, "stop", run_dir, log_every=3)
    told = [runtime.log_rest()]
    for step, _ in enumerate(runtime.batches(torch.arange(11.0), batch_size=5, num_steps=7), 1):
        told.append(runtime.log(step, number=step))
    for step, _ in enumerate(runtime.batches(torch.arange(11.0), batch_size=5), 8):
        told.append(runtime.log(step, number=step))
        if step == 11:
            break
    told += [runtime.log_rest(), runtime.log_rest()]
    return [means and means["number"] for means in told]


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_step_is_logged(ranks, tmp_path):
    expected = [None, None, None, 2.0, None, None, 5.0, 7.0, None, 8.5, None, None, 10.5, None]
    assert run_ranks(_logged_to_its_end, ranks, "ddp", tmp_path) == [expected] * ranks
    rows = [(line["step"], line["number"]) for line in sick.metrics(tmp_path)]
    assert rows == [(3, 2.0), (6, 5.0), (7, 7.0), (9, 8.5), (11, 10.5)]


def _continued(strategy, run_dir):
    """The steps that were logged by a loop of seven steps and by one of five that continues its data."""
    runtime, steps = sick.make_runtime(strategy, "stop", run_dir, log_every=3), []
    for start, num_steps in ((0, 7), (35, 5)):
        for _ in runtime.batches(torch.arange(11.0), batch_size=5, start=start, num_steps=num_steps):
            step = runtime.step + 1
            if runtime.log(step, number=step) is not None:
                steps.append(step)
    return steps


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_loop_logs_at_the_same_cadence(ranks, tmp_path):
    assert run_ranks(_continued, ranks, "ddp", tmp_path) == [[3, 6, 7, 9, 12]] * ranks


def test_a_skipped_step_between_two_logs_is_seen(tmp_path):
    """Rows of every sixth step against those of every step."""
    for log_every in (1, 6):
        run_ranks(sick.fit, 2, "ddp", "skip", tmp_path / str(log_every), "loss", log_every)
    every = [line for line in sick.metrics(tmp_path / "1") if line["kind"] == "training"]
    sixth = [line for line in sick.metrics(tmp_path / "6") if line["kind"] == "training"]
    assert [line["step"] for line in sixth] == list(range(6, sick.NUM_STEPS + 1, 6))
    for line in sixth:
        steps = every[line["step"] - 6 : line["step"]]
        assert line["skipped"] == sum(step["skipped"] for step in steps) / 6
        for name in ("loss", "grad_norm"):
            values = [step[name] for step in steps if step[name] is not None]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-12), name
    assert [line["step"] for line in sixth if line["skipped"]] == [sick.STEP]


def _rewound(run_dir):
    return sick.fit("ddp", "rewind", run_dir, "loss", log_every=7)


def test_steps_that_were_gone_back_over_do_not_count(tmp_path):
    """Steps 29 and before count once: the run goes back from 30 to 20, and is told at 21, 28, 35 and 36, its last."""
    run_ranks(sick.fit, 2, "ddp", "rewind", tmp_path / "every", "loss", 1)
    run_ranks(_rewound, 2, tmp_path / "some")
    every = {line["step"]: line for line in sick.metrics(tmp_path / "every") if line["kind"] == "training"}
    some = {line["step"]: line for line in sick.metrics(tmp_path / "some") if line["kind"] == "training"}
    assert list(some) == [7, 14, 21, 28, 35, 36]
    assert some[21]["loss"] == every[21]["loss"], "the first after going back"
    assert some[28]["loss"] == pytest.approx(sum(every[step]["loss"] for step in range(22, 29)) / 7, rel=1e-12)
