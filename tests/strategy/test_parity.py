"""A covering part of the table of benchmarks/parity.py: both models, every strategy, ranks and micro-batches."""

import pytest

from benchmarks import parity
from tests.distributed import run_ranks

SPLITS = ((2, 4), (4, 1))


@pytest.fixture(scope="module")
def references():
    """The single process, with the whole batch and with the same batch split in four."""
    return {
        (model, precision): parity.Reference(
            model, precision, *(run_ranks(parity.run, 1, model, "single", precision, split)[0] for split in (1, 4))
        )
        for model in parity.MODELS
        for precision in ("fp64", "fp32")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "accumulation"), SPLITS)
@pytest.mark.parametrize("strategy", parity.STRATEGIES[1:])
@pytest.mark.parametrize("model", parity.MODELS)
def test_every_strategy_is_one_process(references, model, strategy, ranks, accumulation):
    precision = "fp32" if strategy.startswith("zero") else "fp64"
    reference = references[model, precision]
    for result in run_ranks(parity.run, ranks, model, strategy, precision, accumulation):
        cell = reference.measured(parity.Cell(model, strategy, precision, ranks, accumulation), result)
        assert cell.weights is not None
        assert cell.weights < parity.GOALS[precision]
        if model == "gan":
            assert cell.first_gradients is not None
            assert cell.first_gradients < parity.GOALS["first gradients"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize("model", parity.MODELS)
def test_in_fp32_too(references, model, strategy):
    reference = references[model, "fp32"]
    result = run_ranks(parity.run, 2, model, strategy, "fp32", 4)[0]
    cell = reference.measured(parity.Cell(model, strategy, "fp32", 2, 4), result)
    assert cell.weights is not None
    assert cell.weights < parity.GOALS["fp32"]


@pytest.mark.slow
def test_the_yardstick_tells_a_wrong_gradient(references):
    """One rank's share alone, as DDP leaves a penalty, is far beyond every goal."""
    whole, split = references["gan", "fp32"].whole, references["gan", "fp32"].split
    wrong = {name: tensor * (1 + 1e-3) for name, tensor in whole[1].items()}
    cell = references["gan", "fp32"].measured(parity.Cell("gan", "ddp", "fp32", 2, 1), (split[0], wrong))
    assert parity.misses([cell]) == [cell]


@pytest.mark.slow
def test_few_gradients_are_left_out(references):
    """In a critic that knows nothing yet, the terms of real and of fake images nearly cancel in some."""
    assert references["gan", "fp64"].left_out == {}
    left_out = references["gan", "fp32"].left_out
    assert len(left_out) <= 3 < len(references["gan", "fp32"].whole[1]) / 4
    assert all(name.startswith("D.") for name in left_out)
