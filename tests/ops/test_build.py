"""The library of ops: built once by many, after a killed build, again when stale, and loudly not at all."""

import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.present import present
from trainkit.errors import ConfigError
from trainkit.ops import build, library
from trainkit.testing import run_ranks

ROOT = Path(__file__).parents[2]
CXX = build.find_cxx()
pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler")
COMPILER = """\
#!/bin/sh
# Notes what it compiles; waits while there is a file `hang`.
here="$(dirname "$0")"
case " $* " in *" -c "*)
  echo "$$ $*" >> "$here/log"
  while [ -e "$here/hang" ]; do sleep 0.05; done
  sleep 0.2
esac
exec {cxx} "$@"
"""
NVCC = """\
#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 99.9" ;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\n' ;;
  *) echo "warning: not this"; echo "tiny.cu(1): error: no such thing"; exit 1 ;;
esac
"""

BUILDER = """\
import pathlib, sys
from trainkit.ops import build, library
library.ensure(build.plan(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A directory with two small sources, a compiler that keeps a log beside it, and a cache of its own."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    for name in ("one", "two"):
        (sources / f"{name}.cpp").write_text(f'#include "tiny.h"\nextern "C" int tk_{name}() {{ return NUMBER; }}\n')
    (sources / "tiny.h").write_text("#define NUMBER 1\n")
    compiler = _script(tmp_path / "cxx", COMPILER.format(cxx=" ".join(present(CXX))))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    return sources


@pytest.fixture
def alone(tiny, tmp_path, monkeypatch):
    """`tiny` in the place of the real sources, nothing loaded, nothing installed."""
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(build, "CSRC", tiny)
    monkeypatch.setattr(build.plan, "__defaults__", (tiny,))
    monkeypatch.setattr(library, "HERE", tmp_path / "installed")
    monkeypatch.setattr(library, "_state", library._State())
    return tiny


def _script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def _compiled(sources):
    """Names of the sources that the compiler was called for."""
    log = sources.parent / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return sorted(Path(line.split(" -c ")[1].split()[0]).name for line in lines)


def _ensure_on_a_rank(sources, variables):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return str(library.ensure(build.plan(sources)))


# -- who builds --------------------------------------------------------------------------------------------------------


def test_four_ranks_at_once_build_once(tiny):
    variables = {name: os.environ[name] for name in ("CXX", "TRAINKIT_CACHE")}
    paths = run_ranks(_ensure_on_a_rank, 4, tiny, variables)
    assert len(set(paths)) == 1
    assert Path(paths[0]).is_file()
    assert _compiled(tiny) == ["one.cpp", "two.cpp"]


def test_a_killed_build_does_not_block_the_next(tiny):
    hang = tiny.parent / "hang"
    hang.touch()
    builder = subprocess.Popen([sys.executable, "-c", BUILDER, str(tiny)])
    deadline = time.monotonic() + 60
    while not _compiled(tiny):
        assert time.monotonic() < deadline and builder.poll() is None
        time.sleep(0.05)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    (left,) = library.directory().glob(".*-*")
    assert list(left.iterdir())
    hang.unlink()
    started = time.monotonic()
    assert library.ensure(build.plan(tiny)).is_file()
    assert time.monotonic() - started < 30
    assert not left.exists()


def test_who_waits_says_so_once(tiny, capsys, monkeypatch):
    monkeypatch.setattr(library, "PATIENCE_S", 0.1)
    monkeypatch.setattr(library, "PROGRESS_EVERY_S", 0.0)
    plan = build.plan(tiny)
    library.directory().mkdir(parents=True)
    path = library.directory() / f"{plan.key}.lock"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=library.ensure, args=(plan,))
        waiting.start()
        waiting.join(0.6)
        assert waiting.is_alive()
        assert not _compiled(tiny)
    waiting.join(30)
    assert _compiled(tiny) == ["one.cpp", "two.cpp"]
    told = capsys.readouterr().err
    assert told.count("another process compiles the ops; waiting") == 1
    assert str(path) in told
    assert "compiling 2 files of ops for CPU, once ..." in told
    assert "compiled 1 of 2 files of ops" in told


# -- what makes a library stale ----------------------------------------------------------------------------------------


def test_a_change_builds_anew_and_what_was_built_is_found(tiny):
    first = library.ensure(build.plan(tiny))
    assert library.ensure(build.plan(tiny)) == first
    assert len(_compiled(tiny)) == 2
    (tiny / "tiny.h").write_text("#define NUMBER 2\n")
    second = library.ensure(build.plan(tiny))
    assert second != first
    assert len(_compiled(tiny)) == 4
    assert library.ensure(build.plan(tiny), again=True) == second
    assert len(_compiled(tiny)) == 6


def test_the_key_holds_what_the_result_depends_on(tiny):
    plan = build.plan(tiny)
    others = [
        replace(plan, torch=replace(plan.torch, version="9.9.9")),
        replace(plan, cxx_version="another"),
        replace(plan, nvcc="nvcc", nvcc_version="release 13.0", archs=("9.0",)),
        replace(plan, nvcc="nvcc", nvcc_version="release 13.0", archs=("8.0", "9.0")),
        replace(plan, nvcc="nvcc", nvcc_version="release 12.9", archs=("9.0",)),
    ]
    assert len({plan.key, *(other.key for other in others)}) == 1 + len(others)


def test_an_installed_library_is_used_while_it_fits(alone, monkeypatch):
    plan = build.plan()
    installed = build.compile_into(plan, library.HERE)
    assert build.is_built(plan, library.HERE)
    assert present(library.find(plan)).path == installed
    assert present(library.find(None)).path == installed  # where there is no compiler
    flags = build.cpu_flags()
    monkeypatch.setattr(build, "cpu_flags", lambda: (*flags, "an_instruction_more"))
    assert present(library.find(None)).path == installed
    monkeypatch.setattr(build, "cpu_flags", lambda: flags[1:])
    assert library.find(None) is None
    monkeypatch.setattr(build, "cpu_flags", lambda: flags)
    assert library.find(replace(plan, archs=("9.0",))) is None  # this one has no CUDA
    (alone / "one.cpp").write_text('extern "C" int tk_one() { return 3; }\n')
    assert library.find(None) is None


def test_without_a_compiler_the_cache_is_searched(alone, monkeypatch):
    path = library.ensure(build.plan())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert present(library.load(require=True)).path == path
    assert library.is_available()


# -- whose library it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_library_built_under_any_umask_is_loaded_again(alone, umask):
    before = os.umask(umask)
    try:
        path = library.ensure(build.plan())
    finally:
        os.umask(before)
    assert present(library.find(build.plan())).path == path
    assert [part.stat().st_mode & 0o777 for part in (path.parent, path, path.with_name(build.DESCRIPTION))] == [
        0o755,
        0o755,
        0o644,
    ]


@pytest.mark.parametrize("without_compiler", [False, True])
def test_a_library_of_another_user_is_refused(alone, monkeypatch, without_compiler):
    path = library.ensure(build.plan())
    if without_compiler:
        monkeypatch.setenv("CXX", "no-such-compiler")
    path.chmod(0o775)
    with pytest.raises(ConfigError, match=rf"in {path.parent} can be written by other users \(mode 775\).*type: rm -r"):
        library.load()
    path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, 4321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(ConfigError, match=r"belong to another user \(uid \d+\).*type: export TRAINKIT_CACHE=DIRECTORY"):
        library.load()
    if not without_compiler:
        with pytest.raises(ConfigError, match="belong to another user"):
            library.ensure(build.plan())
    assert not library.is_available()


# -- what cannot be built ----------------------------------------------------------------------------------------------


def test_no_compiler_is_one_warning_or_an_error(alone, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.load() is None
    assert library.load() is None
    assert not library.is_available()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no C++ compiler was found (no-such-compiler); type: apt-get install g++" in warning
    with pytest.raises(ConfigError, match=r"^ops\.require=true: .*type: apt-get install g\+\+"):
        library.load(require=True)


def test_source_that_does_not_compile_leaves_nothing(alone):
    (alone / "one.cpp").write_text("int one() { return missing; }\n")
    with pytest.raises(ConfigError, match=r"this command failed:\n  .*cxx .*one\.cpp(?s:.*)error: .*missing"):
        library.load()
    assert not [path for path in library.directory().iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(("num_signals", "is_built"), [(build.MAX_SIGNALS, True), (build.MAX_SIGNALS + 1, False)])
def test_a_signal_to_the_process_group_leaves_the_build(tmp_path, num_signals, is_built):
    script = f'echo >> log; [ "$(wc -l < log)" -gt {num_signals} ] || kill -TERM $$; touch built'
    compiler = ["sh", "-c", f"cd {tmp_path}; {script}"]
    if is_built:
        build._run(compiler, tmp_path)
    else:
        with pytest.raises(build.BuildError, match="this command failed"):
            build._run(compiler, tmp_path)
    assert (tmp_path / "built").exists() == is_built


def test_a_missing_symbol_is_an_error_of_the_build(tiny):
    (tiny / "one.cpp").write_text('int nowhere();\nextern "C" int tk_one() { return nowhere(); }\n')
    with pytest.raises(ConfigError, match=r"undefined reference to .nowhere"):
        library.ensure(build.plan(tiny))


def test_nvcc_that_fails_is_loud(alone, tmp_path, monkeypatch):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = _script(home / "bin" / "nvcc", NVCC)
    monkeypatch.setenv("CUDA_HOME", str(home))
    found = build.find_torch()
    monkeypatch.setattr(build, "find_torch", lambda: replace(found, cuda="13.0"))
    (alone / "tiny.cu").write_text("nonsense\n")
    assert build.plan().archs == ("8.0", "9.0")
    with pytest.raises(ConfigError) as error:
        library.load()
    told = str(error.value).splitlines()
    assert told[1].startswith(f"  {nvcc} ")
    assert told[2] == "tiny.cu(1): error: no such thing"
    assert told[3] == "to build without CUDA, type: export TRAINKIT_CUDA_ARCHS=none"
    monkeypatch.setenv("TRAINKIT_CUDA_ARCHS", "none")
    assert present(library.load()).archs == []


def test_a_cpu_build_of_torch_gets_cuda_only_when_asked(alone, tmp_path, monkeypatch):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    _script(home / "bin" / "nvcc", NVCC)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.delenv("TRAINKIT_CUDA_ARCHS", raising=False)
    (alone / "tiny.cu").write_text("nonsense\n")
    found = build.find_torch()
    assert found.cuda == torch.version.cuda
    monkeypatch.setattr(build, "find_torch", lambda: replace(found, cuda=None))
    assert build.plan().nvcc is None
    assert present(library.load()).archs == []
    monkeypatch.setenv("TRAINKIT_CUDA_ARCHS", "9.0")
    assert build.plan().archs == ("9.0",)
    monkeypatch.delenv("TRAINKIT_CUDA_ARCHS")
    monkeypatch.setattr(build, "find_torch", lambda: replace(found, cuda="13.0"))
    assert build.plan().archs == ("8.0", "9.0")


def test_the_version_of_cuda_is_read_without_importing_torch(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    version = "__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = {}\ngit_version = 'a'\n"
    for stored, expected in (("None", None), ("'13.0'", "13.0")):
        (tmp_path / "torch" / "version.py").write_text(version.format(stored))
        assert build.find_torch() == build.Torch(tmp_path / "torch", "2.13.0", expected)


def test_a_wheel_without_compiled_ops_says_so_in_its_name(tmp_path):
    left_out = shutil.ignore_patterns(".*", "runs", "tests", "benchmarks", "build", "dist", "libtrainkit_ops.*")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=left_out)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path / "dist")]
    environment = {**os.environ, "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the ops are not compiled now, but by their first use: no C++ compiler" in done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-0nocompiledops-py3-none-any.whl")
    _require_whole(wheel, tmp_path / "installed")


IN_A_WHEEL = """\
import trainkit
from trainkit.config import build_partial, check, compose
from trainkit.training.trust import require_ours

