"""What nvcc makes of every .cu, on a machine without a GPU: registers, no spills, no local memory, 128-bit loads."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from trainkit.ops import build, library

SOURCES = [*sorted(build.CSRC.rglob("*.cu")), *sorted((Path(__file__).parent / "csrc").glob("*.cu"))]
MAX_REGISTERS = 128
KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def cubins(tmp_path_factory):
    """arch -> {source: (what ptxas says, cubin)}; each architecture is compiled once."""
    nvcc = build.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not here")
    directory = tmp_path_factory.mktemp("cubins")

    def compiled(source, code):
        cubin = directory / f"{source.stem}-{code}.cubin"
        flags = [flag for flag in build.nvcc_flags(()) if "gencode" not in flag]
        places = ["-I", str(build.CSRC), "-I", str(source.parent)]
        command = [nvcc, f"-arch=sm_{code}", *flags, *places, "-Xptxas=-v", "-cubin", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr, cubin

    @lru_cache
    def all_of(code):
        with ThreadPoolExecutor(build.num_jobs()) as pool:
            return dict(zip(SOURCES, pool.map(lambda source: compiled(source, code), SOURCES), strict=True))

    return all_of


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_library_with_cuda_loads_under_this_torch(monkeypatch):
    """Under a CPU build of torch nothing else compiles the C++ that calls the kernels."""
    if build.find_nvcc() is None:
        pytest.skip("nvcc is not here")
    monkeypatch.setenv(build.ARCHS_VARIABLE, "9.0")
    path = library.ensure(build.plan())
    code = f"import torch; torch.ops.load_library({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(arch.replace(".", ""), marks=[pytest.mark.nightly] * (arch != "9.0"))  # which the next test needs
        for arch in build.DEFAULT_ARCHS
    ],
)
def test_kernels_stay_in_registers(cubins, code):
    wrong = []
    for source, (told, _) in cubins(code).items():
        kernels = KERNEL.findall(told)
        assert len(kernels) == told.count("Compiling entry function") > 0, source
        for name, *numbers in kernels:
            stack, stores, loads, registers = map(int, numbers)
            print(f"sm_{code} {source.name:24} {registers:4} registers  {_readable(name)}")
            if stack or stores or loads or registers > MAX_REGISTERS:
                wrong.append(f"{source.name}: {_readable(name)}: stack {stack}, spills {stores}/{loads}, {registers}")
    assert not wrong, "\n".join(wrong)


def test_streaming_kernels_load_16_bytes_at_a_time(cubins):
    nvdisasm = _nvdisasm()
    if nvdisasm is None:
        pytest.skip("nvdisasm is not here: pip install nvidia-cuda-nvdisasm")
    for source, (_, cubin) in cubins("90").items():
        told = subprocess.run([nvdisasm, str(cubin)], capture_output=True, text=True, check=True).stdout
        kernels = {part.split(",")[0]: part for part in told.split(".section\t.text.")[1:]}
        assert kernels, source
        for name, code in kernels.items():
            counts = {
                op: len(re.findall(op, code)) for op in (r"\bLDG\.E\S*\.128\b", r"\bSTG\.E\S*\.128\b", r"\bLDL|\bSTL")
            }
            wide_loads, wide_stores, local = counts.values()
            print(f"{source.name:24} {wide_loads:3} LDG.128 {wide_stores:3} STG.128  {_readable(name)}")
            assert not local, f"{source.name}: {name} uses local memory"
        if "load_vector" in source.read_text():
            assert re.search(r"\bLDG\.E\S*\.128\b", told), f"{source.name} has no 128-bit load"


def _nvdisasm():
    try:
        packaged = [Path(str(f.locate())) for f in files("nvidia-cuda-nvdisasm") or [] if f.name == "nvdisasm"]
    except PackageNotFoundError:
        packaged = []
    return shutil.which("nvdisasm") or next((str(path) for path in packaged), None)


def _readable(name):
    """`twice<bfloat16>` of a mangled name, as far as it is plain."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=False)
    return re.sub(r"\(anonymous namespace\)::|tk::|^void |\(.*", "", done.stdout.strip()) or name
