"""LAMB against a transcription of the paper's formulas in float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from trainkit.errors import ConfigError, UsageError
from trainkit.ops import mode, optimizer
from trainkit.ops.bits import pack_bits
from trainkit.optim import AdamW, Lamb, lamb

SHAPES = {"matrix": (33, 7), "large": (9, 40), "bias": (7,), "scalar": (), "nothing": (5,), "still": (4, 3), "no": (0,)}
EXCLUDED = ("bias", "nothing")


class Transcription:
    """Algorithm 2 in NumPy, parameter by parameter; `weights` are as they are after the steps so far."""

    def __init__(self, weights, *, lr, betas, eps, decay, max_grad_norm, corrects):
        self.weights = {name: weight.copy() for name, weight in weights.items()}
        self.m = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.v = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.lr, self.betas, self.eps, self.decay, self.max_grad_norm, self.corrects = (
            lr,
            betas,
            eps,
            decay,
            max_grad_norm,
            corrects,
        )
        self.t, self.ratios = 0, {}

    def step(self, gradients):
        self.t += 1
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        shrink = self.max_grad_norm / norm if self.max_grad_norm is not None and norm > self.max_grad_norm else 1.0
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


def _run(dtype, max_grad_norm, corrects, device="cpu"):
    weights, gradients = _start()
    hyper: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6}
    oracle = Transcription(weights, **hyper, decay=0.05, max_grad_norm=max_grad_norm, corrects=corrects)
    params = {
        name: torch.nn.Parameter(torch.tensor(weight, dtype=dtype, device=device)) for name, weight in weights.items()
    }
    optimizer = Lamb(_groups(params), **hyper, weight_decay=0.05, max_grad_norm=max_grad_norm, bias_correction=corrects)
    worst = 0.0
    for gradient in gradients:
        oracle.step(gradient)
        for name, p in params.items():
            p.grad = torch.tensor(gradient[name], dtype=dtype, device=device)
        optimizer.step()
        for name, weight in oracle.weights.items():
            apart = np.abs(params[name].detach().double().cpu().numpy() - weight).max(initial=0.0)
            worst = max(worst, apart / max(np.abs(weight).max(initial=0.0), 1e-2))
    return worst, oracle, params


@pytest.fixture(params=["reference", "fused"])
def kernels(request):
    mode.use(request.param)
    yield request.param
    mode.use("fused")


@pytest.mark.parametrize("block", [2**16, 64])
@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("max_grad_norm", [1.0, 1e-3, None])
@pytest.mark.parametrize(("dtype", "goal"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_twenty_steps_are_those_of_the_paper(monkeypatch, kernels, dtype, goal, max_grad_norm, corrects, block):
    monkeypatch.setattr(lamb, "_CHUNK", block)
    worst, oracle, params = _run(dtype, max_grad_norm, corrects)
    assert worst < goal
    assert not params["still"].any()
    assert params["nothing"].all()
    assert oracle.ratios["matrix"] > 3
    assert oracle.ratios["bias"] == oracle.ratios["still"] == 1.0


def _parameters(device="cpu"):
    generator = torch.Generator().manual_seed(3)
    shapes = [(40, 70), (13,), (150, 121)]  # the last one has more than a chunk of the kernels
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


def _give_gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device)


OPTIMIZERS = {
    "lamb": lambda params: Lamb(params, lr=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_are_zero_from_the_start(kernels, name):
    params = _parameters()
    masks = {p: torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) < 0.5 for i, p in enumerate(params)}
    del masks[params[1]]
    made = OPTIMIZERS[name](params)
    made.set_masks({p: pack_bits(mask) for p, mask in masks.items()})
    for step in range(4):
        for p, mask in masks.items():
            assert torch.equal(p != 0, mask)
        _give_gradients(params, step)
        made.step()
    made.set_masks({})
    _give_gradients(params, 9)
    made.step()
    assert all((p != 0).all() for p in params)


def test_what_is_masked_is_not_there(kernels):
    """The rest moves as if it were the whole parameter, though gradients and moments of what is masked go on."""
    (whole,) = _parameters()[2:]
    mask = torch.rand(whole.shape, generator=torch.Generator().manual_seed(5)) < 0.3
    rest = torch.nn.Parameter(whole.detach()[mask].clone())
    masked, alone = Lamb([whole], lr=0.01, max_grad_norm=None), Lamb([rest], lr=0.01, max_grad_norm=None)
    masked.set_masks({whole: pack_bits(mask)})
    for step in range(5):
        _give_gradients([whole], step)
        rest.grad = whole.grad[mask].clone()
        masked.step()
        alone.step()
        torch.testing.assert_close(whole.detach()[mask], rest.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_are_the_weights_rounded(kernels, name):
    params = _parameters()
    copies = {p: torch.zeros(p.shape, dtype=torch.bfloat16) for p in (params[0], params[2])}
    made = OPTIMIZERS[name](params)
    made.set_copies(copies)
    made.set_masks({params[0]: pack_bits(params[0] > 0)})
    for step in range(3):
        _give_gradients(params, step)
        made.step()
        for p, rounded in copies.items():
            assert torch.equal(rounded, p.detach().bfloat16())


def test_kernels_are_their_reference_on_views():
    """Pieces that begin anywhere, as in a flat partition; what lies beside them stays."""
    generator = torch.Generator().manual_seed(0)
    flats = [torch.rand(40_000, generator=generator) + 0.05 for _ in range(4)]
    sizes, found = ((1, 17_001), (17_010, 7), (17_020, 0), (17_030, 16_384)), {}
    mode.use("fused")
    for dtype in (torch.float64, torch.float32):  # the kernels take float32 only
        mine = [flat.to(dtype, copy=True) for flat in flats]
        params = [torch.nn.Parameter(mine[0][start : start + num]) for start, num in sizes]
        made = Lamb(params, lr=0.1, weight_decay=0.2)
        for p, (start, num) in zip(params, sizes, strict=True):
            p.grad = mine[1][start : start + num]
            moments = {"exp_avg": mine[2][start : start + num], "exp_avg_sq": mine[3][start : start + num]}
            made.state[p] = {"step": torch.tensor(6.0), **moments}
        made.set_masks({params[0]: pack_bits(params[0] > 0.3), params[1]: pack_bits(params[1] > 0.5)})
        made.step()
        found[dtype] = mine
    for i, (ours, reference, before) in enumerate(zip(found[torch.float32], found[torch.float64], flats, strict=True)):
        torch.testing.assert_close(ours.double(), reference, rtol=0, atol=1e-6)
        assert torch.equal(ours, before) == (i == 1)
        assert torch.equal(ours[33_414:], before[33_414:])
        assert torch.equal(ours[17_017:17_030], before[17_017:17_030])
        assert ours[0] == before[0]


def test_the_ops_are_declared_as_they_are():
    mode.use("fused")
    p, g, m, v = (torch.rand(30, generator=torch.Generator().manual_seed(i)) for i in range(4))
    none, hyper = torch.empty(0, dtype=torch.uint8), torch.tensor([[0.1, 0.9, 0.01, 0.99, 1.0, 1e-6, 0.1, 0.1]])
    given = ([p], [g], [m], [v], [none], hyper.double(), None)
    torch.library.opcheck(torch.ops.trainkit.lamb_moments_.default, given)
    squares = torch.ops.trainkit.lamb_moments_(*given)
    torch.library.opcheck(
        torch.ops.trainkit.lamb_apply_.default, ([p], [m], [v], [none], [none], hyper.double(), squares)
    )
    tensors = optimizer.LambTensors([p], [m[:5]], [v], [none], [none], hyper.double())
    with pytest.raises(RuntimeError, match="exp_avg have other sizes than the weights"):
        optimizer.lamb_moments_(tensors, [g], None)


def test_state_comes_back_from_a_checkpoint():
    params = _parameters()
    made = Lamb(params, lr=0.01)
    for step in range(3):
        _give_gradients(params, step)
        made.step()
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = Lamb(again, lr=0.01)
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))  # torch would share the tensors
    assert [int(resumed.state[p]["step"]) for p in again] == [3, 3, 3]
    for each, one in ((params, made), (again, resumed)):
        _give_gradients(each, 7)
        one.step()
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"lr": -1.0}, r"optimizer\.lr=-1\.0: must be 0 or more"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, r"optimizer\.betas=\(0\.9, 1\.0\): must be two numbers"),
        ({"lr": 0.1, "max_grad_norm": 0.0}, r"optimizer\.max_grad_norm=0\.0: must be a norm above 0, or null"),
        ({"lr": 0.1, "weight_decay": -0.1}, r"optimizer\.weight_decay=-0\.1: must be 0 or more"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        Lamb(_parameters(), **arguments)


def test_a_mask_or_copy_that_does_not_fit_is_refused():
    params = _parameters()
    made = Lamb(params[:2], lr=0.1)
    with pytest.raises(UsageError, match=r"Lamb does not hold a parameter of shape \[150, 121\]"):
        made.set_masks({params[2]: pack_bits(params[2] > 0)})
    with pytest.raises(UsageError, match=r"uint8 \[350\] for 2800 elements"):
        made.set_masks({params[0]: pack_bits(params[2] > 0)})
    with pytest.raises(UsageError, match=r"is \[3\] on cpu, and must be \[13\] on cpu"):
        made.set_copies({params[1]: torch.zeros(3)})


def _masked_steps(device):
    params = _parameters(device)
    copies = {p: torch.zeros(p.shape, dtype=torch.bfloat16, device=device) for p in params}
    made = Lamb(params, lr=0.01)
    made.set_copies(copies)
    made.set_masks({p: pack_bits(p > -0.5) for p in params[::2]})
    for step in range(5):
        _give_gradients(params, step)
        made.step()
    return [tensor.detach().cpu().float() for tensor in (*params, *copies.values())]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_takes_the_same_steps(kernels):
    for max_grad_norm in (1.0, None):
        assert _run(torch.float32, max_grad_norm, True, "cuda")[0] < 1e-6
        assert _run(torch.float64, max_grad_norm, True, "cuda")[0] < 1e-12
    for on_gpu, on_cpu in zip(_masked_steps("cuda"), _masked_steps("cpu"), strict=True):
        assert torch.equal(on_gpu == 0, on_cpu == 0)
        torch.testing.assert_close(on_gpu, on_cpu, rtol=2**-7, atol=1e-6)
