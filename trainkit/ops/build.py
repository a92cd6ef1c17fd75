"""Build: the compilation of a library of ops, its commands and the key of its cache entry.

setup.py runs this file by its path, where neither trainkit nor torch may be importable: only the standard library is
imported, and only torch's directory is needed.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

CSRC = Path(__file__).parent / "csrc"
LIBRARY = "libtrainkit_ops.so"
DESCRIPTION = "libtrainkit_ops.json"
ARCHS_VARIABLE = "TRAINKIT_CUDA_ARCHS"
NO_ARCHS = "none"
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")
ERROR_LINES = 12
MAX_SIGNALS = 2
"""Signals that may end a compiler before the build fails: a scheduler may warn twice."""
QUERY_TIMEOUT_S = 20.0

Progress = Callable[[int, int], None]
"""Called with the number of finished objects, and of all objects."""


class BuildError(RuntimeError):
    """A build that failed or cannot start; the message says what to do."""


class MissingError(BuildError):
    """A requirement of the build is missing: torch, or a C++ compiler."""


class NoCompilerError(MissingError):
    """There is no C++ compiler."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, which need not be imported.

    Args:
        directory: of the package.
        version: its version.
        cuda: the CUDA version that it was built for; None: a CPU build.
    """

    directory: Path
    version: str
    cuda: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a library depends on.

    Args:
        directory: of the sources.
        sources: the files to compile.
        headers: the files that they may include.
        torch: the torch that the library is built for.
        cxx: the words of the C++ compiler's command.
        cxx_version: its version.
        nvcc: the path of nvcc; None: no CUDA kernels are compiled.
        nvcc_version: its version.
        archs: compute capabilities to compile for, such as ("9.0",).
    """

    directory: Path
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    torch: Torch
    cxx: tuple[str, ...]
    cxx_version: str
    nvcc: str | None
    nvcc_version: str | None
    archs: tuple[str, ...]

    @property
    def host(self) -> str:
        """The compiler among the words of $CXX, such as g++ in `ccache g++ -m64`."""
        return [word for word in self.cxx if not word.startswith("-")][-1]

    @property
    def key(self) -> str:
        """The name of the library's directory in the cache."""
        return _digest(self.description)[:32]

    @property
    def description(self) -> dict[str, Any]:
        """The JSON stored beside the library."""
        names = re.findall(r'\bdef\(\s*"(\w+)\(', "".join(p.read_text() for p in self.sources if p.suffix == ".cpp"))
        return {
            **needs(self.directory, self.torch),
            "cxx": f"{shlex.join(self.cxx)}: {self.cxx_version}",
            "nvcc": self.nvcc_version,
            "archs": list(self.archs),
            "ops": sorted(names),
        }


# -- compilers and GPUs ------------------------------------------------------------------------------------------------


def plan(directory: Path = CSRC) -> Plan:
    """Plans the library of all *.cpp in a directory, and of all *.cu where there is nvcc.

    A CPU build of torch calls no CUDA kernel, so they are left out, unless $TRAINKIT_CUDA_ARCHS names architectures.

    Args:
        directory: of the sources; `#include` also searches CSRC.

    Returns:
        The plan.

    Raises:
        MissingError: where torch is missing; NoCompilerError where there is no C++ compiler.
        BuildError: for an nvcc that cannot compile for the requested architectures.
    """
    cxx = find_cxx()
    if cxx is None:
        raise NoCompilerError(
            f"no C++ compiler was found ({os.environ.get('CXX') or 'c++, g++, clang++'}); "
            f"type: apt-get install g++, or set CXX=/path/to/g++"
        )
    torch = find_torch()
    nvcc = find_nvcc() if list(directory.rglob("*.cu")) and wants_cuda(torch) else None
    kinds = ("*.cpp", "*.cu") if nvcc else ("*.cpp",)
    return Plan(
        directory=directory,
        sources=tuple(path for kind in kinds for path in sorted(directory.rglob(kind))),
        headers=_headers(directory),
        torch=torch,
        cxx=cxx,
        cxx_version=ask_version(*cxx),
        nvcc=nvcc,
        nvcc_version=ask_version(nvcc) if nvcc else None,
        archs=cuda_archs(nvcc) if nvcc else (),
    )


def needs(directory: Path, torch: Torch) -> dict[str, Any]:
    """Describes what a library built elsewhere must match (see `fits`); runs no compiler.

    Args:
        directory: of the sources.
        torch: the installed torch.

    Returns:
        A part of `Plan.description`.
    """
    content = hashlib.sha256()
    for path in [*sorted([*directory.rglob("*.cpp"), *directory.rglob("*.cu")]), *_headers(directory)]:
        name = path.relative_to(directory if path.is_relative_to(directory) else CSRC)
        content.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return {
        "sources": content.hexdigest()[:32],
        "flags": [*cxx_flags(), *nvcc_flags(())],
        "torch": torch.version,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": list(cpu_flags()),
    }


