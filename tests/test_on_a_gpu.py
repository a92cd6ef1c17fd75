"""Whole runs on a GPU: the same bits again, resumed or not; processes that share one; what is told about it."""

import json
import subprocess
import sys

import pytest
import torch

import trainkit
from benchmarks.processes import free_port
from tests.jobs import ROOT, TOY, TRAIN, environment, newest_tensors, run
from tests.training.test_resume import assert_killed_equals_whole
from trainkit import checkpoint
from trainkit.cli.main import main
from trainkit.testing import run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

BERT = (
    "recipe=bert",
    "data.vocab_size=1000",
    "data.sequence_length=64",
    "recipe.model.hidden_size=64",
    "recipe.model.feed_forward_size=128",
    "recipe.model.num_layers=2",
    "recipe.model.dropout=0.1",
    "recipe.model.attention_dropout=0.1",
    "recipe.batch_size=16",
    "recipe.num_steps=300",
    "schedule.warmup=10",
    "evaluate_every=null",
)
GAN = (
    "experiment=glyphs",
    "recipe.stable_images={4: 1000, 8: 1000, 16: 1000}",
    "recipe.fade_images={8: 1000, 16: 1000}",
    "recipe.low_precision_resolutions=2",
    "evaluate_every=null",
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("job", [BERT, GAN], ids=["bert", "gan"])
def test_killed_and_resumed_gives_the_same_bits(tmp_path, job, precision):
    arguments = [*job, f"precision={precision}", "device=cuda", "save_every=25", "log_every=1"]
    assert_killed_equals_whole(tmp_path, arguments, None, kill_from_step=60)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_strategy_of_one_gpu_is_the_cpu(tmp_path, strategy):
    arguments = [*TOY, "precision=fp64", "deterministic=true"]
    for name, more in (("cpu", ["device=cpu"]), ("gpu", ["device=cuda", f"strategy={strategy}"])):
        done = run([*arguments, *more, f"run_dir={tmp_path / name}"], 1)
        assert done.returncode == 0, done.stderr
    expected, found = newest_tensors(tmp_path / "cpu"), newest_tensors(tmp_path / "gpu")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def _two_rounds(path: str, device: str) -> None:
    """A loop of two engines, accumulation and clipping, whose ranks, if there are several, meet through gloo."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if device == "cuda":
            patch.setattr("trainkit.runtime.choose_device", lambda name, cluster: torch.device("cuda", 0))
        runtime = trainkit.Runtime(device="cpu", precision="fp64", tracker=trainkit.Tracker(), comm="flat")
    assert runtime.device.type == device
    first, second = (
        runtime.setup(
            torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)),
            lambda groups: torch.optim.Adam(groups, lr=0.01),
            max_grad_norm=0.5,
            ema_decay=0.9,
            grad_accumulation_steps=2,
        )
        for _ in range(2)
    )
    x = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for batch in runtime.batches({"x": x}, batch_size=10, num_steps=8):
        for engine in (first, second):
            for micro in engine.micro_batches(batch):
                drawn = runtime.randn(micro, 6, name="noise")
                loss = (engine(micro.x + drawn.double()) - micro.x.sum(1, keepdim=True)).square().mean()
                engine.backward(loss, weight=len(micro))
            engine.step()
    runtime.save(path, first=first, second=second)


def test_two_ranks_on_a_gpu_are_one_process_on_the_cpu(tmp_path):
    """NCCL wants a GPU for every rank; gloo does not, and all else is what several GPUs run."""
    run_ranks(_two_rounds, 1, str(tmp_path / "one"), "cpu")
    run_ranks(_two_rounds, 2, str(tmp_path / "two"), "cuda")
    expected, found = (checkpoint.read_whole(tmp_path / name) for name in ("one", "two"))
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_more_processes_than_gpus_are_one_line(tmp_path):
    num = torch.cuda.device_count() + 1
    done = run([*TOY, "device=cuda", f"run_dir={tmp_path}"], num, timeout_s=120.0)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "error" in line]
    assert f"{num} processes on this machine and {num - 1} GPUs" in told[0]


def test_two_that_take_one_gpu_as_theirs_are_one_line(tmp_path):
    """As two agents on one machine, each of which counts its processes from 0."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    local = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    arguments = [sys.executable, str(TRAIN), *TOY, "device=cuda", f"run_dir={tmp_path}"]
    processes = [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**environment(), **meeting, **local, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=180.0)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [2, 2], "\n".join(said)
    for text in said:
        assert "with another rank, which NCCL" in text
        assert "Traceback" not in text


def test_topo_and_doctor_show_the_gpu_that_torch_has(capsys):
    gpu = torch.cuda.get_device_properties(0)
    assert main(["topo", "show", "--json"]) == 0
    host = json.loads(capsys.readouterr().out)["hosts"][0]
    assert "nvml" in host["facts"]["sources"]
    assert [device["name"] for device in host["devices"]] == [gpu.name] * torch.cuda.device_count()
    assert host["devices"][0]["compute_capability"] == f"{gpu.major}.{gpu.minor}"
    assert main(["topo", "show"]) == 0
    assert gpu.name.removeprefix("NVIDIA ") in capsys.readouterr().out
    main(["doctor", "--json"])
    sections = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for section in sections.values() for finding in section}
    assert gpu.name in found["cuda:0"]["value"]
    assert found["driver"]["state"] == found["for CUDA"]["state"] == "ok"


class Rows:
    """A data set that Python reads, by processes."""

    def __len__(self):
        return 512

    def __getitem__(self, index):
        return torch.full((1024,), index, dtype=torch.float32)


@pytest.mark.parametrize(
    "source", [Rows(), torch.arange(512.0)[:, None].expand(512, 1024)], ids=["processes", "threads"]
)
def test_batches_that_were_copied_ahead_have_arrived(source):
    runtime = trainkit.Runtime(device="cuda", seed=3)
    busy = torch.randn(2048, 2048, device="cuda")
    for batch in runtime.batches(source, batch_size=64, num_steps=40, num_workers=2):
        for _ in range(5):
            busy = torch.tanh(busy @ busy)  # the next copy begins while this is computed
        assert batch.data.is_cuda
        assert torch.equal(batch.data.cpu(), batch.indices[:, None].float().expand(-1, 1024))
