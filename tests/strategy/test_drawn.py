"""Runs that are drawn at random, against plain PyTorch.

A run is a small module, optimizer, strategy, precision, accumulation, number of ranks and a pattern of use. The seed is
20261128: a failure comes again. 40 draws; `make test-all`, which sets TRAINKIT_DRAWS=300, makes 300.
"""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.strategy import drawn as runs
from trainkit.testing import run_ranks

pytestmark = pytest.mark.slow

ZERO = ("zero1", "zero2", "zero3")
SHARDED = ("fsdp", "hsdp", *ZERO)
# Largest difference to plain PyTorch, as a share of the longest way that a weight has gone. In bf16 both round the same
# numbers in the same places, and differ as fp32 does (6e-6 was the most seen), but for a number that lies so near to
# the middle of two that it goes to the other one: 2**-8 of it, at most once in each step.
TOLERANCES = {"fp64": 1e-11, "fp32": 2e-4, "bf16": runs.NUM_STEPS * 2**-8}


@st.composite
def cases(draw):
    strategy = draw(st.sampled_from(("single", "ddp", *SHARDED)))
    ranks = 1 if strategy == "single" else draw(st.sampled_from((1, 2, 4)))
    precisions = ("fp32", "bf16") if strategy in ZERO else ("fp64", "fp32", "bf16")
    return runs.Drawn(
        module=draw(st.sampled_from(runs.MODULES)),
        optimizer=draw(st.sampled_from(tuple(runs.OPTIMIZERS))),
        strategy=strategy,
        precision=draw(st.sampled_from(precisions)),
        pattern=draw(st.sampled_from(runs.PATTERNS)),
        ranks=ranks,
        grad_accumulation_steps=draw(st.integers(1, 3)),
        batch_size=draw(st.integers(4, 9)),
        max_grad_norm=draw(st.sampled_from((None, 0.3))),
    )


def refusal(case):
    """What the one line must say where a run cannot be right; None where it must be."""
    is_switched = case.pattern in ("thawed", "frozen")
    if case.strategy in SHARDED:
        if case.module == "scalar":
            return rf"ConfigError: strategy={case.strategy} cannot shard 'gain', which has no dimension"
        if case.optimizer == "Adafactor":
            return rf"ConfigError: strategy={case.strategy} gives an optimizer shards .* and Adafactor does not update"
    if case.strategy in ZERO:
        if case.batch_size < case.ranks * case.grad_accumulation_steps:
            return (
                rf"UsageError: a batch of {case.batch_size} samples on {case.ranks} ranks with grad_accumulation_steps="
            )
        if is_switched:
            return r"UsageError: requires_grad of 'body\.0\.weight' was switched after setup, and DeepSpeed"
        if case.pattern != "every":
            return r"UsageError: the loss of a micro-batch does not depend on 2 of \d+ parameters, .* DeepSpeed"
    if case.strategy == "ddp" and case.ranks > 1 and is_switched:
        return r"UsageError: requires_grad of 'body\.0\.weight' was switched after setup, and DDP"
    return None


@pytest.mark.timeout(3600)
@seed(20261128)
@settings(
    max_examples=int(os.environ.get("TRAINKIT_DRAWS", 40)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],  # a run is small as it is drawn
)
@given(case=cases())
def test_a_drawn_run_is_plain_pytorch_or_one_line(case):
    outcomes = run_ranks(runs.train, case.ranks, case)
    expected = refusal(case)
    assert {kind for kind, _ in outcomes} == {"weights" if expected is None else "refused"}, outcomes
    if expected is not None:
        assert all(re.match(expected, text) for _, text in outcomes), outcomes
        return
    weights, start, oracle = outcomes[0][1], runs.Heads(case.module).state_dict(), runs.train_plainly(case)
    assert set(oracle) <= set(weights)
    far = max(float((weights[name] - end).abs().max()) for name, end in oracle.items())
    way = max(float((end - start[name]).abs().max()) for name, end in oracle.items())
    assert far <= TOLERANCES[case.precision] * way
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
