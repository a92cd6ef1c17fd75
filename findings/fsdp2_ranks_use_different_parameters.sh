#!/usr/bin/env bash
# torch 2.13.0, FSDP2 (torch.distributed.fsdp.fully_shard), 2 processes on gloo.
#
# A module has two heads; rank 0 uses head 0 and rank 1 uses head 1 in the same step. A good guess: each head's gradient
# is the mean over ranks of its own (a rank that did not use it counts as zero), as DistributedDataParallel with
# find_unused_parameters gives it, or an error.
# Seen: ranks reduce only the gradients that they have, in one buffer, so that the gradient of rank 1's head is added to
# that of rank 0's head, without a word. Head 0 should have 1 * 1 / 2 = 0.5 and has 1.5; head 1 should have 1.0 and has
# none (rank 0) or no element of one (rank 1).
# trainkit counts which parameters were used on any rank and fills in zeros: trainkit/strategy/fsdp_use.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >heads.py <<'P'
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(2)])

    def forward(self, x, number):
        return self.heads[number](x)

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
module = Heads()
fully_shard(module)
module(torch.full((1, 2), float(rank + 1)), rank).sum().backward()
for name, p in module.named_parameters():
    print(f"rank {rank} {name} {None if p.grad is None else p.grad.to_local().tolist()}", flush=True)
dist.destroy_process_group()
P
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo timeout 120 venv/bin/torchrun --standalone --nproc-per-node=2 heads.py 2>/dev/null | sort | tee seen
diff seen - <<'T'
rank 0 heads.0.weight [[1.5, 1.5]]
rank 0 heads.1.weight None
rank 1 heads.0.weight None
rank 1 heads.1.weight []
T
