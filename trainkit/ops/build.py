"""What is compiled into a library of ops, by which commands, and under which key it is kept.

setup.py runs this file by its path, where neither trainkit nor torch may be importable: only the standard library is
imported, and of torch only its directory is needed.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
LIBRARY = "libtrainkit_ops.so"
DESCRIPTION = "libtrainkit_ops.json"
ARCHS_VARIABLE = "TRAINKIT_CUDA_ARCHS"
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")
ERROR_LINES = 12

Progress = Callable[[int, int, str], None]
"""Called with objects done, objects in all, and the name of the newest."""


class BuildError(RuntimeError):
    """A build that failed, or cannot start; the message says what to type."""


class NoCompilerError(BuildError):
    """There is no C++ compiler."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, which need not be imported."""

    directory: Path
    version: str

    @property
    def include(self) -> list[Path]:
        return [self.directory / "include", self.directory / "include" / "torch" / "csrc" / "api" / "include"]


@dataclass(frozen=True)
class Plan:
    """All that a library depends on."""

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
    def key(self) -> str:
        return f"{requirements_key(self.requirements)}-{_digest(self.description)[:16]}"

    @property
    def requirements(self) -> dict[str, str]:
        return requirements(self.directory, self.torch)

    @property
    def description(self) -> dict[str, object]:
        """JSON that lies beside the library."""
        return {
            "requirements": self.requirements,
            "cxx": f"{shlex.join(self.cxx)}: {self.cxx_version}",
            "cxx_flags": cxx_flags(),
            "nvcc": self.nvcc_version,
            "archs": list(self.archs),
            "sources": [path.name for path in self.sources],
        }


# -- what there is -----------------------------------------------------------------------------------------------------


def plan(directory: Path = CSRC) -> Plan:
    """How all *.cpp under `directory`, and where nvcc is all *.cu, become a library; #include starts at CSRC too.

    Raises NoCompilerError, and BuildError for an nvcc that cannot be asked or cannot compile for what is asked.
    """
    cxx = find_cxx()
    if cxx is None:
        raise NoCompilerError(
            f"no C++ compiler was found ({os.environ.get('CXX') or 'c++, g++, clang++'}); "
            f"type: apt-get install g++, or set CXX=/path/to/g++"
        )
    nvcc = find_nvcc() if list(directory.rglob("*.cu")) else None
    kinds = ("*.cpp", "*.cu") if nvcc else ("*.cpp",)
    return Plan(
        directory=directory,
        sources=tuple(path for kind in kinds for path in sorted(directory.rglob(kind))),
        headers=_headers(directory),
        torch=find_torch(),
        cxx=cxx,
        cxx_version=_version(*cxx),
        nvcc=nvcc,
        nvcc_version=_version(nvcc) if nvcc else None,
        archs=cuda_archs(nvcc) if nvcc else (),
    )


def requirements(directory: Path, torch: Torch) -> dict[str, str]:
    """What must be equal for a library built elsewhere to be right here; needs no compiler."""
    content = hashlib.sha256()
    for path in sorted([*directory.rglob("*.cpp"), *directory.rglob("*.cu")]):
        content.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes() + b"\0")
    for path in _headers(directory):
        content.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return {
        "sources": content.hexdigest()[:16],
        "torch": torch.version,
        "cpu": _digest(cpu_flags())[:16],
        "machine": f"{platform.system()} {platform.machine()}",
    }


def requirements_key(requirements: dict[str, str]) -> str:
    return _digest(requirements)[:16]


def find_torch() -> Torch:
    """Raises BuildError when torch is not installed."""
    spec = importlib.util.find_spec("torch")
    # An isolated build of pip hides what is installed; it lies where it lay.
    found = Path(spec.origin).parent if spec and spec.origin else Path(sysconfig.get_path("purelib")) / "torch"
    if not (found / "version.py").is_file():
        raise BuildError("torch is not installed; type: pip install torch")
    match = re.search(r"^__version__ = '(.+)'", (found / "version.py").read_text(), re.MULTILINE)
    assert match, found / "version.py"
    return Torch(found, match.group(1))


def find_cxx() -> tuple[str, ...] | None:
    """$CXX, else the first of c++, g++ and clang++."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        return tuple(command) if shutil.which(command[0]) else None
    return next(((path,) for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    """Under $CUDA_HOME or $CUDA_PATH, on PATH, or under /usr/local/cuda.

    Raises BuildError when a variable names a directory that has none.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            path = Path(os.environ[variable]) / "bin" / "nvcc"
            if not path.is_file():
                raise BuildError(f"{variable}={os.environ[variable]} has no bin/nvcc; type: unset {variable}")
            return str(path)
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_archs(nvcc: str) -> tuple[str, ...]:
    """$TRAINKIT_CUDA_ARCHS (8.0,9.0), else those of the GPUs here, else DEFAULT_ARCHS as far as nvcc knows them."""
    known = _known_archs(nvcc)
    asked = os.environ.get(ARCHS_VARIABLE)
    if asked:
        archs = tuple(asked.replace(";", ",").replace(" ", ",").strip(",").split(","))
        if wrong := [arch for arch in archs if arch not in known]:
            raise BuildError(
                f"{ARCHS_VARIABLE}={asked}: {nvcc} cannot compile for {', '.join(wrong)}; allowed are {', '.join(known)}"
            )
        return archs
    seen = gpu_archs()
    # A GPU newer than nvcc runs what its driver makes of the newest PTX.
    usable = [arch for arch in seen if arch in known] or [known[-1]] * bool(seen)
    return tuple(usable) or tuple(arch for arch in DEFAULT_ARCHS if arch in known) or (known[-1],)


