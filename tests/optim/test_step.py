"""An optimizer's step without PyTorch's wrapper: the same bits, and hooks, schedulers and the profiler still see it."""

import copy
import functools
import inspect
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    _use_grad_for_differentiable,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tests.present import present
from trainkit.optim.dynamo import not_imported_by_optimizers
from trainkit.optim.step import step


class _Sign(torch.optim.Optimizer):
    """Of a user's own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()


class _Twice(torch.optim.SGD):
    """Calls the step of its base, which is wrapped too."""

    def step(self, closure=None):
        super().step(closure)
        super().step(closure)


def _with_gradients() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    module(torch.randn(4, 3)).square().sum().backward()
    return module


def _unused(*args, **kwargs):
    raise AssertionError("went through PyTorch's wrapper")


@pytest.mark.parametrize(
    "make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adafactor, _Sign, _Twice]
)
def test_a_direct_step_has_the_same_bits(make, monkeypatch):
    module = _with_gradients()
    other = copy.deepcopy(module)
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        q.grad = present(p.grad).clone()
    optimizer, reference = make(module.parameters()), make(other.parameters())
    for _ in range(3):
        reference.step()
    if make is not _Twice:
        monkeypatch.setattr(torch.autograd.profiler, "record_function", _unused)
    for _ in range(3):
        step(optimizer)
    assert all(map(torch.equal, module.parameters(), other.parameters()))


def test_a_step_of_ones_own_that_wraps_pytorchs_is_called(monkeypatch):
    torch.optim.SGD([torch.zeros(1)])  # PyTorch marks the class when its first instance is made
    as_pytorchs: Any = functools.wraps(torch.optim.SGD.step)

    class Positive(torch.optim.SGD):
        @as_pytorchs
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.clamp_(min=0)

    assert Positive.step.hooked, "`wraps` copies the marks of PyTorch's wrapper"
    module = _with_gradients()
    step(Positive(module.parameters(), lr=1.0))
    assert all((p >= 0).all() for p in module.parameters())

    calls, original = [], torch.optim.SGD.step

    @functools.wraps(original)
    def patched(self, closure=None):
        calls.append(self)
        return original(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", patched)
    optimizer = torch.optim.SGD(module.parameters())
    step(optimizer)
    assert calls == [optimizer]


@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_are_recorded_where_the_optimizer_asks(differentiable):
    module, recorded = _with_gradients(), []

    class Notes(torch.optim.SGD):
        @_use_grad_for_differentiable
        def step(self, closure=None):
            recorded.append(torch.is_grad_enabled())

    optimizer = Notes(module.parameters(), differentiable=differentiable)
    optimizer.step()
    step(optimizer)
    assert recorded == [differentiable] * 2 and torch.is_grad_enabled()


def test_optimizers_are_made_as_usual_once_dynamo_is_there(monkeypatch):
    module, usual, made = _with_gradients(), torch.optim.Optimizer.add_param_group, []

    def disable(function, *_, **__):
        def called(*args):
            made.append(function)
            return function(*args)

        return called

    monkeypatch.setattr("torch._dynamo.disable", disable)
    monkeypatch.delattr(inspect.unwrap(usual), "__dynamo_disable", raising=False)
    with not_imported_by_optimizers():
        assert torch.optim.Optimizer.add_param_group is not usual
        torch.optim.SGD(module.parameters())  # torch._dynamo was imported above
        assert made
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "torch._dynamo")
            assert len(torch.optim.SGD(module.parameters()).param_groups) == 1
            assert "torch._dynamo" not in sys.modules
    assert torch.optim.Optimizer.add_param_group is usual


def test_hooks_are_called():
    module, calls = _with_gradients(), []
    optimizer = torch.optim.SGD(module.parameters())

    def note(name):
        return lambda *args: calls.append(name)

    handles = [optimizer.register_step_pre_hook(note("pre"))]
    step(optimizer)
    handles.append(optimizer.register_step_post_hook(note("post")))
    handles.pop(0).remove()
    step(optimizer)
    handles += [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
    ]
    step(optimizer)
    for handle in handles:
        handle.remove()
    step(optimizer)
    assert calls == ["pre", "post", "global pre", "post", "global post"]


@pytest.mark.parametrize("first", [True, False])
def test_a_scheduler_of_pytorch_sees_the_step(first):
    """PyTorch warns of a scheduler's step before the optimizer's."""
    optimizer = torch.optim.SGD(_with_gradients().parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if first:
            step(optimizer)
        scheduler.step()
    assert [warning for warning in caught if "optimizer.step()" in str(warning.message)] == caught
    assert len(caught) == (0 if first else 1)
    assert scheduler.get_last_lr() == [0.5]


def test_the_profiler_sees_the_step():
    optimizer = torch.optim.SGD(_with_gradients().parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(optimizer)
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}
