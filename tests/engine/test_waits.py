"""What a run tells about the time it waited: against ranks and data that are slow on purpose."""

import time

import pytest
import torch

import trainkit
from tests.faults import sick
from trainkit.testing import run_ranks

SLEEP_S = 0.1


class _Slow(torch.utils.data.Dataset[torch.Tensor]):
    """Samples that take a while to read."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.full((4,), float(index))


def _trained(strategy, run_dir, slow_rank=-1, data_s=0.0, raw=False):
    """Twelve steps, of which one rank computes longer than the others."""
    runtime = trainkit.Runtime(strategy=strategy, device="cpu", run_dir=run_dir, log_every=4, ops="reference")
    module = torch.nn.Linear(4, 1)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=1e-3))
    for step, batch in enumerate(runtime.batches(_Slow(data_s), batch_size=4, num_steps=12), 1):
        if runtime.ranks.rank == slow_rank:
            time.sleep(SLEEP_S)
        loss = (module if raw else engine)(batch.data).mean()
        engine.backward(loss)
        engine.step()
        runtime.log(step, loss=loss)
    runtime.close()


def _told(run_dir):
    return [line for line in sick.metrics(run_dir) if line["kind"] == "training"][1:]  # the first has the start in it


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_wait_for_a_slow_rank_is_seen(ranks, raw, tmp_path):
    run_ranks(_trained, ranks, "ddp", tmp_path, ranks - 1, 0.0, raw)
    for line in _told(tmp_path):
        assert line["comm_wait"] > max(0.3, line["data_wait"]), line
        assert line["comm_wait"] + line["data_wait"] <= 1.001


def test_the_wait_for_slow_data_is_seen(tmp_path):
    run_ranks(_trained, 2, "ddp", tmp_path, -1, SLEEP_S / 2)
    for line in _told(tmp_path):
        assert line["data_wait"] > max(0.3, line["comm_wait"]), line


@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("ddp", 1), ("fsdp", 2)])
def test_what_cannot_be_seen_is_left_out(strategy, ranks, tmp_path):
    run_ranks(_trained, ranks, strategy, tmp_path, -1, SLEEP_S)
    for line in _told(tmp_path):
        assert "comm_wait" not in line and line["data_wait"] > 0.3, line


def test_the_plan_and_the_hosts_are_recorded(tmp_path):
    run_ranks(_trained, 4, "ddp", tmp_path)
    links = trainkit.json_text.read_json(tmp_path / "links.json")
    assert [host["ranks"] for host in links["hosts"]] == [[0, 1, 2, 3]]
    assert links["plan"]["kind"] == "flat" and links["transport"] == "gloo"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_is_told_on_a_gpu_and_no_wait_is_made_up(tmp_path):
    runtime = trainkit.Runtime(strategy="ddp", device="cuda", run_dir=tmp_path, log_every=1)
    module = torch.nn.Linear(1000, 1000)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=1e-3))
    for step, batch in enumerate(runtime.batches(torch.zeros(8, 1000), batch_size=4, num_steps=3), 1):
        loss = engine(batch.data).mean()
        engine.backward(loss)
        engine.step()
        runtime.log(step, loss=loss)
    runtime.close()
    for line in sick.metrics(tmp_path):
        assert line["peak_memory_gb"] > 4e-3 and "comm_wait" not in line, "weights of 4 MB"
