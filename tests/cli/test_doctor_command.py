"""`trainkit doctor`: the page, its exit code, and what it names as missing or broken."""

import json
import subprocess
import sys

import pytest
import torch

from tests.jobs import environment
from trainkit.cli import findings
from trainkit.cli.main import main
from trainkit.ops import build, library

PAGE = ("python and torch", "GPUs", "environment", "compilers", "compiled ops", "other libraries", "cache")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A library of one small source in the place of the ops, with a cache of its own."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "one.cpp").write_text('// m.def("an_op(Tensor x) -> Tensor"), m.def("an_op_backward(Tensor x)")\n')
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(build, "CSRC", sources)
    monkeypatch.setattr(build.plan, "__defaults__", (sources,))
    monkeypatch.setattr(library, "HERE", tmp_path / "installed")
    monkeypatch.setattr(library, "_state", library._State())
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "TRAINKIT_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    return sources


def _doctor(capsys, *arguments):
    code = main(["doctor", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _json(capsys, *arguments):
    code, out, _ = _doctor(capsys, "--json", *arguments)
    page = json.loads(out)
    assert tuple(page) == PAGE
    return code, {entry["name"]: entry for section in page.values() for entry in section}


def test_the_page(tiny, capsys):
    code, out, _ = _doctor(capsys)
    assert code == 0
    for title in PAGE:
        assert f"{title}\n" in out
    assert "- library" in out
    assert "→ trainkit doctor --build" in out
    assert sys.executable in out


@pytest.mark.skipif(build.find_cxx() is None, reason="no C++ compiler")
def test_build_and_build_again(tiny, capsys):
    code, out, told = _doctor(capsys, "--build")
    assert code == 0
    (path,) = library.directory().glob(f"*/{build.LIBRARY}")
    assert f"the ops are compiled: {path}" in told
    assert "✓ an_op" in out
    assert "an_op_backward" not in out
    built = path.stat().st_mtime_ns
    _doctor(capsys, "--build")
    assert path.stat().st_mtime_ns == built
    _, page = _json(capsys, "--build", "--force")
    assert path.stat().st_mtime_ns > built
    assert page["library"] == {"name": "library", "value": str(path), "state": "ok", "remedy": ""}
    assert page["an_op"]["value"] == "CPU: compiled; CUDA: plain PyTorch"


def test_what_was_asked_for_and_is_not_there_is_broken(tiny, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    code, page = _json(capsys)
    assert code == 1
    assert page["CUDA_HOME"]["remedy"] == "unset CUDA_HOME"
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, page = _json(capsys)
    assert code == 1
    assert page["C++"]["state"] == "broken"
    assert page["library"]["value"].startswith("none, and no compiler")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("TRAINKIT_CACHE", "/proc/trainkit")
    code, page = _json(capsys)
    assert code == 1
    assert page["directory"]["remedy"] == "export TRAINKIT_CACHE=DIRECTORY"


@pytest.mark.parametrize(
    ("version", "parts", "state", "told"),
    [
        ("0.9.10.dev0", (), "broken", "Pyramid"),
        ("25.9", (), "broken", "without its CUDA extensions"),
        ("25.9", ("amp_C", "fused_layer_norm_cuda"), "ok", "with CUDA extensions"),
        ("", (), "missing", "not installed"),
    ],
)
def test_apex(monkeypatch, version, parts, state, told):
    monkeypatch.setattr(findings, "_version", lambda package: version)
    monkeypatch.setattr(findings, "find_spec", lambda name: name if name in parts else None)
    found = findings._apex()
    assert found.state == state
    assert told in found.value
    assert ("NVIDIA/apex" in found.remedy) == (state != "ok")
    assert found.remedy.startswith("pip uninstall -y apex; ") == version.startswith("0.9")


def test_a_gpu_that_torch_cannot_use_is_broken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(build, "gpu_archs", lambda: ("9.0",))
    monkeypatch.setattr(torch.version, "cuda", None)
    (found,) = findings._gpus()
    assert (found.state, found.remedy) == ("broken", findings.TORCH_WITH_CUDA)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (found,) = findings._gpus()
    assert found.remedy.startswith("update the driver, or choose a torch for an older CUDA than 13.0")


def test_a_library_that_cannot_be_imported_is_broken(monkeypatch):
    def fail():
        raise ModuleNotFoundError("No module named 'platformdirs'")

    monkeypatch.setattr("trainkit.tracking.wandb.has_key", fail)
    found = findings._wandb()
    assert found.state == "broken"
    assert found.value.endswith("cannot be imported: No module named 'platformdirs'")
    assert "wandb" in found.remedy


def test_force_alone_is_an_error(tiny, capsys):
    code, _, told = _doctor(capsys, "--force")
    assert code == 2
    assert "type: trainkit doctor --build --force" in told


def test_a_reader_that_closes_the_pipe_is_no_traceback():
    command = f"{sys.executable} -m trainkit.cli doctor --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), timeout=120)
    assert done.stderr == ""
