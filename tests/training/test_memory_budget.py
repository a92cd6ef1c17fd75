"""memory.budget: what makes a job fit is chosen in order, is the same on all ranks, and changes no result."""

import json
import random
import re

import pytest
import torch

from tests.present import present
from tests.recipes.finetuning import OTHER
from trainkit import checkpoint
from trainkit.config import compose
from trainkit.errors import ConfigError
from trainkit.job import evaluate, train
from trainkit.testing import run_ranks
from trainkit.training.memory_budget import MemoryBudget

SHAPE = {"hidden_size": 16, "num_layers": 6, "num_heads": 2, "feed_forward_size": 32, "max_length": 64}
ARGUMENTS = [
    "recipe=bert_finetune",
    "recipe.weights=null",
    *(f"recipe.model.{key}={value}" for key, value in SHAPE.items()),
    "data.vocab_size=150",
    "recipe.num_steps=3",
    "tracking.wandb=null",
    "tracking.curve=false",
    "tracking.report=false",
    "device=cpu",
    "log_every=1",
    "on_leak=ignore",
    "evaluate_every=null",
    "save_every=null",
]


def trained(folder, name, *overrides):
    """The losses of a run, what it found, and the configuration that it stored."""
    run_dir = folder / name
    train(compose([*ARGUMENTS, f"data.path={folder / 'a.csv'}", f"run_dir={run_dir}", *overrides]))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    values = checkpoint.read_manifest(checkpoint.find(run_dir))["values"]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, (values.get("found") or {}).get("memory"), values["config"]


def scenes(folder, batch_size, *overrides):
    """The same run without a budget, with one that is just enough, and with one that is a byte less."""
    given = (f"recipe.batch_size={batch_size}", *overrides)
    plain = trained(folder, "plain", *given)
    enough = trained(folder, "enough", *given, "memory.budget=1GB")
    peak = enough[1]["peak_bytes"]
    return (
        plain,
        enough,
        trained(folder, "exact", *given, f"memory.budget={peak}"),
        trained(folder, "less", *given, f"memory.budget={peak - 1}"),
    )


def write(path):
    """Texts that are long enough for the activations of a sample to be most of the memory."""
    draw = random.Random(0)
    rows = [f"{' '.join(draw.choices(OTHER.split(), k=50))} {n},{('good', 'bad')[n % 2]}" for n in range(70)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path / "a.csv")
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_accumulation_is_first_and_changes_rounding_only(folder, num_ranks):
    for plain, enough, exact, less in run_ranks(scenes, num_ranks, folder, 16):
        assert plain[1] is None and enough[0] == exact[0] == plain[0] and len(plain[0]) == 3
        assert enough[1]["grad_accumulation_steps"] == exact[1]["grad_accumulation_steps"] == 1
        assert less[1]["grad_accumulation_steps"] in (2, 3, 4) and less[1]["typed"] == ""
        assert less[1]["peak_bytes"] < exact[1]["peak_bytes"] == enough[1]["peak_bytes"]
        stored = less[2]["recipe"]
        assert stored["grad_accumulation_steps"] == less[1]["grad_accumulation_steps"] and stored["batch_size"] == 16
        assert less[0] == pytest.approx(plain[0], rel=1e-5)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_checkpointing_is_second_and_keeps_the_bits(folder, num_ranks):
    for plain, _, _, less in run_ranks(scenes, num_ranks, folder, num_ranks, "optimizer=sgd"):
        # A rank's share is one sample, and the activations are most of the memory.
        assert less[1]["typed"] == "activation_checkpointing=[Layer]" and less[1]["grad_accumulation_steps"] == 1
        assert less[2]["activation_checkpointing"] == ["Layer"] and less[2]["precision"]["name"] == "fp32"
        assert less[0] == plain[0]


def _smallest(folder, *overrides, errors=("first", "second")):
    """The smallest budget according to the error, that according to the error of a smaller one, and a run with it."""
    given, found, budget = ("recipe.batch_size=2", *overrides), [], 50_000
    for name in errors:
        with pytest.raises(ConfigError) as raised:
            trained(folder, name, *given, f"memory.budget={budget}")
        found.append(int(present(re.search(r"set memory.budget=(\d+)", str(raised.value)))[1]))
        budget = int(0.95 * found[0])
    return found, trained(folder, "third", *given, f"memory.budget={found[0]}")


def _require_smallest(smallest, kind):
    (first, second), (losses, found, config) = smallest
    assert first == pytest.approx(second, rel=0.02) and found["peak_bytes"] <= first and len(losses) == 3
    assert config["strategy"]["_target_"] == f"trainkit.strategy.{kind}"
    assert ("strategy=fsdp" in found["typed"]) == (kind == "FSDP")


@pytest.mark.slow
def test_an_error_says_the_smallest_budget_that_would_do(folder):
    """On two ranks; on one below."""
    for smallest in run_ranks(_smallest, 2, folder):
        _require_smallest(smallest, "FSDP")


@pytest.mark.slow
def test_bf16_is_said_to_change_results(folder, capsys):
    (folder / "other").mkdir()
    write(folder / "other" / "a.csv")
    smallest = _smallest(folder)
    _require_smallest(smallest, "DDP")
    _, (_, found, config) = smallest
    out = capsys.readouterr().out
    assert (
        ("precision=bf16" in found["typed"])
        == (config["precision"]["name"] == "bf16")
        == ("precision=bf16 changes results" in out)
    )
    _, (_, found, _) = _smallest(folder / "other", "memory.lower_precision=false", errors=["first"])
    assert "precision" not in found["typed"]


def test_a_resumed_run_keeps_the_choice(folder, capsys):
    given = ["recipe.batch_size=16", "recipe.grad_accumulation_steps=auto"]
    peak = trained(folder, "whole", *given, "memory.budget=1GB")[1]["peak_bytes"]
    budget = f"memory.budget={peak - 1}"
    first = trained(folder, "run", *given, budget, "recipe.num_steps=3")
    said = capsys.readouterr().out
    assert "as configured: 1 micro-batches a rank do not fit into memory" in said
    assert "chosen: recipe.grad_accumulation_steps=2" in said
    counts = re.findall(r"(\S+ \S+) at most (?:in the first 2 steps|when it was tried)", said)
    assert len(counts) == 4 and counts[2] == counts[3]  # tried and measured are the same
    second = trained(folder, "run", *given, budget, "recipe.num_steps=5")
    said = capsys.readouterr().out
    assert "recipe.grad_accumulation_steps=2, as the run that is resumed has found" in said
    assert "fit into memory" not in said and second[1] == first[1] and len(second[0]) == 5
    evaluate(folder / "run")
    assert "memory.budget" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is for training"):
        evaluate(folder / "run", ["memory.budget=1GB"])


@pytest.mark.parametrize("text", ["4 XB", "-1", "0", "many", "4", "1e30"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ConfigError, match=r"memory\.budget="):
        MemoryBudget(budget=text)


def test_budgets_are_read():
    texts: dict[int | str, int] = {
        "4GB": 4 * 10**9,
        "4GiB": 4 * 2**30,
        "800MB": 8 * 10**8,
        "1000000": 10**6,
        123456: 123456,
    }
    assert [MemoryBudget(budget=text).num_bytes for text in texts] == [*texts.values()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_holds_no_more_than_the_budget(folder):
    _, found, _ = trained(folder, "run", "device=cuda", "recipe.batch_size=16", "memory.budget=1GB")
    assert 0 < found["peak_bytes"] <= 10**9
    assert torch.cuda.get_per_process_memory_fraction() < 1
    torch.cuda.set_per_process_memory_fraction(1.0)
