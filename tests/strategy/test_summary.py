"""What a run says of itself at its start and after its first step, and keeps."""

import re

import pytest

from tests.jobs import TOY, run

NUM_PARAMETERS = 4 * 16 + 16 + 16 + 1


def _bytes(line):
    units = {"B": 1, "kB": 1000, "MB": 1e6}
    found = re.findall(r"(parameters|gradients|optimizer) ([\d.]+) (\w+)", line)
    return {name: float(value) * units[unit] for name, value, unit in found}


@pytest.mark.parametrize(
    ("strategy", "layout"), [("ddp", "2 x replicate"), ("fsdp", "2 x shard"), ("zero2", "2 x replicate")]
)
def test_predicted_and_counted(tmp_path, strategy, layout):
    done = run([*TOY, f"strategy={strategy}", "recipe.grad_accumulation_steps=2", f"run_dir={tmp_path / 'run'}"], 2)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "summary.txt").read_text().splitlines()
    assert all(line in done.stdout for line in lines)
    assert lines[0].startswith(f"strategy {strategy} on 2 ranks ({layout}")
    assert lines[1].startswith("precision asked fp32, obtained fp32 on the CPU")
    assert f"network: {NUM_PARAMETERS} parameters" in lines
    assert "network: global batch 8 = 2 ranks x 2 samples x 2 micro-batches" in lines
    predicted, counted = (
        _bytes(next(line for line in lines if f"on each rank, {word}" in line)) for word in ("predicted", "counted")
    )
    share = {"ddp": 1.0, "fsdp": 0.5, "zero2": 0.5}[strategy]
    own = 4 * NUM_PARAMETERS
    assert predicted["optimizer"] == pytest.approx(2 * own * share, abs=4)
    assert predicted["parameters"] == pytest.approx(own * (1.5 if strategy == "zero2" else share), abs=4)
    # FSDP gives out whole rows: rank 0 has the only row of the last layer, 8 weights and a half above its share.
    rows = 4 * 8.5 if strategy == "fsdp" else 0.0
    assert counted["parameters"] == pytest.approx(predicted["parameters"] + rows, abs=8)
    # And what Adam counts its steps with, 4 B a tensor.
    assert counted["optimizer"] == pytest.approx(predicted["optimizer"] + 2 * rows, abs=24)
    if strategy != "zero2":  # its gradients are views of what is larger in so small a network
        assert counted["gradients"] == pytest.approx(predicted["gradients"], abs=40)
