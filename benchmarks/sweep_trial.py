"""One trial of sweep_peers.py: the configuration that all contenders train, and a recipe that notes its own work."""

import argparse
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from trainkit import Last
from trainkit.cli import add_train_arguments, parse, run_train
from trainkit.data import Batch
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

NOTES = "TRAINKIT_BENCHMARK_NOTES"  # names the file that trials write to
METRIC = "held_out_loss"
BERT = (
    "recipe=bert",
    "recipe.model.num_layers=1",
    "data.vocab_size=1024",
    "data.sequence_length=64",
    "recipe.batch_size=8",
    "schedule.warmup=5",
    "save_every=null",
    "on_leak=ignore",
    "device=cpu",
)
QUIET = ("tracking.console=false", "tracking.curve=false", "tracking.report=false", "tracking.wandb=null")
"""What `trainkit sweep` leaves out of its trials by itself."""
FIXED = (*BERT, "recipe.num_steps=50", "evaluate_every=null", "recipe._target_=benchmarks.sweep_trial.Timed")
LEARNING_RATES, MASK_SHARES = (1e-4, 1e-2), (0.15, 0.3)


class Timed(MaskedLanguageModelling):
    """BERT, which notes the seconds from its first step to the end of its last one, and those of its evaluation."""

    _began: tuple[float, float] | None = None
    _ended = 0.0, 0.0

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Trains between two looks at the clock."""
        if self._began is None:
            self._began = _clocks()
        metrics = super().train_step(batch)
        self._ended = _clocks()
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Evaluates between two looks at the clock."""
        begin = _clocks()
        metrics = super().evaluate()
        if self._began is not None:
            (steps_s, steps_cpu_s), (evaluation_s, evaluation_cpu_s) = _since(self._began, self._ended), _since(begin)
            note(
                steps_s=steps_s,
                steps_cpu_s=steps_cpu_s,
                evaluation_s=evaluation_s,
                evaluation_cpu_s=evaluation_cpu_s,
                value=metrics[METRIC],
            )
        return metrics


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begin: tuple[float, float], end: tuple[float, float] | None = None) -> tuple[float, float]:
    now = end or _clocks()
    return now[0] - begin[0], now[1] - begin[1]


def note(**values: float) -> None:
    """Appends a line to the file of the contender."""
    with suppress(KeyError), Path(os.environ[NOTES]).open("a") as file:
        file.write(json.dumps(values) + "\n")


def overrides(lr: float, mask_share: float, run_dir: str) -> list[str]:
    """The configuration of a trial as it is typed."""
    return [*FIXED, *QUIET, f"optimizer.lr={lr}", f"recipe.mask_share={mask_share}", f"run_dir={run_dir}"]


def train(given: list[str]) -> None:
    """Trains a configuration in this process, as `trainkit train` does."""
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    run_train(parse(parser, given))
