"""csrc/common/types.h: what it reads and writes is what torch does, for every value of two bytes."""

import shutil
from pathlib import Path

import pytest
import torch

from trainkit.ops import build, library

CSRC = Path(__file__).parent / "csrc"
TWO_BYTES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *TWO_BYTES, torch.float64)


@pytest.fixture(scope="module", autouse=True)
def _vectors():
    if build.find_cxx() is None:
        pytest.skip("no C++ compiler")
    torch.ops.load_library(library.ensure(build.plan(CSRC)))


def _values(dtype):
    if dtype in TWO_BYTES:
        return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return torch.randn(4099, dtype=dtype, generator=torch.Generator().manual_seed(0))


def _are_equal(a, b):
    """Of one dtype, and equal or both NaN everywhere."""
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_and_writes(dtype):
    x = _values(dtype)
    assert _are_equal(torch.ops.trainkit_test.twice(x), 2 * x)


@pytest.mark.parametrize("dtype", TWO_BYTES, ids=str)
def test_rounds_to_nearest_even(dtype):
    """Every value of two bytes, the middle between it and the next, and what is just beside the middle."""
    exact = _values(dtype).float()
    exact = exact[exact.isfinite()].sort().values
    middle = (exact[1:].double() + exact[:-1].double()).mul(0.5).float()
    beyond = torch.tensor([65519.0, 65520.0, 1e6, 3.4e38, float("inf"), float("nan"), 1e-8, 1e-40])
    beside = [torch.nextafter(middle, torch.full_like(middle, sign * float("inf"))) for sign in (-1, 1)]
    x = torch.cat([exact, middle, *beside, beyond, -beyond])
    assert _are_equal(torch.ops.trainkit_test.narrow(x, torch.empty(0, dtype=dtype)), x.to(dtype))


def test_what_is_no_float_is_refused():
    with pytest.raises(RuntimeError, match="dtypes must be float32, bfloat16, float16 or float64"):
        torch.ops.trainkit_test.twice(torch.arange(3))
    with pytest.raises(RuntimeError, match="x must be contiguous"):
        torch.ops.trainkit_test.twice(torch.zeros(3, 4).t())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or not shutil.which("nvcc"), reason="needs a CUDA device and nvcc")
@pytest.mark.parametrize("dtype", (torch.float32, *TWO_BYTES), ids=str)
def test_reads_and_writes_on_a_gpu(dtype):
    x = _values(dtype)[:65533].cuda()
    assert _are_equal(torch.ops.trainkit_test.twice(x), 2 * x)