for name in ("bert", "progressive_gan"):
    config = compose([f"recipe={name}"])
    require_ours(config)
    made = build_partial(check(config)["recipe"]).func
    print(made.__module__, trainkit.__version__)
"""


def _require_whole(wheel, installed):
    """A wheel has the recipes under a name that is trainkit's, conf/ and what its metadata say."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    top = {path.name for path in installed.iterdir()}
    assert top == {"trainkit", "trainkit_recipes", "trainkit-0.1.0.dist-info"}
    about = (installed / "trainkit-0.1.0.dist-info" / "METADATA").read_text()
    assert "Requires-Dist: torch>=2.11\n" in about and "Provides-Extra: deepspeed\n" in about
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", IN_A_WHEEL]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        *("trainkit_recipes.bert.pretrain", "0.1.0"),
        *("trainkit_recipes.progressive_gan.train", "0.1.0"),
    ], done.stderr
    command = [sys.executable, "-P", "-m", "trainkit_recipes.bert.fill", "--help"]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert "python -m trainkit_recipes.bert.fill" in done.stdout, done.stderr


def test_recipes_have_one_name():
    command = [sys.executable, "-m", "recipes.bert.fill", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the folder recipes/ is imported as trainkit_recipes: python -m trainkit_recipes.bert.fill" in done.stderr


@pytest.mark.parametrize("cause", ["unwritable", "full"])
def test_a_cache_that_cannot_take_it_is_named(tiny, monkeypatch, cause):
    if cause == "unwritable":
        monkeypatch.setenv("TRAINKIT_CACHE", "/proc/trainkit")
    else:
        (tiny / "one.cpp").write_text("#error No space left on device\n")
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"cannot be built into .*; set TRAINKIT_CACHE=DIRECTORY"):
        library.ensure(build.plan(tiny))


