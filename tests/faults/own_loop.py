"""One's own loop in which something is wrong: python own_loop.py FAULT [RUN_DIR]."""

import sys
import time

import torch

import trainkit
from trainkit.health import straggler

FAULT = sys.argv[1]
straggler.WINDOW_STEPS, straggler.WINDOW_S = 20, 0.5
SLEEP_S, SLOW_S = 0.02, 0.08  # much longer than a process waits for a core


class Points(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self):
        return 64

    def __getitems__(self, indices):
        time.sleep(SLOW_S if FAULT == "slow" and runtime.ranks.rank == 1 else SLEEP_S)
        return [torch.ones(4) for _ in indices]


class Network(torch.nn.Linear):
    def forward(self, x):
        time.sleep(SLOW_S if FAULT == "slow" and runtime.ranks.rank == 2 else SLEEP_S)
        return super().forward(x)


run_dir = sys.argv[2] if len(sys.argv) > 2 else None
runtime = trainkit.Runtime(device="cpu", run_dir=run_dir, hang_timeout_s=5.0, log_every=50)
network = Network(4, 1)
engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=1e-3))
for step, batch in enumerate(runtime.batches(Points(), batch_size=4, num_steps=120), 1):
    if FAULT == "leaves" and runtime.ranks.rank == 1 and step == 9:
        break
    if FAULT == "sleeps" and step == 9:
        time.sleep(3600)  # one process alone
    engine.backward(engine(batch.data).mean())
    runtime.log(step, **engine.step().metrics())
if FAULT == "leaves" and runtime.ranks.rank == 1:
    time.sleep(3600)  # it has something else to do
runtime.close()
print("rank", runtime.ranks.rank, "is done")
