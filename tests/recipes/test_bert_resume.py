"""BERT, killed in the middle of an epoch and resumed, against the run that was never killed."""

import random

import pytest

from tests.training.test_resume import assert_killed_equals_whole

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_in_mid_epoch_and_resumed_gives_the_same_bits(tmp_path, ranks):
    draw = random.Random(0)
    paragraphs = [" ".join(draw.choices(WORDS, k=draw.randrange(5, 40))) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(paragraphs))
    arguments = [
        "recipe=bert",
        f"data.path={tmp_path / 'text.txt'}",
        "data.vocab_size=100",
        "data.sequence_length=32",
        "recipe.model.hidden_size=32",
        "recipe.model.feed_forward_size=64",
        "recipe.model.num_layers=2",
        "recipe.model.dropout=0.1",
        "recipe.model.attention_dropout=0.1",
        "recipe.batch_size=24",  # an epoch is no whole number of batches
        "recipe.num_steps=90",
        "schedule.warmup=10",
        "evaluate_every=null",
        "save_every=15",
        "log_every=1",
    ]
    assert_killed_equals_whole(tmp_path, arguments, ranks, kill_from_step=40)