# -- CUDA architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"),
    [
        ((), None, ("8.0", "9.0", "10.0")),
        (("8.6",), None, ("8.6",)),
        (("8.0", "9.0"), None, ("8.0", "9.0")),
        (("13.0",), None, ("12.0",)),  # newer than this nvcc: its driver compiles the PTX
        (("9.0",), "8.0,8.6", ("8.0", "8.6")),
        ((), "8.0; 9.0", ("8.0", "9.0")),
    ],
)
def test_architectures(monkeypatch, gpus, asked, expected):
    monkeypatch.setattr(build, "_known_archs", lambda nvcc: ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0"))
    monkeypatch.setattr(build, "gpu_archs", lambda: gpus)
    monkeypatch.setenv("TRAINKIT_CUDA_ARCHS", asked or "")
    archs = build.cuda_archs("nvcc")
    assert archs == expected
    codes = [arch.replace(".", "") for arch in archs]
    targets = [flag for flag in build.nvcc_flags(archs) if flag.startswith("-gencode")]
    assert targets[:-1] == [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    assert targets[-1] == f"-gencode=arch=compute_{codes[-1]},code=compute_{codes[-1]}"


def test_an_architecture_that_nvcc_does_not_know(monkeypatch):
    monkeypatch.setattr(build, "_known_archs", lambda nvcc: ("8.0", "9.0"))
    monkeypatch.setenv("TRAINKIT_CUDA_ARCHS", "sm_90,9.0")
    with pytest.raises(
        build.BuildError, match=r"TRAINKIT_CUDA_ARCHS=sm_90,9\.0: .*for sm_90; it must be of 8\.0, 9\.0"
    ):
        build.cuda_archs("nvcc")


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0", "9.0"], (8, 0), True),
        (["8.0", "9.0"], (8, 6), True),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0"], (12, 0), True),  # PTX of 9.0
        (["8.0", "9.0"], (7, 5), False),
        (["10.0"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_which_gpus_a_library_runs_on(archs, capability, runs):
    assert library.Library(Path("x"), {"archs": archs}).runs_on(capability) is runs
