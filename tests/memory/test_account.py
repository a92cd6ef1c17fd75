"""MemoryAccount counts what a calculation by hand gives, and what the process takes of the system."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from trainkit import Runtime, Tracker
from trainkit.memory.account import MemoryAccount, OverBudgetError
from trainkit.memory.meter import Meter, limit_gpu
from trainkit.testing import run_ranks

LARGE = """
import json, sys, torch
from pathlib import Path
from torch import nn
from trainkit.memory.account import MemoryAccount

def resident():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024

torch.set_num_threads(1)
small = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64))
small(torch.zeros(2, 64)).sum().backward()  # what torch loads at its first steps is no part of it
torch.optim.Adam(small.parameters(), foreach=False).step()
before = resident()
with MemoryAccount() as account:
    module, inputs = nn.Linear(1024, 4096), torch.ones(64, 1024)
    optimizer = torch.optim.Adam(module.parameters(), foreach=False)
    for _ in range(2):
        x = module(inputs).repeat(16, 1)  # 16 MB
        for _ in range(4):
            x = x.sigmoid()
        x.sum().backward()
        del x
        optimizer.step()
        optimizer.zero_grad()
print(json.dumps([account.peak, resident() - before]))
"""


def test_a_network_takes_what_a_calculation_says():
    num, width, depth = 64, 128, 3
    account = MemoryAccount()
    with account:
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Sigmoid())]
        module, inputs = nn.Sequential(*layers), torch.zeros(num, width)
        optimizer = torch.optim.Adam(module.parameters(), foreach=False)
        weights, activation = 4 * depth * (width * width + width), 4 * num * width
        assert account.alive == weights + activation
        loss = module(inputs).sum()
        # A Linear keeps its input, a Sigmoid its output, which is the next one's input; the loss is a number.
        assert account.alive == weights + activation * (1 + depth) + 4
        loss.backward()
        del loss
        assert account.alive == 2 * weights + activation
        optimizer.step()
        assert account.alive == 4 * weights + activation + 4 * 2 * depth  # Adam counts the steps of each parameter
        optimizer.zero_grad()
        assert account.alive == 3 * weights + activation + 4 * 2 * depth
    assert account.peak >= 4 * weights + activation
    del module, inputs, optimizer, layers
    assert account.alive == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/status")
def test_the_peak_is_what_the_process_takes():
    # Otherwise glibc keeps much of what was freed, for later.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, env=environment)
    counted, taken = json.loads(done.stdout)
    assert counted > 100e6 and taken == pytest.approx(counted, rel=0.1)


def test_a_storage_counts_once_as_long_as_it_is_used():
    with MemoryAccount() as account:
        x = torch.zeros(1000)
        views = [x[:10], x.view(10, 100), x.detach()]
        x.add_(1)
        assert (account.alive, account.peak) == (4000, 4000)
        del x
        assert account.alive == 4000
    del views
    assert account.alive == 0
    with account:
        y = torch.ones(500)
        y.untyped_storage().resize_(0)
        assert (account.alive, account.peak) == (0, 4000)
        y.untyped_storage().resize_(8000)
        assert (account.alive, account.peak) == (8000, 8000)
    assert torch.UntypedStorage.resize_.__name__ == "resize_"


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_limit_holds(place):
    x = torch.ones(100, 100, requires_grad=True)
    y = (x * 2).exp()
    with pytest.raises(OverBudgetError, match=r"80.0 kB of tensors are alive, of 70.0 kB"), MemoryAccount(70_000):
        if place == "forward":
            _ = [torch.zeros(10_000), torch.zeros(10_000)]
        else:
            y.sum().backward()


def _shards(strategy):
    runtime = Runtime(strategy=strategy, seed=0, tracker=Tracker(), device="cpu")
    with Meter(runtime.device) as meter:
        engine = runtime.setup(nn.Linear(512, 512, bias=False), lambda groups: torch.optim.AdamW(groups, foreach=False))
        for batch in runtime.batches(torch.ones(64, 512), batch_size=4, num_steps=2):
            engine.backward(engine(batch.data).mean())
            engine.step()
    return meter.peak


def test_sharding_is_seen_in_the_peak():
    whole, shard = (max(run_ranks(_shards, 2, strategy)) for strategy in ("ddp", "fsdp"))
    size = 4 * 512 * 512
    assert 4 * size <= whole and shard < whole - size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_limit_holds_on_a_gpu():
    device = torch.device("cuda")
    with pytest.raises(torch.OutOfMemoryError), Meter(device, 100_000_000):
        torch.zeros(200_000_000, dtype=torch.uint8, device=device)
    with Meter(device) as meter:
        torch.zeros(200_000_000, dtype=torch.uint8, device=device)
    assert 200_000_000 <= meter.peak < 210_000_000
    limit_gpu(device, 100_000_000)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(200_000_000, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