def gpu_archs() -> tuple[str, ...]:
    """Compute capabilities of the GPUs of this machine, such as ("9.0",)."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    asked = [command, "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    values = {line.strip() for line in found.stdout.splitlines()} if found.returncode == 0 else set()
    return tuple(sorted((v for v in values if re.fullmatch(r"\d+\.\d+", v)), key=_as_number))


@lru_cache(maxsize=1)
def cpu_flags() -> tuple[str, ...]:
    """What the CPU's instructions are, where -march=native can be told from them; else nothing."""
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
    return tuple(sorted({path for root in (CSRC, directory) for path in root.rglob("*.h")}))


@lru_cache(maxsize=8)
def _version(*command: str) -> str:
    asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise BuildError(_failure([*command, "--version"], asked.stdout + asked.stderr))
    lines = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else "")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- commands ----------------------------------------------------------------------------------------------------------


def cxx_flags() -> list[str]:
    """Neither errno nor traps, so that loops vectorise; sums keep their order unless `#pragma omp simd` frees one."""
    native = ["-march=native"] if cpu_flags() else []
    return ["-std=c++17", "-O3", *native, "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno",
            "-fno-trapping-math", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030b0000"]  # fmt: skip


def nvcc_flags(archs: Sequence[str]) -> list[str]:
    """Machine code for each of `archs`, and PTX of the last for what comes after it."""
    codes = [arch.replace(".", "") for arch in archs]
    targets = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    newest = f"-gencode=arch=compute_{codes[-1]},code=compute_{codes[-1]}" if codes else ""
    return ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets, newest]


def compile_command(plan: Plan, source: Path, target: Path) -> list[str]:
    """Of one object."""
    own = ["-I", str(CSRC), "-I", str(plan.directory), "-c", str(source), "-o", str(target)]
    if source.suffix == ".cu":
        assert plan.nvcc
        return [plan.nvcc, "-ccbin", plan.cxx[-1], *nvcc_flags(plan.archs), *own]
    cuda = ["-DTRAINKIT_CUDA"] if plan.nvcc else []
    return [*plan.cxx, *cxx_flags(), *cuda, *(f"-isystem{path}" for path in plan.torch.include), *own]


def link_command(plan: Plan, objects: Sequence[Path], target: Path) -> list[str]:
    # Torch is loaded before this library and found by its name; -z defs tells of what is missing now, not at import.
    ends = ["-Wl,-z,defs", "-ldl"] if platform.system() == "Linux" else []
    linker = [*plan.cxx]
    if plan.nvcc:  # which knows where its runtime lies
        linker = [plan.nvcc, "-ccbin", plan.cxx[-1], "-cudart=static"]
        ends = [end.replace("-Wl,", "-Xlinker=") for end in ends]
    torch = [f"-L{plan.torch.directory / 'lib'}", "-ltorch_cpu"]
    return [*linker, "-shared", "-o", str(target), *(str(path) for path in objects), *torch, *ends]


def compile_into(plan: Plan, directory: Path, progress: Progress | None = None) -> Path:
    """Builds the library into `directory`, as many objects at a time as there are cores; its description beside it.

    Raises BuildError with the command that failed and the first lines it said.
    """
    objects = directory / "objects"
    objects.mkdir()
    commands = {}
    # The slowest come first.
    for source in sorted(plan.sources, key=lambda path: (path.suffix != ".cu", -path.stat().st_size)):
        target = objects / f"{len(commands)}-{source.name}.o"
        commands[target] = compile_command(plan, source, target)
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=num_jobs()) as pool:
        waiting = {pool.submit(_run, command): target for target, command in commands.items()}
        try:
            for num_done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    progress(num_done, len(waiting), waiting[future].name.split("-", 1)[1].removesuffix(".o"))
        except BuildError:
            pool.shutdown(cancel_futures=True)
            raise
    library = directory / LIBRARY
    _run(link_command(plan, sorted(commands), library))
    shutil.rmtree(objects)
    description = {**plan.description, "build_s": round(time.monotonic() - started, 1)}
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return library


def num_jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError(_failure(command, done.stdout))


def _failure(command: Sequence[str], output: str) -> str:
    lines = output.strip().splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"\berror\b|undefined|cannot find", line)), 0)
    told = "\n".join(lines[first : first + ERROR_LINES])
    return f"this command failed:\n  {shlex.join(command)}\n{told}"
