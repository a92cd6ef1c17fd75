"""`trainkit benchmark`: a grid with a cell that fails, what is shown, and what is refused before any work."""

import json

import pytest

from tests.jobs import ROOT
from trainkit.benchmark.runner import Runner
from trainkit.cli.main import main

USER = ["--config-dir", str(ROOT / "tests" / "user" / "conf")]
SHORT = ["--steps", "2", "--warmup", "1", "--repeats", "2", "--precision", "fp32", "--threads", "1", "device=cpu"]


def _grid(path, *more):
    # Of two processes the second one runs out of memory.
    return ["benchmark", *USER, "recipe=toy", "recipe.fault=out_of_memory", *SHORT, "--to", str(path), *more]


def test_a_cell_that_fails_does_not_end_the_grid(tmp_path, capfd):
    path = tmp_path / "a.json"
    assert main(_grid(path, "--processes", "1,2", "--price", "this=0.5")) == 0
    printed, said = capfd.readouterr()
    assert "toy, fp32, ddp, 2: not measured: out of memory: planted" in printed
    assert "2 of 2" in said and "samples/s, spread" in said
    value = json.loads(path.read_text())
    one, two = value["cells"].values()
    assert [repeat["samples"] for repeat in one["repeats"]] == [16, 16] and two["reason"] == "out of memory: planted"
    assert value["flops"]["toy"]["flops_per_sample"] == 352
    speeds = [16 / repeat["seconds"] for repeat in one["repeats"]]
    assert one["figures"]["samples"]["values"] == pytest.approx(speeds)
    assert one["figures"]["mfu"] == pytest.approx(sum(speeds) / 2 * 352 / value["peaks"]["fp32"]["flops_per_s"])
    cost = 0.5 / 3600 / (sum(speeds) / 2) * 1e6
    assert f"${cost:.3g}" in printed and "$/million" in printed
    assert "not measured" in (tmp_path / "a.html").read_text().lower()

    assert main(_grid(path, "--processes", "1")) == 0
    assert "is in" in capfd.readouterr().err
    assert json.loads(path.read_text())["cells"][one["model"] + " fp32 ddp 1"]["measured_at"] == one["measured_at"]

    other = tmp_path / "other.json"
    path.rename(other)
    shown = ["benchmark", "--show", "--to", str(other), "--compare", str(other), "--price", "other=9"]
    assert main(shown) == 0
    assert "machine" in capfd.readouterr().out and (tmp_path / "other.html").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--precision", "fp31"], "--precision=fp31: must be of fp64, fp32, tf32, bf16, fp16. Did you mean 'fp32'?"),
        (["--precision", "tf32", "device=cpu"], "precision=tf32: the CPU cannot"),
        (["--strategy", "dpp"], "--strategy=dpp: must be of ddp, fsdp, hsdp, single, zero1, zero2, zero3"),
        (["--processes", "0"], "--processes='0': must be numbers of at least 1"),
        (["--steps", "0"], "--steps=0: must be 1 or more"),
        (["--batch-size", "0"], "--batch-size=0: must be 1 or more"),
        (["--timeout", "0"], "--timeout=0: must be minutes above 0"),
        (["recipe=brt"], "recipe=brt: must be one of bert"),
        (["recipe=bert", "recipe.num_stepz=3"], "Did you mean 'recipe.num_steps'?"),
        (["strategy=fsdp"], "strategy=fsdp: give --strategy fsdp"),
        (["--price", "that=2"], "with NAME of this"),
        (["--compare", "none.json"], "none.json cannot be read"),
        (["--page", "benchmark.json"], "is the file of --to"),
        (["--show", "--again"], "--show measures nothing"),
        (["--show", "--to", "none.json"], "none.json cannot be read"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "run", lambda *given: pytest.fail("it began to measure"))
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "benchmark.json").exists()


def test_it_starts_no_jobs_within_a_job(capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert main(["benchmark"]) == 2
    assert "already belongs to a job" in capsys.readouterr().err
