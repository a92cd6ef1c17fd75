"""A NaN in one rank's gradient, or in its loss: what `nonfinite=stop|skip|rewind` say, and what is left of it."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import trainkit
from tests.faults import sick
from tests.faults.sick import BATCH, NUM_SAMPLES, NUM_STEPS, POSITION, SICK, STEP
from tests.jobs import TOY, newest_tensors, run
from tests.strategy import scenes
from trainkit import checkpoint
from trainkit.data.order import Order
from trainkit.errors import ConfigError, NonFiniteError
from trainkit.health.guard import MAX_SKIPPED
from trainkit.testing import run_ranks
from trainkit.training.rewinds import MOST_REWINDS

CELLS = (("ddp", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 2), ("zero2", 2))


def _assert_same(state, other):
    for part in ("module", "optimizer", "average"):
        assert state[part].keys() == other[part].keys() and state[part]
        assert [name for name in state[part] if not torch.equal(state[part][name], other[part][name])] == []


def _sick_indices(world_size, grad_accumulation_steps=1):
    """In the data set: of the samples that share a micro-batch with the sick one."""
    stride = world_size * grad_accumulation_steps
    positions = torch.arange(POSITION + SICK % BATCH % stride, POSITION + BATCH, stride)
    return Order(NUM_SAMPLES, 0).indices(positions.numpy()).tolist()


def _report(run_dir):
    (fault,) = json.loads((run_dir / "nonfinite" / f"step_{STEP:08}.json").read_text())
    return fault


def _assert_named(fault, text, world_size, plant, grad_accumulation_steps=1):
    rank = 1 % world_size
    indices = _sick_indices(world_size, grad_accumulation_steps)
    assert (fault["step"], fault["position"], fault["size"], fault["ranks"]) == (STEP, POSITION, BATCH, [rank])
    assert fault["rank_reports"][rank]["indices"] == indices
    assert f"at step {STEP} (position {POSITION})" in text
    assert f"It comes from rank {rank} (samples {', '.join(map(str, indices))})" in text
    if plant == "gradient":
        assert fault["rank_reports"][rank]["parameters"] == ["second.weight"]
        assert "The gradient of second.weight is not finite" in text
    else:
        assert fault["loss"] == "nan" and not fault["rank_reports"][rank]["loss_is_finite"]
    assert fault["repeats"] and not fault["is_applied"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """strategy, world size -> (a run in which that batch never came, one that ends before it)."""
    known = {}

    def of(*cell):
        if cell not in known:
            strategy, world_size = cell
            paths = [tmp_path_factory.mktemp("expected") for _ in range(2)]
            without = run_ranks(_without, world_size, strategy, paths[0])[0]
            before = run_ranks(_before, world_size, strategy, paths[1])[0]
            known[cell] = without, before
        return known[cell]

    return of


def _without(strategy, run_dir):
    return sick.fit(strategy, "stop", run_dir, "none", leaves_out=True)


def _before(strategy, run_dir):
    return sick.fit(strategy, "stop", run_dir, "none", num_steps=STEP - 1)


@pytest.mark.parametrize("plant", ["gradient", "loss"])
@pytest.mark.parametrize(("strategy", "world_size"), CELLS)
def test_stop(expected, tmp_path, strategy, world_size, plant):
    """All ranks stop with the same report; weights are those from before the step; nothing of it is saved."""
    _, before = expected(strategy, world_size)
    results = run_ranks(sick.fit, world_size, strategy, "stop", tmp_path, plant)
    for result in results:
        _assert_same(result["state"], before["state"])
        _assert_named(_report(tmp_path), result["raised"], world_size, plant)
        assert result["raised"] == results[0]["raised"]
        assert "Nothing was updated" in result["raised"] and "lower optimizer.lr" in result["raised"]
        assert result["step"] == result["num_updates"] == STEP - 1
    assert sick.saved_steps(tmp_path) == [10, 20]


@pytest.mark.parametrize("plant", ["gradient", "loss"])
@pytest.mark.parametrize(("strategy", "world_size"), CELLS)
def test_skip(expected, tmp_path, strategy, world_size, plant):
    """The run goes on as one in which that batch never came, and says once what it left out."""
    without, _ = expected(strategy, world_size)
    for result in run_ranks(sick.fit, world_size, strategy, "skip", tmp_path, plant):
        assert result["raised"] is None
        _assert_same(result["state"], without["state"])
        assert (result["step"], result["num_updates"]) == (NUM_STEPS, NUM_STEPS - 1)
        assert result["num_computed"] == NUM_STEPS + 1  # once more to see whose it was
    told = [line for line in sick.said(tmp_path) if "The step is skipped" in line]
    assert len(told) == 1
    _assert_named(_report(tmp_path), told[0], world_size, plant)
    assert [line["step"] for line in sick.metrics(tmp_path) if line.get("skipped")] == [STEP]


@pytest.mark.parametrize("plant", ["gradient", "loss"])
@pytest.mark.parametrize(("strategy", "world_size"), CELLS)
def test_rewind(expected, tmp_path, strategy, world_size, plant):
    """Back to step 20, and from there as if that batch had never been; every step is told once."""
    without, _ = expected(strategy, world_size)
    for result in run_ranks(sick.fit, world_size, strategy, "rewind", tmp_path, plant):
        assert result["raised"] is None
        _assert_same(result["state"], without["state"])
        assert (result["step"], result["num_updates"]) == (NUM_STEPS, NUM_STEPS - 1)
        assert result["left_out"] == [[POSITION, BATCH]]
        assert result["num_computed"] == STEP + 1 + (NUM_STEPS - 20) - 1
    told = [line for line in sick.said(tmp_path) if "Returns to" in line]
    assert len(told) == 1 and "step_00000020" in told[0]
    _assert_named(_report(tmp_path), told[0], world_size, plant)
    training = [line for line in sick.metrics(tmp_path) if line["kind"] == "training"]
    assert [line["step"] for line in training] == list(range(1, NUM_STEPS + 1))
    assert [line["position"] for line in training] == [BATCH * step for step in range(1, NUM_STEPS + 1)]
    assert [line["step"] for line in training if line["skipped"]] == [STEP]
    newest = checkpoint.step_directories(tmp_path / "checkpoints")[-1]
    assert checkpoint.read_manifest(newest)["values"]["left_out"] == [[POSITION, BATCH]]


# -- where it comes from -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", ["gradient", "loss"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_the_samples_are_those_of_one_micro_batch(tmp_path, strategy, plant):
    for result in run_ranks(_fit_accumulating, 2, strategy, tmp_path, plant):
        assert len(_sick_indices(2, 2)) == 2
        _assert_named(_report(tmp_path), result["raised"], 2, plant, grad_accumulation_steps=2)


def _fit_accumulating(strategy, run_dir, plant):
    return sick.fit(strategy, "stop", run_dir, plant, grad_accumulation_steps=2)


def test_what_does_not_come_again_is_said_to(tmp_path):
    for result in run_ranks(_fit_healing, 2, tmp_path):
        assert result["raised"] is None
    (told,) = [line for line in sick.said(tmp_path) if "The step is skipped" in line]
    assert "When computed again it was finite on every rank" in told
    assert "The rank that it comes from is not known" in told
    fault = _report(tmp_path)
    assert (fault["ranks"], fault["repeats"], fault["parameters"]) == ([], False, ["second.weight"])
    batch = Order(NUM_SAMPLES, 0).indices(torch.arange(POSITION, POSITION + BATCH).numpy()).tolist()
    assert sorted(index for share in fault["rank_reports"] for index in share["indices"]) == sorted(batch)


def _fit_healing(run_dir):
    return sick.fit("ddp", "skip", run_dir, "gradient", heals=True)


# -- when to give up ---------------------------------------------------------------------------------------------------


def test_skipping_every_step_stops(tmp_path):
    positions = tuple(SICK - 20 * BATCH + BATCH * i for i in range(40))
    for result in run_ranks(_fit_many, 2, "skip", tmp_path, positions):
        assert result["step"] == STEP - 20 + MAX_SKIPPED - 2  # the last one was not finished
        assert result["num_updates"] == STEP - 21
        assert f"{MAX_SKIPPED} consecutive steps" in result["raised"]


def test_going_back_again_and_again_stops(tmp_path):
    positions = tuple(SICK - 5 * BATCH + BATCH * i for i in range(4))
    for result in run_ranks(_fit_many, 2, "rewind", tmp_path, positions):
        assert f"went back {MOST_REWINDS} times to {tmp_path}" in result["raised"]
        assert len(result["left_out"]) == MOST_REWINDS
    positions = (SICK - 10 * BATCH, SICK - 9 * BATCH, SICK, SICK + BATCH)  # steps 20 and 21, 30 and 31
    for result in run_ranks(_fit_many, 2, "rewind", tmp_path / "spread", positions):
        assert result["raised"] is None
        assert result["num_updates"] == NUM_STEPS - len(positions)


def test_going_back_needs_a_checkpoint(tmp_path):
    for result in run_ranks(_fit_unsaved, 2, tmp_path):
        assert "no checkpoint to return to: set save_every lower" in result["raised"]


def _fit_many(nonfinite, run_dir, positions):
    return sick.fit("ddp", nonfinite, run_dir, "gradient", sick=positions)


def _fit_unsaved(run_dir):
    return sick.fit("ddp", "rewind", run_dir, "gradient", save_every=None)


def _overflowing(run_dir):
    """fp16: gradients that overflow in every step, for longer than `skip` has patience; then a loss that is NaN."""
    precision = trainkit.Precision(name="fp16", initial_scale=2.0**30)
    runtime = sick.make_runtime("ddp", "skip", run_dir, precision=precision)
    network = nn.Linear(5, 1)
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=1e-12))
    skipped: list[bool] = []
    for batch in runtime.batches(torch.ones(8, 5), batch_size=BATCH, num_steps=2 * MAX_SKIPPED + 60):
        loss = engine(batch.data).float().square().mean() * 1e8
        is_sick = len(skipped) >= 60 and runtime.ranks.rank == 1
        try:
            engine.backward(loss * math.nan if is_sick else loss)
            skipped.append(engine.step().skipped)
        except NonFiniteError as error:
            return skipped, str(error)
    return skipped, None


def test_what_overflows_in_fp16_is_not_counted_against_it(tmp_path):
    for skipped, raised in run_ranks(_overflowing, 2, tmp_path):
        assert all(skipped[: MAX_SKIPPED + 10]) and not skipped[59]
        assert len(skipped) == 60 + MAX_SKIPPED - 1
        assert "is nan. It comes from rank 1" in raised


def _without_end(strategy, nonfinite, num_sick):
    """fp16: the gradient of one rank is NaN in the first `num_sick` steps, and every loss is finite."""
    precision = trainkit.Precision(name="fp16", initial_scale=2.0**-21)
    runtime = scenes.make_runtime(strategy, nonfinite=nonfinite, precision=precision)
    engine = runtime.setup(sick.Network(), lambda groups: torch.optim.SGD(groups, lr=0.01))
    before, scales = scenes.whole_state(engine)["module"], []
    for step, batch in enumerate(runtime.batches(torch.ones(8, 5), batch_size=BATCH, num_steps=num_sick + 2)):
        engine.backward(engine(batch.data, step < num_sick and runtime.ranks.rank == 1).float().mean())
        try:
            scales.append(engine.step().loss_scale)
        except NonFiniteError as error:
            after = scenes.whole_state(engine)["module"]
            return scales, str(error), all(torch.equal(before[name], after[name]) for name in before)
    return scales, None, engine.num_updates


SCALES = [2.0**-21, 2.0**-22, 2.0**-23]


@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_nan_in_fp16_is_a_fault_when_the_scale_cannot_fall(strategy):
    for scales, raised, is_unchanged in run_ranks(_without_end, 2, strategy, "stop", 30):
        assert scales == SCALES and is_unchanged
        assert "the gradient of engine 'engine0' (position 24) is not finite, and its loss is " in raised
        assert "the fp16 loss scale has fallen to 6e-08" in raised


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_such_steps_are_skipped_until_they_are_too_many(strategy):
    for scales, raised, num_updates in run_ranks(_without_end, 2, strategy, "skip", 8):
        assert scales == [*SCALES, *[2.0**-24] * 7] and raised is None and num_updates == 2
    for scales, raised, _ in run_ranks(_without_end, 2, strategy, "skip", 40):
        assert len(scales) == 3 + MAX_SKIPPED - 1 and f"{MAX_SKIPPED} consecutive steps" in raised


def _rewinding(run_dir):
    precision = trainkit.Precision(name="fp16", initial_scale=2.0**-23)
    recipe = sick.Sick(sick.make_runtime("ddp", "rewind", run_dir, precision=precision), "gradient")
    trainer = trainkit.Trainer(recipe, save_every=10)
    recipe.sick = range((STEP - 2) * BATCH, STEP * BATCH)
    trainer.fit()
    return trainer.step, trainer.rewinds.left_out, recipe.engine.num_updates, recipe.engine.scaler.scale


def test_going_back_from_such_a_step_leaves_one_batch_out(tmp_path):
    """Steps 29 and 30 are sick: the scale falls in the first, and the second is left out."""
    expected = (NUM_STEPS, [[POSITION, BATCH]], NUM_STEPS - 2, 2.0**-24)
    assert run_ranks(_rewinding, 2, tmp_path) == [expected] * 2


# -- where nothing waits for the device --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_stop_where_steps_do_not_wait(tmp_path, strategy):
    """It is found before anything is told or saved, and names the step and, of a loss, the rank."""
    for result in run_ranks(_fit_waiting, 2, strategy, "stop", tmp_path / "saved", "gradient", 100, 31):
        assert result["step"] == 31
        assert f"at step {STEP} (position {POSITION}) is not finite" in result["raised"]
        assert "The gradient of second.weight is not finite" in result["raised"]
        assert "The weights were updated with it" in result["raised"]
        assert sick.saved_steps(tmp_path / "saved") == []
    for result in run_ranks(_fit_waiting, 2, strategy, "stop", tmp_path / "told", "loss", 4, 100):
        assert result["step"] == 32
        assert f"at step {STEP} (position {POSITION}) is nan. It comes from rank 1 (samples" in result["raised"]
        assert sick.metrics(tmp_path / "told")[-1]["step"] == 28


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_rewind_where_steps_do_not_wait(expected, tmp_path, strategy):
    without, _ = expected(strategy, 2)
    for result in run_ranks(_fit_waiting, 2, strategy, "rewind", tmp_path, "gradient", 4, 8):
        assert result["raised"] is None
        _assert_same(result["state"], without["state"])
        assert result["left_out"] == [[POSITION, BATCH]]
    assert [line["step"] for line in sick.metrics(tmp_path) if line["kind"] == "training"] == list(
        range(4, NUM_STEPS + 1, 4)
    )


def _fit_waiting(strategy, nonfinite, run_dir, plant, log_every, save_every):
    return sick.fit(strategy, nonfinite, run_dir, plant, log_every=log_every, save_every=save_every, waits=True)


class _Calls(TorchDispatchMode):
    """Counts what waits for the device, and lists the lengths of reductions of float64."""

    def __init__(self):
        super().__init__()
        self.host_reads, self.reductions = 0, []

    def count_list(self, tensor):
        self.host_reads += tensor.is_floating_point()  # positions and indices are on the CPU in any case

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.host_reads += function._opname in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")
        if function.namespace == "c10d":
            outputs = args[0] if isinstance(args[0], list) else [args[0]]
            self.reductions += [tensor.numel() for tensor in outputs if tensor.dtype == torch.float64]
        return function(*args, **(kwargs or {}))


def _count(strategy, waits, grad_accumulation_steps):
    """Host reads and small reductions of one step, after one that warmed up."""
    runtime = scenes.make_runtime(strategy, precision="fp32")
    runtime.guard.reads_every_step = not waits
    # Adam reads its count of steps, which is on the CPU in any case.
    recipe = sick.Sick(runtime, "none", grad_accumulation_steps=grad_accumulation_steps, optimizer=torch.optim.SGD)
    batches = recipe.batches()
    recipe.train_step(next(batches))
    batch = next(batches)
    with _Calls() as calls, pytest.MonkeyPatch.context() as patch:
        to_list = torch.Tensor.tolist  # of many elements it passes no dispatcher
        patch.setattr(torch.Tensor, "tolist", lambda tensor: calls.count_list(tensor) or to_list(tensor))
        recipe.train_step(batch)
    return calls.host_reads, calls.reductions


@pytest.mark.parametrize("grad_accumulation_steps", [1, 2])
@pytest.mark.parametrize(("strategy", "num_sums"), [("ddp", 2), ("fsdp", 9)])
def test_a_good_step_reads_nothing_and_reduces_nothing_more(strategy, num_sums, grad_accumulation_steps):
    """Elsewhere than on the CPU, that is; there norm and loss are read, which costs nothing.

    FSDP's sums hold the norm, and for each of six parameters whether it was used, too.
    """
    assert run_ranks(_count, 2, strategy, True, grad_accumulation_steps) == [(0, [num_sums])] * 2
    assert run_ranks(_count, 2, strategy, False, grad_accumulation_steps) == [(2, [num_sums])] * 2
    assert run_ranks(_count, 1, "ddp", True, grad_accumulation_steps) == [(0, [])]


# -- loops of one's own, and several engines ---------------------------------------------------------------------------


def _own_loop(nonfinite, run_dir):
    runtime = sick.make_runtime("ddp", nonfinite, run_dir)
    recipe = sick.Sick(runtime, "loss")
    told: list[Any] = []
    for step, batch in enumerate(recipe.batches(), 1):
        before = scenes.whole_state(recipe.engine)
        try:
            metrics = recipe.train_step(batch)
        except NonFiniteError as error:
            _assert_same(before, scenes.whole_state(recipe.engine))
            return step, told, str(error)
        told.append(metrics["skipped"])
        runtime.log(step, **metrics)
        if step == NUM_STEPS:
            break
    return step, told, None


def test_a_loop_of_ones_own(tmp_path):
    for step, _, raised in run_ranks(_own_loop, 2, "stop", tmp_path / "stop"):
        assert step == STEP
        assert f"the loss of engine 'engine0' (position {POSITION}) is nan. It comes from rank 1 (samples" in raised
    for step, _, raised in run_ranks(_own_loop, 2, "rewind", tmp_path / "rewind"):
        assert step == STEP and "nonfinite=rewind needs a Trainer: in an own loop use stop or skip" in raised
    for step, told, raised in run_ranks(_own_loop, 2, "skip", tmp_path / "skip"):
        assert (step, raised, told.count(1.0), told[STEP - 1]) == (NUM_STEPS, None, 1, 1.0)
    assert len([line for line in sick.said(tmp_path / "skip") if "The step is skipped" in line]) == 1


def _two_engines(nonfinite):
    """D's gradient is sick on rank 0 in the second of three steps; G has its turn afterwards, through D."""
    runtime = scenes.make_runtime("ddp", nonfinite=nonfinite)
    G = runtime.setup(nn.Linear(3, 5), lambda groups: torch.optim.SGD(groups, lr=0.1), name="G")
    D = runtime.setup(sick.Network(), lambda groups: torch.optim.SGD(groups, lr=0.1), name="D")
    skipped = []
    for step, batch in enumerate(runtime.batches(scenes.data(runtime.dtype), batch_size=BATCH, num_steps=3)):
        D.backward(D(batch.x, step == 1 and runtime.ranks.rank == 0).mean())
        d_result = D.step()
        with D.frozen():
            G.backward(D(G(runtime.randn(batch, 3, name="latent"))).mean())
        skipped.append((d_result.skipped, G.step().skipped))
    return skipped, D.num_updates, G.num_updates


