"""What an int8 phase leaves out is lost nowhere: not with DDP's buckets, a checkpoint, or a network that grows."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import trainkit
from trainkit.planning.reduce_plan import ReducePlan
from trainkit.reduction.collectives import Route
from trainkit.reduction.error_feedback import ErrorFeedback
from trainkit.testing import run_ranks
from trainkit.topology.topology import Device, Host, Link, Nic, RankPlacement, Topology

GROUPS = ((0, 1), (2, 3))
SIZES = {"a": 700, "b": 3000, "c": 11}


def _route(kind="hierarchical", chunk_bytes=4096):
    plan = ReducePlan(kind=kind, groups=GROUPS, wire_dtype="int8", chunk_bytes=chunk_bytes)
    return Route(plan, rank=dist.get_rank(), device=torch.device("cpu"))


def _reduce(route: Route, feedback: ErrorFeedback, number: int, sizes: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(dist.get_rank())
    flat = torch.randn(sum(sizes.values()), generator=generator)
    route.all_reduce(flat, errors=feedback.errors(number, sizes, flat)).wait()


def _kept(feedback: ErrorFeedback) -> dict[str, torch.Tensor]:
    """By parameter, [groups, elements]."""
    return {name: shard.full() for name, shard in feedback.shards().items()}


def _buckets_change(kind: str) -> list[float]:
    route = _route(kind)
    feedback = ErrorFeedback(route)
    _reduce(route, feedback, 0, SIZES)
    before = _kept(feedback)
    flat = torch.zeros(711)
    feedback.errors(0, {"c": 11, "a": 700}, flat)  # as DDP does after its first backward: in another order, and apart
    feedback.errors(1, {"b": 3000}, torch.zeros(3000))
    after = _kept(feedback)
    route.close()
    assert {name: len(tensor[0]) for name, tensor in after.items()} == SIZES
    return [float((after[name] - before[name]).abs().max()) for name in SIZES] + [
        float(before["b"].abs().min(1)[0].max())
    ]


@pytest.mark.parametrize("kind", ["hierarchical", "leader"])
def test_errors_follow_their_parameters_into_other_buckets(kind):
    for *differences, _ in run_ranks(_buckets_change, 4, kind):
        assert differences == [0.0, 0.0, 0.0]


def _sent_and_kept() -> float:
    """Of one step: what was received, and what both groups kept, must be the sum of the gradients."""
    route = _route()
    feedback = ErrorFeedback(route)
    generator = torch.Generator().manual_seed(dist.get_rank())
    gradient = torch.randn(3000, generator=generator)
    received = route.all_reduce(gradient.clone(), errors=feedback.errors(0, {"b": 3000}, gradient)).wait().double()
    kept = _kept(feedback)["b"].double().sum(0)
    exact = gradient.double()
    dist.all_reduce(exact)
    route.close()
    return float(((received + kept) - exact).abs().max())


def test_what_arrives_and_what_is_kept_are_the_whole():
    assert max(run_ranks(_sent_and_kept, 4)) < 2e-6


def _two_hosts(tmp_path) -> str:
    """A user's file: the four ranks of this machine as if on two hosts."""
    devices = (Device(id="cpu0", kind="cpu"), Device(id="cpu1", kind="cpu"))
    links = (
        *(Link(a=d.id, b="memory", kind="loopback", bandwidth_gb_per_s=2, latency_us=20) for d in devices),
        Link(a="memory", b="nic0", kind="pcie", bandwidth_gb_per_s=12, latency_us=1),
        Link(a="nic0", b="network", kind="nic", bandwidth_gb_per_s=0.025, latency_us=100),
    )
    hosts = tuple(
        Host(name=name, devices=devices, nics=(Nic(id="nic0"),), switches=("memory",), links=links) for name in "ab"
    )
    places = tuple(RankPlacement(host=rank // 2, device=f"cpu{rank % 2}") for rank in range(4))
    path = tmp_path / "two_hosts.json"
    path.write_text(Topology(hosts=hosts, places=places).to_json())
    return str(path)


def _module(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, width))


def _make(topology: str, width: int = 8, precision: Any = "fp32") -> tuple[trainkit.Runtime, trainkit.Engine]:
    comm = trainkit.Comm(plan="hierarchical", wire_dtype="int8", topology=topology)
    runtime = trainkit.Runtime(
        comm=comm, precision=precision, deterministic=True, device="cpu", tracker=trainkit.Tracker()
    )
    module = _module(width)
    return runtime, runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), name="e")


def _train(runtime: trainkit.Runtime, engine: trainkit.Engine, num_steps: int, start: int = 0) -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    for batch in runtime.batches((x,), batch_size=16, num_steps=num_steps, start=start):
        engine.backward(engine(batch.data[0]).square().mean())
        engine.step()


def _resumed(topology: str, directory: str) -> tuple[bool, float]:
    """Whether six steps equal four, a checkpoint, and two; and the size of what was kept there."""
    runtime, engine = _make(topology)
    _train(runtime, engine, 6)
    whole = [p.clone() for p in engine.module.parameters()]
    runtime.close()
    runtime, engine = _make(topology)
    _train(runtime, engine, 4)
    kept = max(
        float(shard.local.abs().max())
        for shard in engine.state.shards()["error_feedback"].values()
        if shard.local.numel()
    )
    runtime.save(f"{directory}/last", e=engine)
    runtime.close()
    runtime, engine = _make(topology)
    start = runtime.load(f"{directory}/last", e=engine).position
    _train(runtime, engine, 2, start)
    return all(torch.equal(a, b) for a, b in zip(whole, engine.module.parameters(), strict=True)), kept


def test_a_resumed_run_has_the_same_bits_with_an_int8_leg(tmp_path):
    for is_equal, kept in run_ranks(_resumed, 4, _two_hosts(tmp_path), str(tmp_path)):
        assert kept > 0
        assert is_equal


def _grown(topology: str) -> list[float]:
    runtime, old = _make(topology, 8)
    _train(runtime, old, 3)
    before = {name: shard.full() for name, shard in old.state.shards()["error_feedback"].items()}
    module = _module(9)  # a wider last layer; the first is the same
    new = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), inherit=old)
    after = {name: shard.full() for name, shard in new.state.shards()["error_feedback"].items()}
    assert set(after) == {"0.weight", "0.bias"}
    return [float((after[name] - before[name]).abs().max()) for name in after]


def test_a_network_that_grows_keeps_the_errors_of_what_stays(tmp_path):
    for differences in run_ranks(_grown, 4, _two_hosts(tmp_path)):
        assert differences == [0.0, 0.0]


def _kept_at_scale(topology: str, growth_interval: int) -> torch.Tensor:
    precision = trainkit.Precision(name="fp16", initial_scale=256.0, growth_interval=growth_interval)
    runtime, engine = _make(topology, precision=precision)
    _train(runtime, engine, 1)
    return engine.state.shards()["error_feedback"]["0.weight"].full()


def test_errors_are_scaled_as_the_next_gradients_will_be(tmp_path):
    topology = _two_hosts(tmp_path)
    same, doubled = (run_ranks(_kept_at_scale, 4, topology, interval)[0] for interval in (1000, 1))
    assert same.abs().max() > 0
    assert torch.equal(doubled, 2 * same)
