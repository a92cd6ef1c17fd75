"""A small run in which the NaN is planted where a test wants it."""

import json
import math

import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit import checkpoint
from trainkit.errors import NonFiniteError
from trainkit.tracking import trackers

BATCH, NUM_STEPS, STEP, SAVE_EVERY = 8, 36, 30, 10
POSITION = (STEP - 1) * BATCH
SICK = POSITION + 5  # the position of one sample: on rank 1 of 2 and of 4
NUM_SAMPLES = 2 * NUM_STEPS * BATCH  # so that no sample comes twice


class Poison(torch.autograd.Function):
    """The identity, whose gradient is NaN where it is told so."""

    @staticmethod
    def forward(ctx, x, is_sick):
        ctx.is_sick = is_sick
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (torch.full_like(gradient, math.nan) if ctx.is_sick else gradient), None


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(7, 1)
        self.dropout = nn.Dropout(0.2)  # draws from the global generators

    def forward(self, x, is_sick=False):
        x = self.dropout(torch.tanh(self.first(x)))
        weight = Poison.apply(self.second.weight, is_sick)
        return self.third(torch.tanh(nn.functional.linear(x, weight, self.second.bias)))


class Sick(trainkit.Recipe):
    """A small network. plant: where the NaN is, if not `none`.

    sick: absolute positions of the samples with it.  leaves_out: the batch with one is passed over.  heals: it is
    there the first time only.
    """

    def __init__(
        self,
        runtime,
        plant,
        *,
        sick=(SICK,),
        leaves_out=False,
        heals=False,
        num_steps=NUM_STEPS,
        grad_accumulation_steps=1,
        optimizer=torch.optim.Adam,
    ):
        self.runtime, self.plant, self.sick, self.leaves_out, self.heals = runtime, plant, sick, leaves_out, heals
        self.num_samples = num_steps * BATCH
        self.engine = runtime.setup(
            Network(),
            lambda groups: optimizer(groups, lr=0.01),
            ema_decay=0.9,
            max_grad_norm=0.5,
            grad_accumulation_steps=grad_accumulation_steps,
        )
        self.num_computed = 0

    def engines(self):
        return {"engine": self.engine}

    def batches(self, start=0):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(NUM_SAMPLES, 5, generator=generator)
        return self.runtime.batches({"x": x, "y": x.sum(1)}, batch_size=BATCH, start=start)

    def train_step(self, batch):
        if self.leaves_out and any(batch.position <= position < batch.position + BATCH for position in self.sick):
            self.runtime.stream.skip()
            return {"skipped": 1.0}
        self.num_computed += 1
        for micro in self.engine.micro_batches(batch):
            is_sick = not set(self.sick).isdisjoint(micro.positions.tolist())
            is_sick = is_sick and not (self.heals and self.num_computed > STEP)
            output = self.engine(micro.x, is_sick and self.plant == "gradient")
            loss = (output.squeeze(-1) - micro.y).square().mean()
            if is_sick and self.plant == "loss":
                loss = loss + math.nan  # the gradient stays what it is
            self.engine.backward(loss)
        return self.engine.step().metrics()

    def evaluate(self):
        return {"norm": float(scenes.flat(scenes.whole_state(self.engine)["module"]).norm())}


class Notes(trainkit.Tracker):
    """What is said of a run, as lines of `said.txt`."""

    def start(self, run):
        self.path = run.directory / "said.txt"

    def message(self, text):
        with self.path.open("a") as file:
            file.write(f"{text}\n")


def make_runtime(strategy, nonfinite, run_dir, **kwargs):
    tracker = trackers(console=False, curve=False, media=False, others={"notes": Notes()})
    given = {"precision": "fp32", "log_every": 1, "tracker": tracker, "run_dir": run_dir, **kwargs}
    return scenes.make_runtime(strategy, nonfinite=nonfinite, **given)


def fit(strategy, nonfinite, run_dir, plant, log_every=1, save_every=SAVE_EVERY, waits=False, **kwargs):
    """One rank of a job: what it raised, its state at the end, and what there is to know besides.

    waits: as on a GPU, where nothing is read while steps go on.
    """
    runtime = make_runtime(strategy, nonfinite, run_dir, log_every=log_every)
    if waits:
        runtime.guard.reads_every_step = False
    recipe = Sick(runtime, plant, **kwargs)
    trainer = trainkit.Trainer(recipe, save_every=save_every, keep_last=9)
    raised = None
    try:
        trainer.fit()
    except NonFiniteError as error:
        raised = str(error)
    return {
        "raised": raised,
        "step": trainer.step,
        "state": scenes.whole_state(recipe.engine),
        "num_updates": recipe.engine.num_updates,
        "left_out": trainer.rewinds.left_out,
        "num_computed": recipe.num_computed,
    }


def said(run_dir):
    return (run_dir / "said.txt").read_text().splitlines()


def metrics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in ("training", "evaluation")]


def saved_steps(run_dir):
    return [int(path.name[5:]) for path in checkpoint.step_directories(run_dir / "checkpoints")]
