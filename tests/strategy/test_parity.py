"""A covering part of the table of benchmarks/parity.py: both models, every strategy, ranks and micro-batches."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import parity
from trainkit.testing import run_ranks
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.progressive_gan import losses

ROOT = Path(__file__).parent.parent.parent
SPLITS = ((2, 4), (4, 1))
pytestmark = pytest.mark.slow


def _cells(*strategies):
    """Every model, strategy and split; of these by day every pair of two."""
    return [
        pytest.param(model, strategy, *split, marks=[pytest.mark.nightly] * ((i + j + k) % 2))
        for i, model in enumerate(parity.MODELS)
        for j, strategy in enumerate(strategies)
        for k, split in enumerate(SPLITS)
    ]


@pytest.fixture(scope="module")
def references():
    """The single process, with the whole batch and with the same batch split in four."""
    return {
        (model, precision): parity.Reference(
            model, precision, *(run_ranks(parity.run, 1, model, "single", precision, split)[0] for split in (1, 4))
        )
        for model in parity.MODELS
        for precision in parity.GOALS
    }


def _cell(references, model, strategy, precision, ranks, grad_accumulation_steps, function=parity.run):
    held = run_ranks(function, ranks, model, strategy, precision, grad_accumulation_steps)
    cell = parity.Cell(model, strategy, precision, ranks, grad_accumulation_steps)
    return references[model, precision].measured(cell, held)


def _is_within(cell, weights, gradients):
    """Whether the worst differences are at most these, and the table's own goals; BERT's gradients are not in it."""
    if cell.misses or not cell.weights <= weights:
        return False
    return cell.gradients is None if cell.model == "bert" else cell.gradients <= gradients


@pytest.mark.parametrize(("model", "strategy", "ranks", "grad_accumulation_steps"), _cells("ddp", "fsdp", "hsdp"))
def test_every_strategy_is_one_process(references, model, strategy, ranks, grad_accumulation_steps):
    cell = _cell(references, model, strategy, "fp64", ranks, grad_accumulation_steps)
    assert _is_within(cell, 1e-10, 1e-10), cell


@pytest.mark.parametrize(("model", "strategy", "ranks", "grad_accumulation_steps"), _cells("zero1", "zero2", "zero3"))
def test_zero_is_one_process(references, model, strategy, ranks, grad_accumulation_steps):
    cell = _cell(references, model, strategy, "fp32", ranks, grad_accumulation_steps)
    assert _is_within(cell, 5e-6, 5e-5), cell


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize("model", parity.MODELS)
def test_in_fp32_too(references, model, strategy):
    cell = _cell(references, model, strategy, "fp32", 2, 4)
    assert _is_within(cell, 5e-6, 5e-5), cell


@pytest.mark.parametrize("model", parity.MODELS)
def test_rounding_alone_is_within_the_goals(references, model):
    """Otherwise a figure would say nothing. It is not zero in fp32: the split is another order of sums."""
    for precision in parity.GOALS:
        assert not references[model, precision].rounding().misses
    assert references[model, "fp32"].rounding().weights > 0


def _mean_of_means(*arguments):
    """BERT as it is when shares count alike, however many masked tokens they have."""

    def unweighted(logits, labels):
        return masked_loss(logits, labels)[0], 1

    with mock.patch("benchmarks.parity.masked_loss", unweighted):
        return parity.run(*arguments)


def _penalty_that_is_not_learnt(*arguments):
    penalty = losses.gradient_penalty
    with mock.patch.object(losses, "gradient_penalty", lambda *given: penalty(*given).detach()):
        return parity.run(*arguments)


def test_shares_that_count_alike_are_seen(references):
    cell = _cell(references, "bert", "ddp", "fp32", 2, 4, _mean_of_means)
    assert cell.misses
    assert cell.weights > 20 * 5e-6


def test_a_gradient_that_lacks_a_term_is_seen(references):
    cell = _cell(references, "gan", "ddp", "fp32", 2, 1, _penalty_that_is_not_learnt)
    assert cell.misses
    assert cell.weights > 20 * 5e-6
    assert cell.gradients > 20 * 5e-5


def test_any_rank_and_any_tensor_counts(references):
    """A figure is the worst of all ranks, and of all tensors; one that is not a number misses its goal."""
    reference = references["gan", "fp64"]
    weights, gradients = reference.whole
    cell = parity.Cell("gan", "ddp", "fp64", 2, 1)
    assert not reference.measured(cell, [reference.whole, reference.whole]).misses
    assert not reference.measured(cell, [reference.whole, ({}, {})]).misses
    for name in ("D.blocks.4.out.bias", "G.blocks.4.spread.weight"):
        apart = {**weights, name: weights[name] + 1e-6}
        assert reference.measured(cell, [reference.whole, (apart, gradients)]).weights > 1e-8
        path = f"{name}/momentum_buffer"
        wrong = {**gradients, path: gradients[path] * (1 + 1e-6)}
        assert reference.measured(cell, [reference.whole, (weights, wrong)]).gradients == pytest.approx(1e-6, rel=1e-3)
        broken = {**weights, name: torch.full_like(weights[name], math.nan)}
        assert reference.measured(cell, [(broken, gradients), reference.whole]).misses
    with pytest.raises(RuntimeError, match="different tensors"):
        reference.measured(cell, [({}, {}), reference.whole])


def test_only_what_cannot_be_may_be_refused():
    refused = parity.Cell("bert", "zero1", "fp64", 2, 1, error="ConfigError: precision=fp64 ...")
    assert not refused.misses
    assert replace(refused, precision="fp32").misses
    assert replace(refused, error="RuntimeError: shape").misses
    assert replace(refused, error=None, weights=0.0).misses
    assert parity.Cell("bert", "ddp", "fp64", 2, 1).misses


def test_the_script_from_any_folder(tmp_path):
    """What is refused is in its table with the error that a user sees."""
    options = ["--model", "bert", "--strategies", "single", "zero1", "--ranks", "2", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "parity.py"), *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert "] ConfigError: strategy=single runs one process, and this job has 2" in done.stdout
    assert "] ConfigError: precision=fp64 with strategy=zero1" in done.stdout
    (path,) = tmp_path.glob("parity_*.json")
    for result in json.loads(path.read_text())["results"]:
        refused = {cell["strategy"] for cell in result["cells"] if cell["error"] is not None}
        assert refused == ({"single", "zero1"} if result["precision"] == "fp64" else {"single"})
        assert len(result["cells"]) == 4
