"""A route against sums in float64, and against the bytes that a plan must send."""

import itertools

import pytest
import torch
import torch.distributed as dist

from benchmarks.bed import Bed, why_not
from trainkit.planning.reduce_plan import INT8_BLOCK, ReducePlan, flat
from trainkit.reduction.collectives import Route
from trainkit.reduction.quantization import dequantize, quantize
from trainkit.testing import run_ranks

PAIRS = ((0, 1), (2, 3))
needs_bed = pytest.mark.skipif(why_not() is not None, reason=f"no network namespaces: {why_not()}")


def _plan(kind, groups=PAIRS, wire_dtype="exact", chunk_bytes=None):
    return ReducePlan(kind=kind, groups=groups, wire_dtype=wire_dtype, chunk_bytes=chunk_bytes)


def _values(rank: int, num: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


def _reduced(plan: ReducePlan, sizes: list[int], dtype: torch.dtype) -> list[tuple[float, torch.Tensor]]:
    """For each size, at the same time: the largest error against float64, of the largest value; and the sums."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    route = Route(plan, rank=rank, device=torch.device("cpu"))
    tensors = [_values(rank, num, dtype) for num in sizes]
    futures = [route.all_reduce(tensor, factor=1 / world_size) for tensor in tensors]
    for future in futures:
        future.wait()
    route.close()
    results = []
    for num, tensor in zip(sizes, tensors, strict=True):
        exact = torch.stack([_values(r, num, dtype).double() for r in range(world_size)]).mean(0)
        results.append((((tensor.double() - exact).abs().max() / exact.abs().max()).item(), tensor))
    return results


CROSSED = ((0, 2), (1, 3))
EXACT = [
    flat(4),
    _plan("ring", CROSSED),
    _plan("leader", ((0, 1, 2), (3,))),
    *(
        _plan(kind, groups, chunk_bytes=chunk_bytes)
        for kind in ("hierarchical", "leader")
        for groups in (PAIRS, CROSSED)
        for chunk_bytes in (None, 4096)
    ),
]


@pytest.mark.parametrize("plan", EXACT, ids=lambda plan: f"{plan.describe()} {plan.groups}")
def test_exact_plans_equal_a_float64_sum_on_all_ranks(plan):
    by_rank = run_ranks(_reduced, 4, plan, [1, 7, 4096, 100_003], torch.float32)
    for errors in by_rank:
        assert max(error for error, _ in errors) < 1e-6
    for ours, theirs in itertools.product(by_rank[0], by_rank[1:]):
        for (_, a), (_, b) in zip(by_rank[0], theirs, strict=True):
            assert torch.equal(a, b), ours


def _lengths(plan: ReducePlan, num: int) -> list[int]:
    route = Route(plan, rank=dist.get_rank(), device=torch.device("cpu"))
    chunks = route.chunks(num, 4)
    route.close()
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == num
    return [chunk.stop - chunk.start for chunk in chunks]


@pytest.mark.parametrize(
    ("wire_dtype", "num", "expected"),
    [
        ("exact", 4096, [256, 256, 256, 256, 1024, 1024, 1024]),
        ("exact", 3 * 1024 + 5, [256, 256, 256, 256, 1024, 1024, 5]),
        ("exact", 3 * 1024, [1024] * 3),  # of few chunks a small one is a larger share of the whole
        ("int8", 4096, [1024] * 4),
    ],
)
def test_the_first_of_many_chunks_is_cut(wire_dtype, num, expected):
    for lengths in run_ranks(_lengths, 4, _plan("hierarchical", wire_dtype=wire_dtype, chunk_bytes=4096), num):
        assert lengths == expected


def test_two_ranks_of_two_hosts():
    for plan in (
        flat(2),
        _plan("hierarchical", ((0,), (1,)), "int8"),
        _plan("hierarchical", ((0,), (1,)), chunk_bytes=512),
    ):
        tolerance = 1e-6 if plan.wire_dtype == "exact" else 2e-2
        for errors in run_ranks(_reduced, 2, plan, [300, 5000], torch.float32):
            assert max(error for error, _ in errors) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int8_keeps_the_signs_of_half_types(dtype):
    x = (torch.randn(1, 64 * INT8_BLOCK) * 1e-4).to(dtype)
    dequantized = dequantize(quantize(x, "int8"), x.shape[1], dtype, "int8")
    unit = x.float().unflatten(1, (64, INT8_BLOCK)).abs().amax(2, keepdim=True) / 127
    assert ((dequantized - x).float().unflatten(1, (64, INT8_BLOCK)).abs() <= 1.1 * unit).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_of_gradients(dtype):
    tolerance = {torch.float64: 1e-15, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for errors in run_ranks(_reduced, 4, _plan("hierarchical", chunk_bytes=8192), [5000], dtype):
        assert errors[0][0] < tolerance


@pytest.mark.parametrize("kind", ["hierarchical", "leader"])
@pytest.mark.parametrize(("wire_dtype", "tolerance"), [("fp16", 1e-3), ("bf16", 8e-3), ("int8", 2e-2)])
def test_lossy_legs_err_by_their_format_and_alike_on_all_ranks(kind, wire_dtype, tolerance):
    by_rank = run_ranks(_reduced, 4, _plan(kind, wire_dtype=wire_dtype, chunk_bytes=65536), [100_003], torch.float32)
    errors = [results[0][0] for results in by_rank]
    assert 0 < max(errors) < tolerance
    assert len({float(results[0][1].double().sum()) for results in by_rank}) == 1
    assert all(torch.equal(by_rank[0][0][1], results[0][1]) for results in by_rank)


def _fed_back(num_steps: int) -> tuple[float, float]:
    """Means over steps of the same gradient's sum, with feedback and without: errors of the largest value."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    route = Route(_plan("hierarchical", wire_dtype="int8", chunk_bytes=16384), rank=rank, device=torch.device("cpu"))
    gradient = _values(rank, 10_000, torch.float32)
    exact = torch.stack([_values(r, 10_000, torch.float64) for r in range(world_size)]).sum(0)
    errors = [torch.zeros(chunk.num_own) for chunk in route.chunks(len(gradient), 4)]
    found = []
    for kept in (errors, ()):
        total = torch.zeros(len(gradient), dtype=torch.float64)
        for _ in range(num_steps):
            total += route.all_reduce(gradient.clone(), errors=kept).wait()
        found.append(((total / num_steps - exact).abs().max() / exact.abs().max()).item())
    route.close()
    return found[0], found[1]


def test_what_int8_leaves_out_is_sent_with_the_next_gradients():
    with_feedback, without = run_ranks(_fed_back, 4, 50)[0]
    assert without > 4e-3  # the same rounding every time
    assert with_feedback < without / 20


def test_int8_keeps_a_127th_of_a_block_and_what_is_not_finite():
    x = torch.randn(3, 4 * INT8_BLOCK)
    x[0, :INT8_BLOCK] = 0
    x[1, 5], x[2, INT8_BLOCK + 7] = torch.inf, torch.nan
    wire = quantize(x, "int8")
    assert wire.shape == (3, 4 * (INT8_BLOCK + 4))
    dequantized = dequantize(wire, x.shape[1], torch.float32, "int8").unflatten(1, (4, INT8_BLOCK))
    blocks = x.unflatten(1, (4, INT8_BLOCK))
    is_sick = torch.zeros(3, 4, dtype=torch.bool)
    is_sick[1, 0] = is_sick[2, 1] = True
    assert not dequantized[is_sick].isfinite().any()
    half_a_unit = blocks[~is_sick].abs().amax(1, keepdim=True) / 127 / 2
    assert ((dequantized - blocks)[~is_sick].abs() <= half_a_unit * 1.001).all()
    assert (dequantized[0, 0] == 0).all()


def _sick_then_well() -> tuple[bool, bool]:
    route = Route(_plan("hierarchical", wire_dtype="int8"), rank=dist.get_rank(), device=torch.device("cpu"))
    errors = [torch.zeros(chunk.num_own) for chunk in route.chunks(2048, 4)]
    gradient = _values(dist.get_rank(), 2048, torch.float32)
    sick = gradient.clone()
    if dist.get_rank() == 1:
        sick[100] = torch.inf
    route.all_reduce(sick, errors=errors).wait()
    well = route.all_reduce(gradient, errors=errors).wait()
    route.close()
    return bool(sick.isfinite().all()), bool(well.isfinite().all())


def test_an_overflow_is_known_to_all_ranks_and_not_kept():
    assert run_ranks(_sick_then_well, 4) == [(False, True)] * 4


def _broken() -> list[str]:
    route = Route(_plan("hierarchical"), rank=dist.get_rank(), device=torch.device("cpu"))
    messages = []
    assert route.all_reduce(torch.ones(0)).wait().shape == (0,)
    for tensor in (torch.ones(100, dtype=torch.int64), torch.ones(100)):  # half of an integer is none
        try:
            route.all_reduce(tensor, factor=0.5).wait()
            messages.append("summed")
        except RuntimeError as error:
            messages.append(str(error))
    route.close()
    return messages


def test_after_a_leg_has_failed_every_call_fails():
    for first, second in run_ranks(_broken, 4):
        assert "can't be cast" in first
        assert second == first


def _reduce_mb(plan: ReducePlan, num_mb: int) -> float:
    tensor = torch.full((num_mb * 2**18,), float(dist.get_rank()))
    route = Route(plan, rank=dist.get_rank(), device=torch.device("cpu"))
    dist.barrier()
    route.all_reduce(tensor).wait()
    route.close()
    return tensor.sum().item() / len(tensor)


@needs_bed
@pytest.mark.parametrize(
    ("num_hosts", "most"),
    [
        (2, {"flat": (1.45, 1.57), "exact": (1.0, 1.06), "int8": (0.25, 0.28)}),
        (4, {"flat": (1.70, 1.82), "exact": (1.5, 1.58), "int8": (0.375, 0.42)}),
    ],
)
def test_bytes_over_the_slow_link(num_hosts, most):
    """Counted by the network namespaces themselves, in sizes of the gradient, each host's."""
    groups = tuple((2 * host, 2 * host + 1) for host in range(num_hosts))
    plans = {
        "flat": flat(2 * num_hosts),
        "exact": _plan("hierarchical", groups, chunk_bytes=2**20),
        "int8": _plan("hierarchical", groups, "int8", 2**20),
    }
    num_mb = 16
    with Bed(num_hosts) as bed:
        for name, plan in plans.items():
            before = bed.tx_bytes()
            means = bed.run(_reduce_mb, plan, num_mb)
            sent = [(after - first) / num_mb / 2**20 for first, after in zip(before, bed.tx_bytes(), strict=True)]
            least, largest = most[name]
            assert all(least <= share <= largest for share in sent), (name, sent)
            expected = sum(range(2 * num_hosts))
            assert means == pytest.approx([expected] * 2 * num_hosts, rel=0 if name != "int8" else 1e-2)