def fits(description: Mapping[str, Any], needed: Mapping[str, Any]) -> bool:
    """Whether a library can be used here: it matches `needed`, and has no instruction that this CPU lacks.

    Args:
        description: of the library.
        needed: as returned by `needs`.
    """
    same = all(description.get(key) == value for key, value in needed.items() if key != "cpu")
    return same and set(description["cpu"]) <= set(needed["cpu"])


def find_torch() -> Torch:
    """Finds the installed torch. Raises MissingError where there is none."""
    spec = importlib.util.find_spec("torch")
    # An isolated build of pip hides installed packages, but they are in the same place.
    found = Path(spec.origin).parent if spec and spec.origin else Path(sysconfig.get_path("purelib")) / "torch"
    if not (found / "version.py").is_file():
        raise MissingError("torch is not installed; type: pip install torch")
    text = (found / "version.py").read_text()
    match = re.search(r"^__version__ = '(.+)'", text, re.MULTILINE)
    assert match, found / "version.py"
    cuda = re.search(r"^cuda\b[^=\n]*= '(.+)'", text, re.MULTILINE)
    return Torch(found, match.group(1), cuda.group(1) if cuda else None)


def wants_cuda(torch: Torch) -> bool:
    """Whether CUDA kernels are compiled where there is nvcc."""
    asked = os.environ.get(ARCHS_VARIABLE)
    return asked != NO_ARCHS if asked else torch.cuda is not None


def find_cxx() -> tuple[str, ...] | None:
    """Returns the words of $CXX, else the first of c++, g++ and clang++; None where there is none."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        return tuple(command) if shutil.which(command[0]) else None
    return next(((path,) for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """Finds nvcc under $CUDA_HOME or $CUDA_PATH, else on PATH, else under /usr/local/cuda."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return next((path for home in homes if (path := shutil.which(f"{home}/bin/nvcc"))), None) or (
        shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    )


def cuda_archs(nvcc: str) -> tuple[str, ...]:
    """Returns the compute capabilities to compile for.

    $TRAINKIT_CUDA_ARCHS (8.0,9.0), else those of the GPUs here, else those of DEFAULT_ARCHS that nvcc supports. All
    GPUs of the machine count, so that ranks which each see one of them agree.

    Args:
        nvcc: its path.

    Raises:
        BuildError: where $TRAINKIT_CUDA_ARCHS has one that nvcc does not support.
    """
    known = _known_archs(nvcc)
    asked = os.environ.get(ARCHS_VARIABLE)
    if asked:
        archs = tuple(re.findall(r"[^,;\s]+", asked))
        if wrong := [arch for arch in archs if arch not in known]:
            allowed = f"it must be of {', '.join(known)}, or {NO_ARCHS} for a library without CUDA"
            raise BuildError(f"{ARCHS_VARIABLE}={asked}: {nvcc} cannot compile for {', '.join(wrong)}; {allowed}")
        return archs
    seen = gpu_archs()
    # For a GPU newer than nvcc, its driver compiles the newest PTX.
    usable = [arch for arch in seen if arch in known] or [known[-1]] * bool(seen)
    return tuple(usable) or tuple(arch for arch in DEFAULT_ARCHS if arch in known) or (known[-1],)


def gpu_archs() -> tuple[str, ...]:
    """Returns the compute capabilities of the GPUs of this machine, such as ("9.0",)."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    asked = [command, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=QUERY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return ()  # a driver that hangs
    values = {line.strip() for line in found.stdout.splitlines()} if found.returncode == 0 else set()
    return tuple(sorted((v for v in values if re.fullmatch(r"\d+\.\d+", v)), key=_as_number))


@lru_cache(maxsize=1)
def cpu_flags() -> tuple[str, ...]:
    """Returns the CPU's instruction sets, where -march=native depends on them and they are known; else nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return tuple(sorted(set(match.group(1).split()))) if match else ()


def _known_archs(nvcc: str) -> tuple[str, ...]:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    found = {f"{code[:-1]}.{code[-1]}" for code in re.findall(r"sm_(\d+)\b", listed.stdout)}
    if listed.returncode or not found:
        raise BuildError(_failure([nvcc, "--list-gpu-code"], listed.stdout + listed.stderr))
    return tuple(sorted(found, key=_as_number))


def _as_number(arch: str) -> tuple[int, int]:
    major, minor = arch.split(".")
    return int(major), int(minor)


def _headers(directory: Path) -> tuple[Path, ...]:
    return tuple(sorted({path for root in (CSRC, directory) for kind in ("*.h", "*.cuh") for path in root.rglob(kind)}))


@lru_cache(maxsize=8)
def ask_version(*command: str) -> str:
    """Returns the version line of a compiler. Raises BuildError where it cannot run."""
    asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise BuildError(_failure([*command, "--version"], asked.stdout + asked.stderr))
    lines = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else "")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- commands ----------------------------------------------------------------------------------------------------------