def test_one_of_two_engines_leaves_its_turn_out():
    expected = ([(False, False), (True, False), (False, False)], 2, 3)
    assert run_ranks(_two_engines, 2, "skip") == [expected] * 2
    with pytest.raises(AssertionError, match=r"the gradient of engine 'D' \(position 8\) is not finite"):
        run_ranks(_two_engines, 2, "stop")


# -- as a user runs it -------------------------------------------------------------------------------------------------


def _job(run_dir, ranks, *arguments):
    job = [*TOY, "recipe.fault=not_finite_once", "deterministic=true", "log_every=1", f"run_dir={run_dir}", *arguments]
    return run(job, ranks)


def test_a_job_that_goes_back_ends_as_one_that_leaves_out(tmp_path):
    for policy in ("skip", "rewind"):
        done = _job(tmp_path / policy, 2, f"nonfinite={policy}")
        assert done.returncode == 0, done.stderr
        assert "the loss of engine 'network' at step 13 (position 96) is nan. It comes from rank 0" in done.stdout
    assert "Returns to" in done.stdout and "resumed after step 8" in done.stdout
    states = [newest_tensors(tmp_path / policy) for policy in ("skip", "rewind")]
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    for policy in ("skip", "rewind"):
        lines = [line for line in sick.metrics(tmp_path / policy) if line["kind"] == "training"]
        assert [line["step"] for line in lines] == list(range(1, 25))
        assert [line["step"] for line in lines if line["skipped"]] == [13]


def test_what_was_left_out_stays_so_after_a_resume(tmp_path):
    assert _job(tmp_path, None, "nonfinite=rewind", "recipe.num_steps=20").returncode == 0
    recipe = trainkit.load_recipe(tmp_path, ["deterministic=false"], trust=True)
    trainer = trainkit.Trainer(recipe, resume=tmp_path)
    trainer.restore()
    assert trainer.rewinds.left_out == [[96, 8]]


def test_a_policy_that_there_is_not():
    with pytest.raises(
        ConfigError, match=r"nonfinite='skipp': must be one of stop, skip, rewind\. Did you mean 'skip'"
    ):
        trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), nonfinite="skipp")  # type: ignore[arg-type]
