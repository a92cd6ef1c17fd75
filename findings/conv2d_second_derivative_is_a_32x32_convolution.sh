#!/usr/bin/env bash
# torch 2.13.0, on a CPU with one thread.
#
# A gradient penalty differentiates the gradient of a convolution's input once more, by the weight. A good guess: that is
# a gradient of a weight like any other, so torch computes it by the same kernel as the first one, at the same cost.
# Seen: the first is aten.convolution_backward. The second is aten.convolution with the batch as channels and the output's
# gradient, 32x32 pixels here, as kernel: the same numbers, several times as slowly, since oneDNN is made for small
# kernels. Of [16, 128, 32, 32] images and a 3x3 kernel, 86 ms against 24 (3.6 times) on an AMD EPYC.
# trainkit.ops.convolution computes both alike: trainkit/ops/winograd.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >twice.py <<'P'
import time

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.seen.append((str(function), tuple(args[0].shape), tuple(args[1].shape)))
        return function(*args, **(kwargs or {}))


def best_ms(function):
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


torch.set_num_threads(1)
x = torch.randn(16, 128, 32, 32, requires_grad=True)
weight = torch.randn(128, 128, 3, 3, requires_grad=True)
y = F.conv2d(x, weight, padding=1)
(of_x,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
v = torch.randn_like(of_x)

with Calls() as first:
    torch.autograd.grad(y, weight, y.detach(), retain_graph=True)
print("first derivative by the weight: ", first.seen)
with Calls() as second:
    (seen,) = torch.autograd.grad(of_x, weight, v, retain_graph=True)
print("second derivative by the weight:", second.seen)


def as_the_first():
    # of_x is the transposed convolution of g = 2 y: its derivative by the weight at v, with g held, is a first one.
    g = 2 * y.detach()
    mask = [False, True, False]
    return torch.ops.aten.convolution_backward(g, v, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)[1]


g = (2 * y).detach()
held = torch.nn.grad.conv2d_input(x.shape, weight, g, padding=1)
(part,) = torch.autograd.grad(held, weight, v, retain_graph=True)
assert (part - as_the_first()).abs().max() < 1e-4 * part.abs().max()
slow = best_ms(lambda: torch.autograd.grad(held, weight, v, retain_graph=True))
fast = best_ms(as_the_first)
print(f"the same numbers: {slow:.0f} ms as torch does, {fast:.0f} ms by aten.convolution_backward: {slow / fast:.1f} times")
kernels = [shape for name, _, shape in second.seen if name == "aten.convolution.default"]
raise SystemExit(0 if any(shape[-2:] == (32, 32) for shape in kernels) else "torch computes it otherwise now")
P
venv/bin/python twice.py
