#!/usr/bin/env bash
# DeepSpeed 0.19.8, ZeRO stage 1 (stage 2 is the same code, stage 3 does the same), torch 2.13.0, one process on a CPU.
#
# A torch.optim optimizer is given to deepspeed.initialize, and its learning rate is then set to 0 through
# optimizer.param_groups, as a scheduler of torch does. A good guess: the next step moves nothing, whatever the optimizer,
# for DeepSpeed updates with the optimizer that it was given.
# Seen: so it is for SGD. A torch.optim.Adagrad is replaced, without a word, by another with the defaults and a single
# group of all parameters, whose rate nobody can set: at lr=0 weights move by 1.0. With two groups, as for biases without
# weight decay, the first backward pass ends in an IndexError (runtime/zero/stage_1_and_2.py:947, stage3.py:1358).
# trainkit puts the given optimizer back: trainkit/strategy/deepspeed.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy setuptools wheel packaging
venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8
cat >rates.py <<'P'
import importlib

import deepspeed
import torch
from torch import nn

# An optional part that is compiled when it is first used: not needed here, nor is a compiler.
importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
for kind, num_groups in ((torch.optim.SGD, 1), (torch.optim.SGD, 2), (torch.optim.Adagrad, 1), (torch.optim.Adagrad, 2)):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    groups = [[model.weight, model.bias]] if num_groups == 1 else [[model.weight], [model.bias]]
    optimizer = kind([{"params": params} for params in groups], lr=1.0)
    config = {"train_batch_size": 1, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 1}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = model.weight.detach().clone()
    try:
        engine.backward(engine(torch.ones(1, 2)).sum())
        engine.step()
        seen = f"weights moved by {(model.weight.detach() - before).abs().max().item():.2f}"
    except IndexError as error:
        seen = f"IndexError: {error}"
    is_given = engine.optimizer.optimizer is optimizer
    print(f"{kind.__name__}, {num_groups} groups, at lr=0: {seen}; updates with the one given: {is_given}")
P
OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=${PORT:-29533} \
    timeout 120 venv/bin/python rates.py 2>/dev/null | grep "at lr=0" | tee seen
diff seen - <<'T'
SGD, 1 groups, at lr=0: weights moved by 0.00; updates with the one given: True
SGD, 2 groups, at lr=0: weights moved by 0.00; updates with the one given: True
Adagrad, 1 groups, at lr=0: weights moved by 1.00; updates with the one given: False
Adagrad, 2 groups, at lr=0: IndexError: list index out of range; updates with the one given: False
T