def cxx_flags() -> list[str]:
    """Returns the C++ flags.

    Without errno and traps, so that loops vectorize; sums keep their order unless `#pragma omp simd` permits another.
    """
    native = ["-march=native"] if cpu_flags() else []
    quick = ["-O3", *native, "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
    stable_abi = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030b0000"]
    return ["-std=c++17", *quick, "-fPIC", "-fvisibility=hidden", "-pipe", *stable_abi]


def nvcc_flags(archs: Sequence[str]) -> list[str]:
    """Returns the nvcc flags: machine code for each of `archs`, and PTX of the last for newer GPUs."""
    codes = [arch.replace(".", "") for arch in archs]
    targets = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    newest = [f"-gencode=arch=compute_{code},code=compute_{code}" for code in codes[-1:]]
    return ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets, *newest]


def compile_command(plan: Plan, source: Path, target: Path) -> list[str]:
    """Returns the command that compiles `source` to the object `target`."""
    own = ["-I", str(CSRC), "-I", str(plan.directory), "-c", str(source), "-o", str(target)]
    if source.suffix == ".cu":
        assert plan.nvcc
        return [plan.nvcc, "-ccbin", plan.host, *nvcc_flags(plan.archs), *own]
    cuda = ["-DTRAINKIT_CUDA"] if plan.nvcc else []
    return [*plan.cxx, *cxx_flags(), *cuda, "-isystem", str(plan.torch.directory / "include"), *own]


def link_command(plan: Plan, objects: Sequence[Path], target: Path) -> list[str]:
    """Returns the command that links objects to the library `target`."""
    # Torch is loaded before this library and found by its name; -z defs reports missing symbols now, not at import.
    ends = ["-Wl,-z,defs", "-ldl"] if platform.system() == "Linux" else []
    linker = [*plan.cxx]
    if plan.nvcc:  # which knows the path of its runtime
        linker = [plan.nvcc, "-ccbin", plan.host, "-cudart=static"]
        ends = [end.replace("-Wl,", "-Xlinker=") for end in ends]
    torch = [f"-L{plan.torch.directory / 'lib'}", "-ltorch_cpu"]
    return [*linker, "-shared", "-o", str(target), *(str(path) for path in objects), *torch, *ends]


def compile_into(plan: Plan, directory: Path, progress: Progress | None = None) -> Path:
    """Builds the library and its description into a directory, with one compiler process per core.

    Args:
        plan: of the library.
        directory: where the library is written.
        progress: called after every object.

    Returns:
        The path of the library.

    Raises:
        BuildError: with the command that failed and the first lines of its output.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".objects-", dir=directory) as temporary:
        aside = Path(temporary)
        # The slowest come first.
        order = sorted(plan.sources, key=lambda path: (path.suffix != ".cu", -path.stat().st_size))
        commands = {
            aside / f"{number}-{source.name}.o": compile_command(plan, source, aside / f"{number}-{source.name}.o")
            for number, source in enumerate(order)
        }
        _run_all(list(commands.values()), aside, progress)
        _run(link_command(plan, list(commands), aside / LIBRARY), aside)
        description = {**plan.description, "build_s": round(time.monotonic() - started, 1)}
        (aside / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        (aside / DESCRIPTION).chmod(0o644)  # whatever the umask is: a file that others can write is not loaded
        (aside / LIBRARY).chmod(0o755)
        (directory / DESCRIPTION).unlink(missing_ok=True)  # a description never stands beside another library
        for name in (LIBRARY, DESCRIPTION):
            (aside / name).replace(directory / name)
    return directory / LIBRARY


def is_built(plan: Plan, directory: Path) -> bool:
    """Whether `directory` contains what `compile_into` would build."""
    if not (directory / LIBRARY).is_file() or not (directory / DESCRIPTION).is_file():
        return False
    description = json.loads((directory / DESCRIPTION).read_text())
    return {**description, "build_s": 0} == {**plan.description, "build_s": 0}


def num_jobs() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_all(commands: Sequence[list[str]], aside: Path, progress: Progress | None) -> None:
    with ThreadPoolExecutor(max_workers=num_jobs()) as pool:
        waiting = [pool.submit(_run, command, aside) for command in commands]
        try:
            for num_done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    progress(num_done, len(waiting))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(command: list[str], aside: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(aside)}  # the files of a killed compiler are removed with the directory
    # A scheduler signals the whole process group, but the compiler is started again while this process runs.
    for _ in range(1 + MAX_SIGNALS):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
        )
        if done.returncode not in (-signal.SIGTERM, -signal.SIGUSR1):
            break
    if done.returncode:
        without = f"\nto build without CUDA, type: export {ARCHS_VARIABLE}={NO_ARCHS}" if "nvcc" in command[0] else ""
        raise BuildError(_failure(command, done.stdout) + without)


def _failure(command: Sequence[str], output: str) -> str:
    lines = output.strip().splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b|undefined|cannot find", line)), 0)
    shown = "\n".join(lines[first : first + ERROR_LINES])
    return f"this command failed:\n  {shlex.join(command)}\n{shown}"
