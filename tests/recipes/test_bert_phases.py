"""Phases of one run: other sequences, batches and rates from a position on, and nothing else changes."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.jobs import newest_tensors, run, run_until
from tests.present import present
from tests.recipes.test_bert_pretrain import distance
from tests.training.test_resume import _steps as steps_of
from trainkit import Runtime, Schedule, Tracker, Trainer, checkpoint
from trainkit.data import Datasets, Text
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.bert.length_warmup import LengthWarmup
from trainkit_recipes.bert.model import TINY
from trainkit_recipes.bert.phases import BatchSizeWarmup, Phase, Plan
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"]
MODEL = replace(TINY, hidden_size=32, num_layers=1, feed_forward_size=64)
PHASES = {
    "short": Phase(num_steps=4, sequence_length=16, batch_size=12),
    "long": Phase(num_steps=3, sequence_length=40, batch_size=8, lr=4e-3, warmup=1),
}

LENGTHS = LengthWarmup(first=8, num_samples=30, num_stages=2)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n\n".join(" ".join(draw.choices(WORDS, k=draw.randrange(5, 60))) for _ in range(300)))
    return path


def make(path: Path, run_dir: Path | None = None, precision: Any = "fp64", **settings) -> MaskedLanguageModelling:
    runtime = Runtime(
        precision=precision, seed=3, deterministic=run_dir is not None, run_dir=run_dir, tracker=Tracker(), device="cpu"
    )
    return MaskedLanguageModelling(
        runtime,
        model=MODEL,
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.01),
        **{
            "data": Text(path=path, vocab_size=120, sequence_length=24, held_out=0.1),
            "schedule": Schedule(warmup=2),
            "phases": PHASES,
            "evaluation_batch_size": 64,
            **settings,
        },
    )


def train(path: Path, **settings) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights at the end, and held-out metrics at the end of each phase."""
    recipe, metrics = make(path, **settings), []
    for batch in recipe.batches():
        recipe.train_step(batch)
        if recipe.runtime.position in [stage.end for stage in recipe.plan.stages]:
            metrics.append(recipe.evaluate())
        if recipe.runtime.position >= recipe.num_samples:
            break
    recipe.runtime.close()
    return {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}, metrics


@pytest.mark.parametrize("settings", [{}, {"phases": None, "num_steps": 6, "batch_size": 16, "batch_size_warmup":
                                           BatchSizeWarmup(first=8, num_samples=40, num_stages=2)},
                                      {"phases": None, "num_steps": 7, "batch_size": 8, "length_warmup": LENGTHS}],
                         ids=["phases", "batch-size warm-up", "length warm-up"])  # fmt: skip
def test_phases_do_not_depend_on_the_split(path, settings):
    alone, metrics = train(path, **settings)
    for ranks, steps in ((2, 3), (4, 1)):
        for weights, theirs in run_ranks(partial(train, path, grad_accumulation_steps=steps, **settings), ranks):
            assert distance(weights, alone) < 1e-10
            assert theirs == [pytest.approx(one, rel=1e-10) for one in metrics]


