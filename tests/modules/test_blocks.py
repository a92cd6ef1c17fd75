"""Blocks that are compiled, or computed twice: the same results, names and errors."""

import copy
import warnings

import pytest
import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.bert.model import Architecture, Layer, MaskedLanguageModel

SMALL = Architecture(
    hidden_size=32, num_layers=3, num_heads=2, feed_forward_size=64, max_length=16, dropout=0.1, attention_dropout=0.1
)


def _loss(engine, tokens):
    return nn.functional.cross_entropy(engine(tokens).flatten(0, 1).float(), tokens.flatten())


def _train(strategy, architecture=SMALL, **kwargs):
    """Losses, checkpoint keys, and the bytes that the graph of the last loss held for its backward pass."""
    runtime = scenes.make_runtime(strategy, precision="fp32", **kwargs)
    module = MaskedLanguageModel(architecture, 64)
    engine = runtime.setup(module, lambda groups: torch.optim.AdamW(groups), blocks=(Layer,), grad_accumulation_steps=2)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for batch in runtime.batches(torch.randint(64, (64, 16), generator=generator), batch_size=16, num_steps=4):
        for micro in engine.micro_batches(batch):
            first = _loss(engine, micro.data)
            # A second forward before the backward of the first: each has its own dropout masks.
            engine.backward(first + _loss(engine, micro.data.flip(1)))
        losses.append(float(engine.step().loss))
    return losses, sorted(scenes.whole_state(engine)["module"])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_checkpointed_activations_change_nothing(strategy, world_size):
    (losses, keys), *_ = run_ranks(_train, world_size, strategy)
    (with_less, same_keys), *_ = run_ranks(_checkpointed, world_size, strategy)
    assert with_less == losses
    assert same_keys == keys


def _checkpointed(strategy):
    return _train(strategy, activation_checkpointing=["Layer"])


def _saved_bytes(**kwargs):
    runtime = scenes.make_runtime("ddp", precision="fp32", **kwargs)
    engine = runtime.setup(MaskedLanguageModel(SMALL, 64), torch.optim.SGD, blocks=(Layer,))
    storages = {}
    batch = next(runtime.batches(torch.randint(64, (64, 16)), batch_size=32))

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(engine, batch.data)
        num_bytes = sum(storages.values())
    engine.backward(loss)
    return num_bytes


def test_checkpointed_activations_take_less_memory():
    """Counted from what autograd keeps of a forward pass."""
    whole = run_ranks(_saved_bytes, 1)[0]
    less = run_ranks(_saved_with_checkpoints, 1)[0]
    assert less < whole / 2


def _saved_with_checkpoints():
    return _saved_bytes(activation_checkpointing=["Layer"])


def _penalised(strategy, **kwargs):
    runtime = scenes.make_runtime(strategy, **kwargs)
    module = scenes.network()
    engine = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1))
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=16, num_steps=3):
        loss, weight = scenes.loss_of("penalised", engine, engine.input_gradient, batch.x, batch.y, batch.num)
        engine.backward(loss, weight=weight)
        engine.step()
    return scenes.flat(scenes.whole_state(engine)["module"])


def _penalised_twice_computed(strategy):
    return _penalised(strategy, activation_checkpointing=["Sequential"])


def _penalised_and_compiled(strategy):
    return _penalised(strategy, compile=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_penalty_through_checkpointed_parts(strategy):
    plain = run_ranks(_penalised, 2, strategy)
    for ours, expected in zip(run_ranks(_penalised_twice_computed, 2, strategy), plain, strict=True):
        assert scenes.error(ours, expected) < scenes.tolerance(strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_compiled_network_takes_a_penalty(strategy):
    plain = run_ranks(_penalised, 2, strategy)
    for ours, expected in zip(run_ranks(_penalised_and_compiled, 2, strategy), plain, strict=True):
        assert scenes.error(ours, expected) < scenes.tolerance(strategy)


def _compiled(strategy):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trained = _train(strategy, compile=True)
    return trained, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "world_size"),
    [pytest.param("single", 1, marks=pytest.mark.nightly), ("ddp", 2), ("fsdp", 2), ("zero2", 2), ("zero3", 2)],
)
def test_compiled_blocks_change_nothing_but_rounding(strategy, world_size):
    (losses, keys), *_ = run_ranks(_train, world_size, strategy)
    ((compiled, same_keys), num_compiled), *_ = run_ranks(_compiled, world_size, strategy, timeout_s=400.0)
    assert num_compiled > 0
    assert same_keys == keys
    assert compiled == pytest.approx(losses, rel=1e-5)


def test_names_copies_and_classes_stay():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), activation_checkpointing=["Layer"])
    module = MaskedLanguageModel(SMALL, 64).eval()
    tokens = torch.randint(64, (2, 16))
    before, keys = module(tokens), list(module.state_dict())
    runtime.setup(module, torch.optim.SGD, blocks=(Layer,))
    assert list(module.state_dict()) == keys
    assert all(isinstance(layer, Layer) for layer in module.encoder.layers)
    assert {type(layer).__name__ for layer in module.encoder.layers} == {"Layer"}
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(module(tokens), before)
    assert not torch.equal(twin(tokens), before), "the copy computes with the original's parameters"


def test_a_class_that_no_module_has_is_named():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), activation_checkpointing=["Laier"])
    runtime.setup(MaskedLanguageModel(SMALL, 64), torch.optim.SGD)
    with pytest.raises(ConfigError, match=r"activation_checkpointing=Laier: no module .* Did you mean 'Layer'"):
        runtime.run_log.start()


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="compile=true: there is no C"):
        trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), compile=True)


def _outputs():
    runtime = scenes.make_runtime("fsdp")
    engine = runtime.setup(nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))), torch.optim.SGD)
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=8, num_steps=1):
        with warnings.catch_warnings(record=True) as told:
            output = engine(batch.x)
        assert not told
        output += 1.0
        engine.backward((output**2).mean())
        engine.step()
    return scenes.flat(scenes.whole_state(engine)["module"])


def test_an_output_that_is_a_view_may_be_changed_in_place():
    """FSDP loses its hooks then, and gradients with them, if it is handed out as it is."""
    expected = run_ranks(_outputs_of_ddp, 2)[0]
    assert all(scenes.error(weights, expected) < 1e-12 for weights in run_ranks(_outputs, 2))


def _outputs_of_ddp():
    runtime = scenes.make_runtime("ddp")
    engine = runtime.setup(nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3))), torch.optim.SGD)
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=8, num_steps=1):
        engine.backward(((engine(batch.x) + 1.0) ** 2).mean())
        engine.step()
    return scenes.flat(scenes.whole_state(engine)["module"])
