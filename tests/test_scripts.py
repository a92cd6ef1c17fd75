"""The loop of docs/own_loop.md and a recipe, run as they are on 1, 2 and 4 processes."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.jobs import run
from trainkit import checkpoint

ROOT = Path(__file__).parent.parent
(OWN_LOOP,) = re.findall(
    r"^```python\n(# loop\.py\n.*?)^```$", (ROOT / "docs" / "own_loop.md").read_text(), re.M | re.S
)

RECIPE = """\
import torch
from torch.nn.functional import cross_entropy
import trainkit


def masked_loss(logits, labels):
    masked = labels >= 0
    return cross_entropy(logits[masked], labels[masked]), masked.sum()


class MaskedLanguageModelling(trainkit.Recipe):
    num_samples = 20 * 16

    def __init__(self, runtime, *, encoder, optimizer, corpus, batch_size):
        self.runtime, self.corpus, self.batch_size = runtime, corpus, batch_size
        self.encoder = runtime.setup(encoder, optimizer, grad_accumulation_steps=2)

    def engines(self):  return {"encoder": self.encoder}
    def batches(self, start=0):
        return self.runtime.batches(self.corpus, batch_size=self.batch_size, start=start)
    def train_step(self, batch):
        for micro in self.encoder.micro_batches(batch):
            loss, num_masked = masked_loss(self.encoder(micro.tokens), micro.labels)
            self.encoder.backward(loss, weight=num_masked)
        return self.encoder.step().metrics()          # loss, grad_norm, lr, skipped: means over the global batch
    def evaluate(self):
        return {"num_samples": float(len(self.corpus["tokens"]))}


tokens = torch.randint(0, 20, (200, 6), generator=torch.Generator().manual_seed(0))
labels = torch.where(torch.rand(200, 6, generator=torch.Generator().manual_seed(1)) < 0.2, tokens, -1)
runtime = trainkit.Runtime(strategy="ddp", precision="fp64", seed=0, log_every=1, run_dir="run")
encoder = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
recipe = MaskedLanguageModelling(
    runtime,
    encoder=encoder,
    optimizer=torch.optim.AdamW(encoder.parameters(), lr=1e-2),
    corpus={"tokens": tokens, "labels": labels},
    batch_size=16,
)
trainkit.Trainer(recipe).fit()
"""


def _run(script: str, directory: Path, ranks: int) -> str:
    directory.mkdir()
    (directory / "script.py").write_text(script)
    done = run([], ranks, cwd=directory, script=directory / "script.py")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ones_own_loop(tmp_path, ranks):
    out = _run(OWN_LOOP, tmp_path / "loop", ranks)
    assert "d_loss" in out and f"{ranks} rank" in out
    manifest = json.loads((tmp_path / "loop" / "checkpoints" / "last" / "manifest.json").read_text())
    assert manifest["position"] == 12 * 64 and manifest["values"] == {"step": 11}


def _weights_under(strategy: str, directory: Path) -> torch.Tensor:
    """What the loop leaves on 2 processes, word for word but for the strategy, and a precision that shows errors."""
    script = OWN_LOOP.replace('strategy="ddp"', f'strategy="{strategy}"').replace("bf16", "fp32")
    _run(script.replace("Adam", "SGD").replace(", betas=(0.0, 0.99)", ""), directory, 2)
    tensors = checkpoint.read_whole(directory / "checkpoints" / "last")
    return torch.cat([tensor.flatten() for name, tensor in sorted(tensors.items()) if ".module/" in name])


@pytest.fixture(scope="module")
def weights_under_ddp(tmp_path_factory):
    return _weights_under("ddp", tmp_path_factory.mktemp("ddp") / "loop")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "hsdp", "zero1", "zero2", "zero3"])
def test_ones_own_loop_under_every_strategy(tmp_path, weights_under_ddp, strategy):
    weights = _weights_under(strategy, tmp_path / strategy)
    assert float((weights - weights_under_ddp).abs().max()) < 1e-6


def test_a_recipe_gives_the_same_losses_on_any_number_of_ranks(tmp_path):
    losses = {}
    for ranks in (1, 2, 4):
        _run(RECIPE, tmp_path / str(ranks), ranks)
        lines = (tmp_path / str(ranks) / "run" / "metrics.jsonl").read_text().splitlines()
        losses[ranks] = [json.loads(line)["loss"] for line in lines if '"training"' in line]
        assert len(losses[ranks]) == 20
    for ranks in (2, 4):
        assert losses[ranks] == pytest.approx(losses[1], rel=1e-12)