def fit(path: Path, run_dir: Path, resume: str = "auto") -> dict[str, torch.Tensor]:
    recipe = make(path, run_dir, precision="fp32")
    Trainer(recipe, save_every=1, evaluate_every=2, keep_last=9, resume=resume).fit()
    return {name: p.detach().clone() for name, p in recipe.model.module.named_parameters()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumed_in_each_phase_and_between_gives_the_same_bits(path, tmp_path, ranks):
    whole = run_ranks(partial(fit, path, tmp_path / "whole"), ranks)[0]
    steps = checkpoint.step_directories(tmp_path / "whole" / "checkpoints")
    assert len(steps) == 7
    expected = newest_tensors(tmp_path / "whole")
    for number in (2, 4, 5):  # in the first phase, on the boundary, in the second phase
        again = tmp_path / f"from {number}"
        found = run_ranks(partial(fit, path, again, str(steps[number - 1])), ranks)[0]
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        tensors = newest_tensors(again)
        assert all(torch.equal(tensors[name], expected[name]) for name in expected), "moments of the optimizer too"


def reached(run_dir: Path, step: int) -> bool:
    steps = steps_of(run_dir)
    return bool(steps) and steps[-1] >= step


@pytest.mark.slow
def test_killed_in_each_phase_gives_the_same_bits(path, tmp_path):
    phases = "{a: {num_steps: 30, sequence_length: 16}, b: {num_steps: 30, sequence_length: 40, batch_size: 16}}"
    arguments = [
        "recipe=bert", f"data.path={path}", "data.vocab_size=120", "recipe.model.hidden_size=32",
        "recipe.model.feed_forward_size=64", "recipe.model.dropout=0.1", "recipe.batch_size=24",
        f"recipe.phases={phases}", "schedule.warmup=5", "evaluate_every=null", "save_every=15", "log_every=1",
        "deterministic=true", "tracking=none",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished = run([*arguments, f"run_dir={whole}"], 2)
    assert finished.returncode == 0, finished.stderr
    assert "training on a: batches of 24 samples of 16 tokens, from position 0 to 720" in finished.stdout
    for step in (20, 35):  # the second is resumed on the boundary, unless its next checkpoint was saved already
        assert run_until(
            partial(reached, killed, step),
            [*arguments, f"run_dir={killed}"],
            2,
        ), "the job ended before it could be killed"
    resumed = run([*arguments, f"run_dir={killed}"], 2)
    assert resumed.returncode == 0 and "resumed after step" in resumed.stdout, resumed.stderr
    expected, found = newest_tensors(whole), newest_tensors(killed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert steps_of(killed) == steps_of(whole) == [*range(1, 61)]


def test_a_batch_is_a_function_of_its_position(path):
    recipe, batches = make(path), []
    for batch in recipe.batches():
        batches.append(batch)
        if len(batches) == 9:
            break
    assert [(b.position, b.size, b.tokens.shape[1]) for b in batches] == [
        (0, 12, 16), (12, 12, 16), (24, 12, 16), (36, 12, 16), (48, 8, 40), (56, 8, 40), (64, 8, 40),
        (72, 8, 40), (80, 8, 40),
    ]  # fmt: skip
    for number in (1, 3, 4, 6):
        again = next(recipe.batches(batches[number].position))
        assert torch.equal(again.tokens, batches[number].tokens)
        draws = [recipe.runtime.rand(batch, 3, name="mask") for batch in (again, batches[number])]
        assert torch.equal(*draws)
    assert recipe.num_samples == 72 and recipe.length_key == "recipe.phases.long.num_steps"
    assert next(recipe.dearest_batches()).position == 48
    (first, cheap), (last, dear) = recipe.costs()
    assert (first, last) == (48, 72) and dear > 2.5 * cheap
    short, long = (recipe._datasets[length].train for length in (16, 40))
    assert recipe.epochs_at(56) == pytest.approx(48 / len(short) + 8 / len(long))
    recipe.runtime.close()


def test_the_schedule_and_the_rate_restart(path):
    recipe = make(path)
    rates = []
    for batch in recipe.batches():
        metrics = recipe.train_step(batch)
        rates.append(float(metrics["lr"]))
        assert float(metrics["phase"]) == (1 if batch.position < 48 else 2)
        if recipe.runtime.position >= 72:
            break
    first, second = Schedule(warmup=2, total=4), Schedule(warmup=1, total=3)
    expected = [1e-2 * first(step, 1) for step in range(4)] + [4e-3 * second(step, 1) for step in range(3)]
    assert rates == pytest.approx(expected, rel=1e-12)
    recipe.runtime.close()


def test_an_evaluation_is_on_windows_of_the_phase(path):
    recipe = make(path)
    lengths, baselines = [], []
    for position in (0, 48, 49):  # at 48 only the first phase was trained
        recipe.runtime.stream.clock.position = position
        lengths.append(next(recipe.masked_held_out())[0].tokens.shape[1])
        baselines.append(recipe.baselines()["held_out_accuracy"])
    assert lengths == [16, 16, 40] and recipe.best_metric is None
    assert baselines[0] == baselines[1] != baselines[2]
    assert baselines[0].keys() == baselines[2].keys()
    known = present(MaskedLanguageModelling.restored_arguments(recipe.state_dict(), None))
    assert "num_steps" not in known
    loaded = make(path, **{**known, "evaluation_batch_size": 2})
    assert loaded.fill("alpha [MASK]").predictions
    for made in (recipe, loaded):
        made.runtime.close()


def test_smaller_batches_come_first_and_rates_follow_samples():
    warmup = BatchSizeWarmup(first=8, num_samples=100, num_stages=3)
    plan = Plan(None, num_steps=20, batch_size=32, warmup=warmup, schedule=Schedule(warmup=4, total=20))
    assert [(s.batch_size, s.start, s.end) for s in plan.stages] == [
        (8, 0, 40), (16, 40, 88), (24, 88, 136), (32, 136, 648),
    ]  # fmt: skip
    factor, by_samples = plan.schedule(1e-3), Schedule(warmup=128, total=640, unit="samples")
    for position, size in ((0, 8), (40, 16), (120, 24), (136, 32), (616, 32)):
        assert present(factor)(position, size) == pytest.approx(by_samples(position, size), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 5}, r"recipe\.num_steps=5 and recipe\.phases \(short, long\) are two lengths: .*num_steps=null"),
        ({"num_epochs": 2}, r"recipe\.num_epochs=2 and recipe\.phases"),
        ({"phases": {}}, r"recipe\.phases={} has no phase"),
        ({"phases": {"a": Phase(num_steps=9, sequence_length=4096)}}, r"sequence_length=4096 is more than recipe\.mo"),
        ({"phases": {"a": Phase(num_steps=2, warmup=3)}}, r"recipe\.phases\.a: schedule\.total=2: .* total above .*=3"),
        ({"phases": {"a": Phase(num_steps=2, warmup=1)}, "schedule": None}, r"recipe\.phases\.a\.warmup=1: .* has non"),
        ({"batch_size_warmup": BatchSizeWarmup(first=12, num_samples=9)}, r"first=12: must be below .* size, 12"),
        ({"batch_size_warmup": BatchSizeWarmup(first=2, num_samples=48)}, r"num_samples=48 leaves no batch of the ful"),
        ({"length_warmup": LengthWarmup(first=16, num_samples=9)}, r"warmup\.first=16: must be below .* 16 tokens"),
        ({"length_warmup": LengthWarmup(first=8, num_samples=48)}, r"warmup\.num_samples=48 leaves no batch of the"),
        ({"length_warmup": LENGTHS, "batch_size_warmup": BatchSizeWarmup(first=2, num_samples=4)}, "both given"),
        ({"length_warmup": LENGTHS, "phases": None, "num_epochs": 1}, r"num_epochs=1 with recipe\.length_warmup"),
        ({"length_warmup": LENGTHS, "phases": None, "data": Datasets(train=[1], held_out=[1])}, "have one length only"),
        ({"data": Datasets(train=[1], held_out=[1])}, r"have a sequence_length, and Datasets has one length"),
    ],
)  # fmt: skip
def test_phases_that_cannot_be_are_refused(path, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(path, **settings)


def test_values_out_of_range_and_minutes_are_refused(path):
    with pytest.raises(ConfigError, match=r"recipe\.phases: num_steps=0: must be 1 or more"):
        Phase(num_steps=0)
    with pytest.raises(ConfigError, match=r"recipe\.phases: lr=0: must be a number above 0"):
        Phase(num_steps=1, lr=0)
    with pytest.raises(ConfigError, match=r"recipe\.batch_size_warmup\.first=0"):
        BatchSizeWarmup(first=0, num_samples=9)
    with pytest.raises(ConfigError, match=r"recipe\.length_warmup\.first=13: must be a multiple of 8; .*first=16"):
        LengthWarmup(first=13, num_samples=9)
    recipe = make(path)
    with pytest.raises(ConfigError, match=r"minutes=5 compresses one learning-rate schedule, and each phase"):
        Trainer(recipe, minutes=5)
    recipe.runtime.close()


def too_small(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        make(path, phases={**PHASES, "long": replace(PHASES["long"], batch_size=1)})
    return str(error.value)


def test_a_later_phase_too_small_for_the_ranks_is_refused(path):
    for message in run_ranks(partial(too_small, path), 2):
        assert message.startswith("recipe.phases.long.batch_size=1: 2 ranks with strategy=ddp")


WARM: dict[str, Any] = {"phases": None, "num_steps": 7, "batch_size": 8, "length_warmup": LENGTHS}


def shapes(path: Path, start: int = 0) -> list[tuple[int, list[int], float]]:
    """Position, shape and learning rate of each batch."""
    recipe = make(path, **WARM)
    rate, found = recipe.plan.schedule(1e-2), []
    for batch in recipe.batches(start):
        found.append((batch.position, [*batch.tokens.shape], present(rate)(batch.position, batch.size)))
        if batch.position + batch.size >= recipe.num_samples:
            break
    recipe.runtime.close()
    return found


def test_sequences_get_longer_by_position_and_nothing_restarts(path):
    whole = shapes(path)
    assert [shape for _, shape, _ in whole] == [[8, 8]] * 2 + [[8, 16]] * 2 + [[8, 24]] * 3
    assert [position for position, _, _ in whole] == [*range(0, 56, 8)]
    plain = Schedule(warmup=2).until(7, 8)
    assert [rate for *_, rate in whole] == [plain(position, 8) for position, *_ in whole]
    for start in (8, 16, 32):
        assert shapes(path, start) == whole[start // 8 :]


def test_a_warm_up_of_lengths_measures_on_the_full_length(path):
    recipe = make(path, **WARM)
    next(iter(recipe.batches()))
    assert recipe._evaluated.datasets.held_out.sequence_length == 24
    assert recipe.best_metric is not None and recipe.datasets.train.sequence_length == 24
    assert [cost for _, cost in recipe.costs()] == sorted(cost for _, cost in recipe.costs())
    recipe.runtime.close()


def test_a_warm_up_of_lengths_is_restored_without_data(path):
    recipe = make(path, **{**WARM, "data": Datasets(train=(), held_out=(), tokenizer=make(path).tokenizer)})
    assert recipe.num_samples == 56
    recipe.runtime.close()
