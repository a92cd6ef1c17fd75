"""What a recipe's metrics are held against is told once, and again where it has changed or the file was cut back."""

import json
from itertools import count

import trainkit
from tests.counting import Counting


class Guessing(Counting):
    def baselines(self):
        return {"held_out_loss": {"most frequent class": 0.25 if self.runtime.step < 3 else 0.75}}


def _fit(run_dir, num_steps):
    runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, ops="reference")
    recipe = Guessing(runtime, count(), num_steps=num_steps)
    trainkit.Trainer(recipe, evaluate_every=1, save_every=4).fit()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["held_out_loss"]) for line in lines if line["kind"] == "baseline"]


def test_baselines_are_logged_when_they_change(tmp_path):
    told = [(1, {"most frequent class": 0.25}), (3, {"most frequent class": 0.75})]
    assert _fit(tmp_path, 4) == told
    assert _fit(tmp_path, 6) == [*told, (5, {"most frequent class": 0.75})], "a resumed process tells its own"
