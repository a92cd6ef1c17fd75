"""Which ops run compiled: asked for, off by default, missing; and inside of torch.compile."""

from pathlib import Path

import pytest
import torch

from trainkit.errors import ConfigError
from trainkit.ops import Ops, library, mode


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(mode, "_fused", True)
    monkeypatch.setattr(mode, "_require", False)


@pytest.fixture
def built(monkeypatch):
    """A library with CUDA kernels for 9.0 alone."""
    found = library.Library(Path("x"), {"archs": ["9.0"]})
    monkeypatch.setattr(library, "load", lambda require=False: found)
    monkeypatch.setattr(library, "_state", library._State())
    return found


def test_reference_is_asked_for(built):
    x = torch.zeros(2)
    assert mode.is_fused("an_op", x)
    mode.use("reference")
    assert not mode.is_fused("an_op", x)
    mode.use("fused")
    assert mode.is_fused("an_op", x)
    with pytest.raises(ConfigError, match="ops=quick: must be fused or reference"):
        mode.use("quick")  # type: ignore[arg-type]


def test_what_was_measured_slower_is_off(built, monkeypatch):
    monkeypatch.setitem(mode.OFF_BY_DEFAULT, "cpu", frozenset({"slow_op"}))
    assert not mode.is_fused("slow_op", torch.zeros(2))
    assert mode.is_fused("slow_op", torch.zeros(2, device="meta"))


def test_a_compiled_function_follows_the_mode(built, monkeypatch):
    @torch.compile(fullgraph=True, backend="eager")
    def chosen(x):
        return x + 1 if mode.is_fused("an_op", x) else x - 1

    x = torch.zeros(2)
    assert chosen(x)[0] == 1
    mode.use("reference")
    assert chosen(x)[0] == -1
    mode.use("fused")
    monkeypatch.setitem(mode.OFF_BY_DEFAULT, "cpu", frozenset({"an_op"}))
    assert chosen(x)[0] == -1


def test_the_first_to_ask_may_be_traced(monkeypatch):
    """Building and loading happen outside of the trace."""
    asked = []
    monkeypatch.setattr(library, "load", lambda require=False: asked.append(torch.compiler.is_dynamo_compiling()))

    @torch.compile(fullgraph=True, backend="eager")
    def chosen(x):
        return x + 1 if mode.is_fused("an_op", x) else x - 1

    assert chosen(torch.zeros(2))[0] == -1
    assert asked == [False]


@pytest.mark.parametrize(
    ("archs", "capability", "told"),
    [
        (["9.0"], (9, 0), None),
        (["9.0"], (8, 0), r"compiled for CUDA 9\.0, and this GPU is 8\.0.*TRAINKIT_CUDA_ARCHS=8\.0 trainkit doctor"),
        ([], (9, 0), r"compiled without nvcc, and this GPU is 9\.0; install the CUDA toolkit, then type: .* --build"),
    ],
)
def test_a_gpu_without_kernels_is_one_warning_or_an_error(built, monkeypatch, capsys, archs, capability, told):
    built.description["archs"] = archs
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert mode._is_ready("cuda", False) is (told is None)
    assert mode._is_ready("cuda", False) is (told is None)
    assert len(capsys.readouterr().err.splitlines()) == (told is not None)
    if told:
        with pytest.raises(ConfigError, match=rf"^ops\.require=true: the ops were {told}"):
            mode._is_ready("cuda", True)


def test_other_devices_run_references(built, capsys):
    assert not mode._is_ready("mps", False)
    assert "kernels for CPU and CUDA, not for mps; type: ops=reference" in capsys.readouterr().err


def test_what_cannot_be_asked_for():
    with pytest.raises(ConfigError, match=r"ops\.kernels='fussed': must be one of fused, reference.*'fused'"):
        Ops(kernels="fussed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ops\.require=true: ops\.kernels=reference compiles nothing"):
        Ops(kernels="reference", require=True)
