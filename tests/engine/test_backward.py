"""PyTorch's engine called directly: the gradients and errors of `loss.backward()`, which other losses still call."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode

from tests.present import present
from trainkit.engine.backward import run_backward


def _module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def _loss(module: nn.Module) -> Tensor:
    return module(torch.linspace(-1, 1, 20).view(5, 4)).square().mean()


def _gradients(module: nn.Module) -> list[Tensor]:
    return [present(p.grad) for p in module.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_have_the_same_bits_and_add_up(dtype):
    module, other = _module(), _module()
    for _ in range(2):
        run_backward(_loss(module).to(dtype))
        _loss(other).to(dtype).backward()
    assert all(map(torch.equal, _gradients(module), _gradients(other)))


def test_hooks_and_the_clean_up_of_the_graph_stay():
    module, seen = _module(), []
    module.get_parameter("0.weight").register_hook(lambda gradient: seen.append("tensor"))
    module[0].register_full_backward_hook(lambda *args: seen.append("module"))
    module.get_parameter("0.weight").register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    loss = _loss(module)
    run_backward(loss)
    assert sorted(seen) == ["accumulated", "module", "tensor"]
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        run_backward(loss)


def test_a_gradient_is_nobody_elses():
    parameter = nn.Parameter(torch.ones(1))
    for _ in range(2):
        run_backward(parameter.view(()))
        assert present(parameter.grad).item() == 1
        present(parameter.grad).mul_(0.5)  # as clipping does
        parameter.grad = None


def test_a_patched_backward_is_called(monkeypatch):
    calls, original = [], Tensor.backward

    def patched(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", patched)
    loss = _loss(_module())
    run_backward(loss)
    assert len(calls) == 1 and calls[0] is loss


class _Seen(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


class _Own(Tensor):
    pass


def test_what_overrides_backward_is_called(monkeypatch):
    with _Seen() as seen:
        run_backward(_loss(_module()))
    assert "backward" in seen.names
    monkeypatch.setattr(Variable, "_execution_engine", None)
    module = _module()
    calls = []
    monkeypatch.setattr(Tensor, "backward", lambda self: calls.append(type(self)))
    run_backward(_loss(module).as_subclass(_Own))
    assert calls == [_Own]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_gradients():
    module, other = _module().cuda(), _module().cuda()
    x = torch.linspace(-1, 1, 20, device="cuda").view(5, 4)
    run_backward(module(x).square().mean())
    other(x).square().mean().backward()
    assert all(map(torch.equal, _gradients(module), _gradients(other)))
