"""What only DeepSpeed has: offload to the CPU, a configuration of its own, and flat slices behind the names."""

import pytest
import torch

import trainkit
from tests.jobs import TOY, run
from tests.strategy import scenes
from trainkit import load_recipe
from trainkit.errors import NonFiniteError
from trainkit.strategy.deepspeed import ZeroBackend
from trainkit.testing import run_ranks

KINDS = {"zero1": trainkit.Zero1, "zero2": trainkit.Zero2, "zero3": trainkit.Zero3}


def _train(strategy, arguments, grad_accumulation_steps=2):
    kind = KINDS[strategy](**arguments)
    runtime = trainkit.Runtime(strategy=kind, device="cpu", tracker=trainkit.Tracker())
    module = scenes.network()
    engine = runtime.setup(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        max_grad_norm=0.5,
        ema_decay=0.9,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=scenes.BATCH, num_steps=scenes.NUM_STEPS):
        for micro in engine.micro_batches(batch):
            loss, weight = scenes.loss_of("weighted", engine, engine.input_gradient, micro.x, micro.y, micro.num)
            engine.backward(loss, weight=weight)
        engine.step()
    state = scenes.whole_state(engine)
    return scenes.flat(state["module"]), scenes.flat(state["average"])


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        ("zero1", {"offload_optimizer": True}),
        ("zero2", {"offload_optimizer": True}),
        ("zero3", {"offload_optimizer": True, "keep_below": 4}),
        ("zero3", {"offload_optimizer": True, "offload_parameters": True, "keep_below": 4}),
        ("zero3", {"keep_below": 20}),  # some parameters whole, others spread
        ("zero2", {"bucket_cap_mb": 0.0005}),
        ("zero2", {"config": {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": False}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_offload_and_messages_of_any_size_change_nothing(strategy, arguments, world_size):
    expected = scenes.train_plainly("weighted")[:2]
    for result in run_ranks(_train, world_size, strategy, arguments):
        for ours, reference in zip(result, expected, strict=True):
            assert scenes.error(ours, reference) < scenes.tolerance(strategy)


def _passed_on():
    kind = trainkit.Zero2(config={"zero_optimization": {"overlap_comm": True}})
    runtime = trainkit.Runtime(strategy=kind, device="cpu", tracker=trainkit.Tracker())
    engine = runtime.setup(scenes.network(), torch.optim.SGD)
    assert isinstance(engine._backend, ZeroBackend)
    return engine._backend.engine.zero_overlap_comm()


def test_further_keys_reach_deepspeed():
    assert run_ranks(_passed_on, 2) == [True, True]


def _ranges(strategy):
    """name -> (start, number of elements, all elements) of what this rank holds of a parameter and of its average."""
    runtime = scenes.make_runtime(strategy)
    engine = runtime.setup(scenes.network(), lambda groups: torch.optim.Adam(groups), ema_decay=0.9)
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=16, num_steps=1):
        engine.backward((engine(batch.x) ** 2).mean())
        engine.step()
    weights, averages = engine.state.weights(), engine.average.shards()
    state = {name: entry["exp_avg"] for name, entry in engine._backend.tensors.optimizer_state().items()}
    assert weights.keys() == averages.keys() == state.keys()
    described = []
    for shards in (weights, averages, state):
        described.append({name: (s.start, s.local.numel(), s.shape.numel()) for name, s in shards.items()})
    assert described[0] == described[1] == described[2]
    return described[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("strategy", scenes.SHARDED)
def test_slices_tile_every_parameter_once(strategy, world_size):
    """A rank holds a range of each parameter, its average and its optimizer state; together they are the whole."""
    ranks = run_ranks(_ranges, world_size, strategy)
    num_copies = 2 if strategy == "hsdp" and world_size == 4 else 1
    for name, (_, _, numel) in ranks[0].items():
        held = torch.zeros(numel, dtype=torch.int64)
        for ranges in ranks:
            start, num, _ = ranges[name]
            held[start : start + num] += 1
        assert held.tolist() == [num_copies] * numel, name


def _not_finite():
    runtime = trainkit.Runtime(strategy="zero2", device="cpu", tracker=trainkit.Tracker())
    engine = runtime.setup(scenes.network(), torch.optim.SGD)
    batch = next(runtime.batches(scenes.data(runtime.dtype), batch_size=16))
    engine.backward(engine(batch.x).mean() * (float("inf") if runtime.ranks.rank else 1.0))
    with pytest.raises(NonFiniteError, match=r"the loss .* is -?inf\. It comes from rank 1 .*lower optimizer\.lr"):
        engine.step()
    return True


def test_a_loss_that_is_not_finite_is_not_passed_over():
    assert run_ranks(_not_finite, 2) == [True, True]


def test_one_process_without_a_launcher(tmp_path):
    done = run([*TOY, "strategy=zero3", "strategy.offload_optimizer=true", f"run_dir={tmp_path / 'run'}"])
    assert done.returncode == 0, done.stderr
    for strategy in ("zero2", "ddp"):
        recipe = load_recipe(tmp_path / "run", [f"strategy={strategy}"], trust=True)
        found = recipe.evaluate()
        recipe.runtime.close()
        assert f"held_out_loss {found['held_out_loss']:.4g}" in done.stdout


def _one_after_another():
    results = []
    for _ in range(2):
        results.append(scenes.train("zero2", 1, "weighted")[0].tolist())
        torch.distributed.destroy_process_group()
    return results


def test_a_second_runtime_has_groups_of_its_own():
    first, second = run_ranks(_one_after_another, 1)[0]
    assert first == second
