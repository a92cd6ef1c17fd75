"""The correctness of an op of the table, and its time compared with eager PyTorch and torch.compile."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_table import Entry, Inputs

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest norm(result - float64) / norm(float64); for low precisions mostly the rounding of what comes out."""

ROTATED_BYTES = 512 << 20  # several times the second-level cache of any GPU
MOST_BUFFERS = 12
Run = Callable[[Inputs], Any]


# -- equality ----------------------------------------------------------------------------------------------------------


def check(entry: Entry, size: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Errors of the result, of the gradients and, where there are any, of the second derivatives; and the limit."""
    given = Inputs(entry, size, dtype, "cpu")
    if dtype == torch.float64:
        given = given.to(dtype)  # parameters too, which are kept in fp32 beside other dtypes
    found = _derivatives(entry, entry.fused, given.to(device=device))
    exact = _derivatives(entry, entry.reference, given.to(torch.float64))
    errors = {order: _worst(found[order], exact[order]) for order in exact}
    holds = all(error <= LIMITS[dtype] for error in errors.values())
    return {
        "dtype": short(dtype),
        "sizes": list(entry.sizes[size]),
        "errors": errors,
        "limit": LIMITS[dtype],
        "holds": holds,
    }


def _derivatives(entry: Entry, function: Callable[..., Any], inputs: Inputs) -> dict[str, list[Tensor]]:
    result = entry.call(function, inputs.all)
    weights = _like(result, seed=1).requires_grad_(entry.orders > 1)
    leaves = list(inputs.differentiated.values())
    first = torch.autograd.grad(result, leaves, weights, create_graph=entry.orders > 1)
    found = {"forward": [result.detach()], "backward": [gradient.detach() for gradient in first]}
    if entry.orders > 1:
        total = torch.stack([(g * _like(g, seed=2 + i)).sum().double() for i, g in enumerate(first)]).sum()
        second = torch.autograd.grad(total, [*leaves, weights], allow_unused=True, materialize_grads=True)
        found["double backward"] = list(second)
    return found


def _like(x: Tensor, seed: int) -> Tensor:
    """Numbers of a normal distribution that bf16 and fp16 hold exactly, so that every precision weighs alike."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(x.shape, generator=generator).to(torch.bfloat16).clamp(-8, 8)
    return torch.where(drawn.abs() < 2.0**-6, 0.0, drawn).to(x.device, x.dtype)


def _worst(found: list[Tensor], exact: list[Tensor]) -> float:
    """Over the tensors; one that is 0 is held against 1."""
    errors = []
    for a, b in zip(found, exact, strict=True):
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        norm = b.norm()
        errors.append(float((a - b).norm() / (norm if norm > 0 else torch.ones(()))) if b.numel() else 0.0)
    # max() would pass over NaN.
    return float(torch.tensor(errors).max())


# -- time --------------------------------------------------------------------------------------------------------------


def measure(
    entry: Entry, size: str, dtype: torch.dtype, device: str, num_rounds: int, compiler: str | Callable[..., Any]
) -> dict[str, Any]:
    """Median microseconds of fused, reference and compiled: forward alone ("forward") and with backward ("both")."""
    buffers = _buffers(entry, size, dtype, device)
    torch.compiler.reset()
    reference = entry.reference
    compiled = torch.compile(lambda inputs: entry.call(reference, inputs), dynamic=False, backend=compiler)
    calls: dict[str, Callable[[Mapping[str, Any]], Tensor]] = {
        "fused": lambda inputs: entry.call(entry.fused, inputs),
        "reference": lambda inputs: entry.call(reference, inputs),
        "compiled": compiled,
    }
    result = calls["reference"](buffers[0].all).detach()
    weights = _like(result, seed=1)
    forward_bytes, backward_bytes = entry.num_bytes(buffers[0].all, result)
    of_part = {"forward": forward_bytes, "both": forward_bytes + backward_bytes}
    found: dict[str, Any] = {"dtype": short(dtype), "sizes": list(entry.sizes[size])}
    for part, num_bytes in of_part.items():
        runs = {name: _run(call, weights if part == "both" else None) for name, call in calls.items()}
        timed, prepare = (_on_gpu, _captured) if device == "cuda" else (_on_cpu, _once)
        prepared, failed = _prepared(runs, partial(prepare, buffers=buffers))
        if failed:
            found["failed"] = failed
        found[part] = {"num_bytes": num_bytes, **_figures(timed(prepared, buffers, num_rounds), num_bytes)}
    return found


def _prepared(runs: Mapping[str, Run], prepare: Callable[[Run], Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Of each run what `prepare` makes, or why it fails: the fused one is timed all the same, and may not fail."""
    prepared, failed = {}, {}
    for name, run in runs.items():
        try:
            prepared[name] = prepare(run)
        except Exception as error:  # of dynamo, inductor, Triton, a C++ compiler, or a CUDA graph
            if name == "fused":
                raise
            failed[name] = short_reason(error)
    return prepared, failed


def _buffers(entry: Entry, size: str, dtype: torch.dtype, device: str) -> list[Inputs]:
    first = Inputs(entry, size, dtype, device)
    if device != "cuda":
        return [first]
    held = sum(x.numel() * x.element_size() for x in first.differentiated.values())
    num = min(MOST_BUFFERS, 1 + ROTATED_BYTES // held)
    return [first, *(first.to() for _ in range(num - 1))]


def _run(call: Callable[[Mapping[str, Any]], Tensor], weights: Tensor | None) -> Run:
    def forward(inputs: Inputs) -> None:
        with torch.no_grad():
            call(inputs.all)

    def both(inputs: Inputs) -> None:
        torch.autograd.grad(call(inputs.all), list(inputs.differentiated.values()), weights)

    return forward if weights is None else both


def _figures(times_us: Mapping[str, float], num_bytes: int) -> dict[str, Any]:
    return {
        "us": {name: round(us, 2) for name, us in times_us.items()},
        "gb_per_s": {name: round(num_bytes / us / 1e3, 2) for name, us in times_us.items()},
        "fused_over": {name: round(us / times_us["fused"], 3) for name, us in times_us.items() if name != "fused"},
    }


def _on_cpu(runs: Mapping[str, Run], buffers: list[Inputs], num_rounds: int) -> dict[str, float]:
    """Rounds of one run of each, so that whatever else the machine does hits all of them."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run(buffers[0])
            took[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(times[2:]) for name, times in took.items()}


def _once(run: Run, buffers: list[Inputs]) -> Run:
    """The run, once it has run: what has to be compiled is."""
    run(buffers[0])
    return run


def _on_gpu(graphs: Mapping[str, Any], buffers: list[Inputs], num_rounds: int) -> dict[str, float]:
    took: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(num_rounds + 2):
        for name, graph in graphs.items():
            took[name].append(_elapsed_us(graph.replay) / len(buffers))
    return {name: statistics.median(times[2:]) for name, times in took.items()}


def _captured(run: Run, buffers: list[Inputs]) -> Any:
    """A CUDA graph through all buffers, so that neither Python nor a warm cache is what is measured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for inputs in (buffers[0], buffers[0], buffers[-1]):
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in buffers:
            run(inputs)
    return graph


def _elapsed_us(run: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def copy_gb_per_s(device: str, num_bytes: int, num_rounds: int) -> float:
    """What a plain copy reads and writes a second: the most that an op which only moves bytes can reach."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    if device == "cuda":
        times = [_elapsed_us(lambda: target.copy_(source)) for _ in range(num_rounds + 2)]
    else:
        times = []
        for _ in range(num_rounds + 2):
            start = time.perf_counter()
            target.copy_(source)
            times.append((time.perf_counter() - start) * 1e6)
    return 2 * num_bytes / statistics.median(times[2:]) / 1e3


def short_reason(error: Exception) -> str:
    """In one line: compilers say what is wrong after where it is."""
    words = " ".join(str(error).partition("\nSet TORCHDYNAMO_VERBOSE")[0].split())
    return f"{type(error).__name__}: {words if len(words) < 320 else f'{words[:80]} ... {words[-230:]}'}"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
