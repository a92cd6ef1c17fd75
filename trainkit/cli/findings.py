"""The findings of `trainkit doctor` about this machine, each with a state and a remedy where there is one."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

import torch

from trainkit.cache import ENVIRONMENT_VARIABLE, cache_root
from trainkit.errors import TrainkitError
from trainkit.ops import build, library, mode

State = Literal["ok", "missing", "broken"]
VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_DEBUG", "CXX", "CUDA_HOME", "CUDA_PATH",
    build.ARCHS_VARIABLE, ENVIRONMENT_VARIABLE,
)  # fmt: skip
INSTALL_APEX = "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+https://github.com/NVIDIA/apex"
INSTALL_DEEPSPEED = "pip install --no-build-isolation deepspeed"
TORCH_WITH_CUDA = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
CHOOSE_TORCH = "https://pytorch.org/get-started/locally"
TOOLKIT = "https://developer.nvidia.com/cuda-downloads, then: export CUDA_HOME=/usr/local/cuda"
FEW_BYTES = 10**9


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Args:
        name: of what was examined.
        value: what was found.
        state: `missing`: optional, or something else is used in its place; `broken`: configured, and cannot work.
        remedy: the command that helps.
    """

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


def examine() -> dict[str, list[Finding]]:
    """Examines this machine; compiles nothing. Returns the findings by section."""
    return {
        "python and torch": _torch(),
        "GPUs": _gpus(),
        "environment": _environment(),
        "compilers": _compilers(),
        "compiled ops": _ops(),
        "other libraries": [_apex(), _deepspeed(), _wandb()],
        "cache": _cache(),
    }


# -- the machine -------------------------------------------------------------------------------------------------------


def _torch() -> list[Finding]:
    cuda = torch.version.cuda
    found = [
        Finding("Python", f"{platform.python_version()}, {sys.executable}"),
        Finding("torch", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'without CUDA'}"),
    ]
    if cuda and torch.distributed.is_nccl_available():
        found.append(Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version()))))
    driver = _driver()
    return [*found, Finding("driver", driver)] if driver else found


def _driver() -> str:
    """The version of the NVIDIA driver and the newest CUDA that it supports; empty where there is none."""
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: NVMLError cannot be named where the import failed
        return ""
    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return f"{pynvml.nvmlSystemGetDriverVersion()}, up to CUDA {number // 1000}.{number % 1000 // 10}"
    finally:
        pynvml.nvmlShutdown()


def _gpus() -> list[Finding]:
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [
            Finding(f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {gpu.major}.{gpu.minor}")
            for i, gpu in enumerate(properties)
        ]
    archs = build.gpu_archs()
    if not archs:
        return [Finding("GPU", "none: runs on CPU", "missing")]
    if torch.version.cuda is None:
        return [Finding("GPU", f"{', '.join(archs)}: torch is built without CUDA", "broken", TORCH_WITH_CUDA)]
    remedy = f"update the driver, or choose a torch for an older CUDA than {torch.version.cuda}: {CHOOSE_TORCH}"
    return [Finding("GPU", f"{', '.join(archs)}: torch cannot use it (CUDA_VISIBLE_DEVICES, driver)", "broken", remedy)]


def _environment() -> list[Finding]:
    return [Finding(name, os.environ[name]) for name in VARIABLES if name in os.environ] or [
        Finding("processes", "one (torchrun starts more)")
    ]


def _compilers() -> list[Finding]:
    found = []
    cxx = build.find_cxx()
    if cxx:
        found.append(Finding("C++", f"{' '.join(cxx)}: {build.ask_version(*cxx)}"))
    elif os.environ.get("CXX"):
        found.append(Finding("C++", f"CXX={os.environ['CXX']} does not exist", "broken", "unset CXX"))
    else:
        found.append(Finding("C++", "none", "missing", "apt-get install g++"))
    nvcc = build.find_nvcc()
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name) and not shutil.which(f"{os.environ[name]}/bin/nvcc"):
            found.append(Finding(name, f"{os.environ[name]} has no bin/nvcc", "broken", f"unset {name}"))
    if nvcc:
        found.append(Finding("nvcc", f"{nvcc}: {build.ask_version(nvcc)}"))
    else:
        found.append(Finding("nvcc", "none: ops are compiled for the CPU only", "missing", TOOLKIT))
    return found


# -- the compiled ops --------------------------------------------------------------------------------------------------


