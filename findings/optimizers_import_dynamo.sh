#!/usr/bin/env bash
# torch 2.13.0, eager code on a CPU: nothing is compiled.
#
# A good guess: torch._dynamo, the front end of torch.compile, is imported by who compiles.
# Seen: the constructor of every torch.optim optimizer imports it (add_param_group is wrapped in torch._disable_dynamo), which
# takes about as much CPU time as `import torch` itself. So does DistributedDataParallel's. In every process of every job.
# trainkit makes optimizers without it where nothing else has imported it: trainkit/optim/dynamo.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >imports.py <<'P'
import sys
import time

began = time.process_time()
import torch

of_torch = time.process_time() - began
model = torch.nn.Linear(2, 2)
assert "torch._dynamo" not in sys.modules
began = time.process_time()
torch.optim.AdamW(model.parameters())
of_optimizer = time.process_time() - began
print(f"import torch: {of_torch:.2f} s of CPU time; AdamW(...): {of_optimizer:.2f} s")
print("torch._dynamo is imported:", "torch._dynamo" in sys.modules)
assert "torch._dynamo" in sys.modules
P
venv/bin/python imports.py
# Output seen:
#   import torch: 1.25 s of CPU time; AdamW(...): 1.13 s
#   torch._dynamo is imported: True
