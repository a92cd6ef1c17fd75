"""comm: what is chosen, by whom, and that it is said, kept and checked."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import trainkit
from benchmarks.bed import Bed, why_not
from tests.memory import test_probe
from tests.reduction.test_error_feedback import _train, _two_hosts
from trainkit.distributed.cluster import current_cluster
from trainkit.errors import ConfigError
from trainkit.planning.choice import Choice
from trainkit.reduction.comm import Comm
from trainkit.reduction.reducer import Reducer
from trainkit.strategy import by_name
from trainkit.testing import RankError, run_ranks
from trainkit.topology.topology import Topology
from trainkit.training.accumulation import fewest_micro_batches

CPU = torch.device("cpu")
needs_bed = pytest.mark.skipif(why_not() is not None, reason=f"no network namespaces: {why_not()}")


def _reducer(comm: Comm, said: list[str], deterministic: bool) -> Reducer:
    group = dist.group.WORLD
    return Reducer(
        comm,
        cluster=current_cluster(),
        device=CPU,
        deterministic=deterministic,
        group=group,
        report=said.append,
        during=lambda _: nullcontext(),
    )


def _choose(
    comm: Comm, num_bytes: int = 2**20, known: dict[str, Any] | None = None, deterministic: bool = False
) -> tuple[Choice, list[str]]:
    said: list[str] = []
    reducer = _reducer(comm, said, deterministic)
    reducer.check()
    choice = reducer.choose(num_bytes, known)
    reducer.close()
    return choice, said


# -- what a user may ask for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"plan": "hierarchicl"}, "comm.plan='hierarchicl'.*Did you mean 'hierarchical'"),
        ({"wire_dtype": "int4"}, "comm.wire_dtype='int4': must be one of exact, fp16, bf16, int8"),
        ({"plan": "flat", "wire_dtype": "int8"}, "comm.plan=flat communicates in one phase"),
        ({"chunk_mb": 0}, "comm.chunk_mb=0: must be a number above 0"),
        ({"chunk_mb": 2, "plan": "flat"}, "comm.plan=flat does not cut buckets into chunks"),
        ({"matrix_rank": 0}, "comm.matrix_rank=0"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Comm(**arguments)


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("plan", ["auto", "flat", "hierarchical", "leader", "powersgd"])
def test_strategies_that_shard_reduce_by_themselves(strategy, plan):
    if plan in ("auto", "flat") or (strategy, plan) == ("hsdp", "hierarchical"):
        Comm(plan=plan).check(strategy, own_plan=by_name(strategy).own_plan, deterministic=False)
    else:
        with pytest.raises(ConfigError, match=f"comm={plan}: strategy={strategy} reduces gradients itself"):
            Comm(plan=plan).check(strategy, own_plan=by_name(strategy).own_plan, deterministic=False)


def test_a_strategy_of_ones_own_reduces_as_its_class_says():
    class Renamed(trainkit.DDP):
        name = "mine"

    class Own(trainkit.Single):
        name, own_plan = "own", "flat"

    comm = Comm(plan="hierarchical", wire_dtype="int8")
    assert trainkit.Runtime(strategy=Renamed(), comm=comm, device="cpu").reducer.comm is comm
    with pytest.raises(ConfigError, match="comm=hierarchical: strategy=own reduces gradients itself"):
        trainkit.Runtime(strategy=Own(), comm=comm, device="cpu")


def test_a_runtime_refuses_before_anything_starts():
    with pytest.raises(ConfigError, match=r"comm\.wire_dtype=int8: strategy=fsdp reduces gradients itself"):
        trainkit.Runtime(strategy="fsdp", comm=Comm(wire_dtype="int8"), device="cpu")


def test_one_host_has_no_hierarchy():
    with pytest.raises(RankError, match=r"comm=hierarchical: it needs several hosts .* the hosts of this job have 2"):
        run_ranks(_choose, 2, Comm(plan="hierarchical"))


# -- what is chosen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 4])
def test_auto_is_flat_on_one_host_without_a_word(world_size):
    for choice, said in run_ranks(_choose, world_size, Comm()):
        assert choice.plan.kind == "flat"
        assert said == []


def test_the_requested_plan_and_chunks_are_taken(tmp_path):
    comm = Comm(plan="leader", wire_dtype="bf16", chunk_mb=0.25, topology=_two_hosts(tmp_path))
    for choice, said in run_ranks(_choose, 4, comm):
        assert choice.plan.groups == ((0, 1), (2, 3))
        assert (choice.plan.kind, choice.plan.wire_dtype, choice.plan.chunk_bytes) == ("leader", "bf16", 2**18)
        assert said == [
            "all-reduce plan: leader over 2 groups of 2, bf16 between them, chunks of 0.262 MB, as configured"
        ]


def _choose_with_cache(
    cache: str, comm: Comm, num_bytes: int, known: dict[str, Any] | None = None
) -> tuple[Choice, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINKIT_CACHE", f"{cache}/{dist.get_rank()}")  # as on hosts with disks of their own
        return _choose(comm, num_bytes, known)


def test_auto_times_the_best_and_the_next_run_reuses_it(tmp_path):
    comm = Comm(wire_dtype="int8", topology=_two_hosts(tmp_path))
    first = run_ranks(_choose_with_cache, 4, str(tmp_path), comm, 2**22)
    assert len({choice.plan for choice, _ in first}) == 1
    said = first[0][1]
    assert said[0].startswith(f"all-reduce plan: {first[0][0].plan.describe()}, the fastest of ")
    assert all("s (predicted" in line for line in said[1:])
    assert len(said) >= 4
    assert any(line.endswith("x: flat") for line in said)
    assert len(list(tmp_path.glob("*/comm-*.json"))) == 1  # rank 0's
    again = run_ranks(_choose_with_cache, 4, str(tmp_path), comm, 2**22)
    assert [choice.plan for choice, _ in again] == [choice.plan for choice, _ in first]
    assert again[3][1][:-1] == said
    assert "from an earlier run" in again[3][1][-1]


def test_a_damaged_cache_is_measured_anew(tmp_path):
    comm = Comm(topology=_two_hosts(tmp_path))
    run_ranks(_choose_with_cache, 4, str(tmp_path), comm, 2**21)
    (path,) = tmp_path.glob("*/comm-*.json")
    whole = path.read_text()
    path.write_text(whole[:40])
    for _, said in run_ranks(_choose_with_cache, 4, str(tmp_path), comm, 2**21):
        assert "from an earlier run" not in said[-1]
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()


def test_a_checkpoint_decides_on_the_machines_of_its_run(tmp_path):
    topology = _two_hosts(tmp_path)
    asked, _ = run_ranks(_choose, 4, Comm(plan="leader", topology=topology))[0]
    known = asked.to_dict()
    for choice, said in run_ranks(_choose_with_cache, 4, str(tmp_path), Comm(topology=topology), 2**20, known):
        assert choice.plan == asked.plan
        assert "as in the checkpoint, on the same machines" in said[0]
    for other in (
        Comm(plan="hierarchical", topology=topology),
        Comm(plan="leader", wire_dtype="int8", topology=topology),
    ):
        choice, said = run_ranks(_choose, 4, other, 2**20, known)[0]
        assert (choice.plan.kind, choice.plan.wire_dtype) == (other.plan, other.wire_dtype)
        assert "as configured" in said[0]
    elsewhere = {**known, "fingerprint": "another"}
    for _, said in run_ranks(_choose_with_cache, 4, str(tmp_path), Comm(topology=topology), 2**20, elsewhere):
        assert "checkpoint" not in said[0]


def test_where_no_link_can_be_read_auto_is_flat_and_says_why(tmp_path):
    topology = Topology.read(_two_hosts(tmp_path))
    torn = tuple(replace(host, links=host.links[:2]) for host in topology.hosts)  # no way to the network
    path = tmp_path / "torn.json"
    path.write_text(replace(topology, hosts=torn).to_json())
    for choice, said in run_ranks(_choose_with_cache, 4, str(tmp_path), Comm(topology=str(path)), 2**20):
        assert choice.plan.kind == "flat"
        assert "trainkit topo show" in said[0]


def test_what_is_wrong_with_the_links_is_said_before_the_choice(tmp_path):
    topology = Topology.read(_two_hosts(tmp_path))
    facts = {"topo_file": "/etc/topo.xml cannot be read: No such file or directory"}
    path = tmp_path / "warned.json"
    path.write_text(replace(topology, hosts=tuple(replace(host, facts=facts) for host in topology.hosts)).to_json())
    for _, said in run_ranks(_choose, 4, Comm(plan="leader", topology=str(path))):
        assert said[0].startswith("warning: every host: NCCL_TOPO_FILE: it is not used here: /etc/topo.xml cannot be")
        assert "as configured" in said[-1]


@pytest.mark.parametrize(
    ("text", "words"), [("{", ":1:2: invalid JSON"), (None, "cannot be read"), ('{"hosts": []}', "at least one host")]
)
def test_a_topology_that_cannot_be_used_is_refused_on_all_ranks(tmp_path, text, words):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RankError, match=words):
        run_ranks(_choose, 2, Comm(topology=str(path)))


def test_a_lossy_plan_of_a_checkpoint_yields_to_exact(tmp_path):
    topology = _two_hosts(tmp_path)
    lossy, _ = run_ranks(_choose, 4, Comm(plan="hierarchical", wire_dtype="int8", topology=topology))[0]
    exact = run_ranks(_choose_with_cache, 4, str(tmp_path), Comm(topology=topology), 2**20, lossy.to_dict())
    assert {choice.plan.wire_dtype for choice, _ in exact} == {"exact"}


def _chosen_twice(cache: str, comm: Comm) -> list[tuple[str, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINKIT_CACHE", cache)
        patch.setattr(Reducer, "_time", None)  # neither timed nor probed
        patch.setattr("trainkit.reduction.reducer.probe", None)
        return [_choose(comm, 2**22, deterministic=True)[0].why for _ in range(2)]


def test_a_deterministic_run_chooses_by_fixed_predictions(tmp_path):
    comm = Comm(topology=_two_hosts(tmp_path))
    for first, second in run_ranks(_chosen_twice, 4, str(tmp_path / "cache"), comm):
        assert first == second
        assert ": predicted " in first[0]
    assert not (tmp_path / "cache").exists()


def test_power_sgd_is_refused_where_a_resume_must_be_exact():
    with pytest.raises(ConfigError, match="comm=powersgd: with deterministic=true"):
        trainkit.Runtime(comm="powersgd", deterministic=True, device="cpu")


# -- in training -------------------------------------------------------------------------------------------------------


def _trained(comm: Comm, directory: str | None = None) -> list[torch.Tensor]:
    """Parameters after six steps; with a directory, with a checkpoint and a new start after four."""
    torch.manual_seed(0)
    parts = [(4, 0), (2, 64)] if directory else [(6, 0)]
    for num_steps, start in parts:
        runtime = trainkit.Runtime(
            comm=comm, deterministic=comm.plan != "powersgd", device="cpu", tracker=trainkit.Tracker()
        )
        module = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
        engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), name="e")
        if start:
            start = runtime.load(f"{directory}/last", e=engine).position
        _train(runtime, engine, num_steps, start)
        if directory:
            runtime.save(f"{directory}/last", e=engine)
        runtime.close()
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("plan", ["hierarchical", "leader"])
def test_exact_plans_train_alike_and_bit_for_bit_resumed(tmp_path, plan):
    comm = Comm(plan=plan, topology=_two_hosts(tmp_path))
    by_rank = run_ranks(_trained, 4, comm)
    resumed = run_ranks(_trained, 4, comm, str(tmp_path))
    flat = run_ranks(_trained, 4, Comm(plan="flat"))[0]
    for rank in range(4):
        for a, b, c, d in zip(by_rank[0], by_rank[rank], resumed[rank], flat, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
            assert (a - d).abs().max() < 1e-6 * d.abs().max()


def _searched(comm: Comm) -> tuple[int, str | None]:
    """One rank runs out of memory in its backward; how many micro-batches were found, and the plan that then sums."""
    runtime = trainkit.Runtime(comm=comm, device="cpu", tracker=trainkit.Tracker())

    def attempt(num: int) -> None:
        engine = test_probe._engine(runtime, "backward", 3, num)
        test_probe._steps(runtime, engine, 1)
        engine.retire()

    found = fewest_micro_batches(runtime, attempt, largest=lambda: 8)
    runtime.reset()
    engine = test_probe._engine(runtime, "backward", 3, found)
    test_probe._steps(runtime, engine, 1)
    choice = engine.state.scalars()["comm"]
    runtime.close()
    return found, choice["plan"]["kind"]


def test_memory_is_tried_without_a_plan_and_trained_with_it(tmp_path):
    comm = Comm(plan="hierarchical", topology=_two_hosts(tmp_path))
    assert run_ranks(_searched, 4, comm, timeout_s=60) == [(3, "hierarchical")] * 4


def test_power_sgd_is_exact_before_it_starts_and_trains_after(tmp_path):
    flat = run_ranks(_trained, 4, Comm(plan="flat"))[0]
    exact = run_ranks(_trained, 4, Comm(plan="powersgd"))
    lossy = run_ranks(_trained, 4, Comm(plan="powersgd", start_after=2))
    assert max(float((a - b).abs().max()) for a, b in zip(exact[0], flat, strict=True)) < 1e-6
    assert max(float((a - b).abs().max()) for a, b in zip(lossy[0], flat, strict=True)) > 1e-6
    assert all(torch.equal(a, b) for a, b in zip(lossy[0], lossy[3], strict=True))


@needs_bed
def test_auto_finds_the_slow_link_between_hosts(tmp_path):
    with Bed(2, 25) as bed:  # slower than loopback on a machine that is busy with other tests
        exact = bed.run(_choose_with_cache, str(tmp_path), Comm(), 2**20)
        crossed = bed.run(_choose_with_cache, str(tmp_path), Comm(), 2**20, order="round robin")
    for choices, groups in ((exact, ((0, 1), (2, 3))), (crossed, ((0, 2), (1, 3)))):
        assert len({choice.plan for choice, _ in choices}) == 1
        assert choices[0][0].plan.kind != "flat"
        assert choices[0][0].plan.groups == groups
