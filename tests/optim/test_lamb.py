"""LAMB against a transcription of the paper's formulas in float64."""

import numpy as np
import pytest
import torch

from trainkit.optim import Lamb, lamb

SHAPES = {"matrix": (33, 7), "large": (9, 40), "bias": (7,), "scalar": (), "nothing": (5,), "still": (4, 3), "no": (0,)}
EXCLUDED = ("bias", "nothing")


class Transcription:
    """Algorithm 2 in NumPy, parameter by parameter; `weights` are as they are after the steps so far."""

    def __init__(self, weights, *, lr, betas, eps, decay, clip, corrects):
        self.weights = {name: weight.copy() for name, weight in weights.items()}
        self.m = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.v = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.lr, self.betas, self.eps, self.decay, self.clip, self.corrects = lr, betas, eps, decay, clip, corrects
        self.t, self.ratios = 0, {}

    def step(self, gradients):
        self.t += 1
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        shrink = self.clip / norm if self.clip is not None and norm > self.clip else 1.0
        (b1, b2), t = self.betas, self.t
        for name, w in self.weights.items():
            g, decay = gradients[name] * shrink, 0.0 if name in EXCLUDED else self.decay
            self.m[name] = b1 * self.m[name] + (1 - b1) * g
            self.v[name] = b2 * self.v[name] + (1 - b2) * g**2
            c1, c2 = (1 - b1**t, 1 - b2**t) if self.corrects else (1, 1)
            u = (self.m[name] / c1) / (np.sqrt(self.v[name] / c2) + self.eps) + decay * w
            size, length = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
            self.ratios[name] = size / length if decay and size > 0 and length > 0 else 1.0
            self.weights[name] = w - self.lr * self.ratios[name] * u


def _start():
    drawn = np.random.default_rng(0)
    weights = {name: np.asarray(drawn.normal(size=shape)) for name, shape in SHAPES.items()}
    weights["matrix"] *= 30
    weights["nothing"] *= 0  # has no weight decay: moves with ratio 1
    weights["still"] *= 0  # has, and no gradient either: both norms are 0
    gradients = [
        {name: np.asarray(drawn.normal(size=shape)) * 10.0 ** (i % 5 - 3) for name, shape in SHAPES.items()}
        for i in range(20)
    ]
    for gradient in gradients:
        gradient["still"] *= 0
    return weights, gradients


def _groups(params, **decay):
    return [
        {"params": [p for name, p in params.items() if name not in EXCLUDED], **decay},
        {"params": [params[name] for name in EXCLUDED], "weight_decay": 0.0},
    ]


def _run(dtype, clip, corrects, **given):
    weights, gradients = _start()
    hyper = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6}
    oracle = Transcription(weights, **hyper, decay=0.05, clip=clip, corrects=corrects)
    params = {name: torch.nn.Parameter(torch.tensor(weight, dtype=dtype)) for name, weight in weights.items()}
    optimizer = Lamb(_groups(params), **hyper, weight_decay=0.05, clip=clip, bias_correction=corrects, **given)
    worst = 0.0
    for gradient in gradients:
        oracle.step(gradient)
        for name, p in params.items():
            p.grad = torch.tensor(gradient[name], dtype=dtype)
        optimizer.step()
        for name, weight in oracle.weights.items():
            apart = np.abs(params[name].detach().double().numpy() - weight).max(initial=0.0)
            worst = max(worst, apart / max(np.abs(weight).max(initial=0.0), 1e-2))
    return worst, oracle, params


@pytest.mark.parametrize("block", [2**16, 64])
@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("clip", [1.0, 1e-3, None])
@pytest.mark.parametrize(("dtype", "goal"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_twenty_steps_are_those_of_the_paper(monkeypatch, dtype, goal, clip, corrects, block):
    monkeypatch.setattr(lamb, "_BLOCK", block)
    worst, oracle, params = _run(dtype, clip, corrects)
    assert worst < goal
    assert not params["still"].any()
    assert params["nothing"].all()
    assert oracle.ratios["matrix"] > 3
    assert oracle.ratios["bias"] == oracle.ratios["still"] == 1.0
