"""NVIDIA's apex is found by its kernels; fakes stand in for it and for the other package of that name."""

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch

from tests.strategy import scenes
from trainkit.errors import ConfigError
from trainkit.optim import apex
from trainkit.testing import RankError, run_ranks


class FakeLamb(torch.optim.SGD):
    """Takes what apex's takes, and keeps it."""

    def __init__(self, params, **given):
        super().__init__(params, lr=given["lr"])
        self.given = given


def _put_fake_apex(put):
    """put(name, module): into sys.modules."""
    kernels = types.ModuleType("amp_C")
    kernels.__spec__ = importlib.machinery.ModuleSpec("amp_C", None)
    package, optimizers = types.ModuleType("apex"), types.ModuleType("apex.optimizers")
    vars(optimizers)["FusedLAMB"], vars(package)["optimizers"] = FakeLamb, optimizers
    for module in (kernels, package, optimizers):
        put(module.__name__, module)


def test_it_is_made_with_our_arguments(monkeypatch):
    _put_fake_apex(lambda name, module: monkeypatch.setitem(sys.modules, name, module))
    given: dict[str, Any] = {"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-5, "weight_decay": 0.2, "max_grad_norm": 2.0}
    made = apex.fused_lamb([torch.zeros(2)], **given)
    assert isinstance(made, FakeLamb)
    assert made.given == {
        "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.2, "max_grad_norm": 2.0,
        "bias_correction": True, "adam_w_mode": True, "use_nvlamb": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, r"needs NVIDIA's apex, which is not on PyPI\. Type: git clone .*or use optimizer=lamb$"),
        ("0.9.10.dev0", r"apex 0\.9\.10\.dev0 from PyPI is another package, .*Type: pip uninstall apex && git clone"),
        ("0.1", r"apex 0\.1 was installed without them\. Type: pip uninstall apex && git clone"),
    ],
)
def test_what_is_not_it_is_named(monkeypatch, version, told):
    # A package called apex that can be found, whatever it is, is not enough.
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "amp_C", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "amp_C" else object())

    def version_of(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    with pytest.raises(ConfigError, match=told):
        apex.fused_lamb([torch.zeros(2)], lr=0.1)


def _set_up(strategy):
    _put_fake_apex(sys.modules.__setitem__)
    try:
        runtime = scenes.make_runtime(strategy)
        module = scenes.network()
        return runtime.setup(module, apex.fused_lamb(module.parameters(), lr=0.1)).name
    finally:
        for name in ("amp_C", "apex", "apex.optimizers"):
            sys.modules.pop(name)


@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero3"])
def test_parts_of_parameters_are_refused(strategy):
    told = "computes norms of its tensors.* use optimizer=lamb, or strategy=ddp"
    with pytest.raises(RankError, match=told) as caught:
        run_ranks(_set_up, 2, strategy)
    assert caught.value.kind == ConfigError.__name__


def test_whole_parameters_are_not():
    assert run_ranks(_set_up, 2, "ddp") == ["engine0"] * 2