def _ops() -> list[Finding]:
    plan = None
    try:
        with suppress(build.NoCompilerError):
            plan = build.plan()
        found = library.find(plan)
        if found is None and plan is None:
            return [Finding("library", "none, and no compiler: plain PyTorch runs", "missing", "apt-get install g++")]
        if found is None:
            return [Finding("library", "not compiled yet: the first use does it", "missing", "trainkit doctor --build")]
        library.load()
    except (TrainkitError, build.BuildError, OSError) as error:
        return [Finding("library", str(error), "broken", "trainkit doctor --build --force")]
    built = found.description
    return [
        Finding("library", str(found.path)),
        Finding("compiled by", f"{built['cxx']}" + (f"; {built['nvcc']}" if built["nvcc"] else "")),
        Finding("for torch", built["torch"]),
        Finding("for CPU", f"{built['machine']}, {_vector_units(built['cpu'])}"),
        _cuda_archs(found),
        *_uses(found),
    ]


def _vector_units(flags: list[str]) -> str:
    known = [name for name in ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "asimd", "sve") if name in flags]
    return " ".join(known) or "baseline instructions"


def _cuda_archs(found: library.Library) -> Finding:
    archs = ", ".join(found.archs)
    if not found.archs and torch.version.cuda is None:
        return Finding("for CUDA", "nothing: this torch is a build for CPU", "missing", TORCH_WITH_CUDA)
    if not found.archs:
        remedy = "trainkit doctor --build" if build.find_nvcc() else f"{TOOLKIT}; trainkit doctor --build"
        return Finding("for CUDA", "nothing: there was no nvcc", "missing", remedy)
    if torch.cuda.is_available() and not found.runs_on(torch.cuda.get_device_capability()):
        arch = ".".join(map(str, torch.cuda.get_device_capability()))
        return Finding("for CUDA", archs, "broken", f"{build.ARCHS_VARIABLE}={arch} trainkit doctor --build")
    return Finding("for CUDA", archs)


def _uses(found: library.Library) -> list[Finding]:
    """For each op, the implementation that runs on each kind of device."""
    compiled = {name for name in found.description["ops"] if not name.endswith("_backward")}
    # An op that is off in some cases only has a name for these.
    names = sorted(compiled.union(*mode.OFF_BY_DEFAULT.values()))

    def runs(name: str, device: str) -> str:
        if name in mode.OFF_BY_DEFAULT[device]:
            return "plain PyTorch, measured faster"
        return "compiled" if device == "cpu" or found.archs else "plain PyTorch"

    return [Finding(name, f"CPU: {runs(name, 'cpu')}; CUDA: {runs(name, 'cuda')}") for name in names]


# -- other libraries and the cache -------------------------------------------------------------------------------------


def _apex() -> Finding:
    """NVIDIA's apex is recognized by its compiled modules: an unrelated package on PyPI has the same name."""
    if find_spec("amp_C") and find_spec("fused_layer_norm_cuda"):
        return Finding("apex", f"{_version('apex') or 'there'}, with CUDA extensions")
    given = _version("apex")
    if given.startswith("0.9"):
        value = f"{given} is PyPI's package for Pyramid, not NVIDIA's"
        return Finding("apex", value, "broken", f"pip uninstall -y apex; {INSTALL_APEX}")
    if given:
        return Finding("apex", f"{given}, without its CUDA extensions", "broken", INSTALL_APEX)
    return Finding("apex", "not installed: trainkit's own LAMB runs", "missing", INSTALL_APEX)


def _deepspeed() -> Finding:
    if given := _version("deepspeed"):
        return Finding("DeepSpeed", given)
    return Finding("DeepSpeed", "not installed: no zero1, zero2, zero3", "missing", INSTALL_DEEPSPEED)


def _wandb() -> Finding:
    given = _version("wandb")
    if not given:
        return Finding("Weights & Biases", "not installed", "missing", "pip install wandb")
    from trainkit.tracking.wandb import has_key

    try:
        found = has_key()
    except ImportError as error:
        remedy = "pip install --force-reinstall wandb, or train with tracking=none"
        return Finding("Weights & Biases", f"{given} cannot be imported: {error}", "broken", remedy)
    if found:
        return Finding("Weights & Biases", f"{given}, a key is set")
    return Finding("Weights & Biases", f"{given}, no key: runs are kept offline", "missing", "wandb login")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cache() -> list[Finding]:
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            free = shutil.disk_usage(root).free
    except OSError as error:
        remedy = f"export {ENVIRONMENT_VARIABLE}=DIRECTORY"
        return [Finding("directory", f"{root}: {error.strerror}", "broken", remedy)]
    room = Finding("free", f"{free / 1e9:.1f} GB", "ok" if free > FEW_BYTES else "broken")
    if room.state == "broken":
        room = Finding("free", room.value, "broken", f"export {ENVIRONMENT_VARIABLE}=DIRECTORY on a larger disk")
    return [Finding("directory", str(root)), room]
