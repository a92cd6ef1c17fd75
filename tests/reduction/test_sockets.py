"""A host whose sockets have slow links between them: the plan, its sums, and the bytes that pass between sockets."""

import json
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from benchmarks.bed import Bed, why_not
from benchmarks.links import CPU, Cell, picked, turn
from trainkit.planning import ReducePlan, flat
from trainkit.reduction import Route

CELL = Cell(num_hosts=1, ranks_per_host=4, sockets=2, socket_mbit_per_s=100, mbit_per_s=1000, num_mb=2, num_turns=1)
NUM_BYTES = CELL.num_mb * 2**20

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no bed of hosts: {why_not()}")


@pytest.fixture(scope="module")
def host() -> Iterator[Bed]:
    with Bed(1, sockets=2, socket_mbit_per_s=100) as made:
        yield made


def chosen(host: Bed, tmp_path, wire_dtype: str) -> ReducePlan:
    """By prediction alone: what is timed on a busy machine varies."""
    links = tmp_path / "links.json"
    links.write_text(json.dumps(CELL.topology().to_dict()))
    answers = host.run(picked, NUM_BYTES, wire_dtype, str(tmp_path), str(links), True, ranks_per_host=4)
    (plan,) = {plan for plan, _ in answers}
    return plan


def error(plan: ReducePlan) -> float:
    """The largest difference of this rank's sum from that in float64, over the largest element of that."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = [torch.randn(50_021, generator=torch.Generator().manual_seed(seed)) for seed in range(world_size)]
    route = Route(plan, rank=rank, device=CPU)
    total = parts[rank].clone()
    route.all_reduce(total).wait()
    route.close()
    exact = torch.stack(parts).double().sum(0)
    return float((total - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(("wire_dtype", "most_error", "most_sent"), [("exact", 1e-6, 1.06), ("int8", 2e-2, 0.32)])
def test_sums_are_made_within_sockets_first(host, tmp_path, wire_dtype, most_error, most_sent):
    plan = chosen(host, tmp_path, wire_dtype)
    assert plan.groups == ((0, 1), (2, 3))
    assert plan.wire_dtype == wire_dtype
    assert max(host.run(error, plan, ranks_per_host=4)) <= most_error
    sent = max(share for _, share in host.run(turn, plan, NUM_BYTES, ranks_per_host=4))
    assert sent <= most_sent


def test_the_flat_ring_sends_half_as_much_again(host):
    assert max(share for _, share in host.run(turn, flat(4), NUM_BYTES, ranks_per_host=4)) >= 1.5
    assert max(host.run(error, flat(4), ranks_per_host=4)) <= 1e-6


def test_ranks_are_grouped_by_host_or_socket_as_bytes_allow(tmp_path):
    cell = Cell(num_hosts=2, ranks_per_host=4, sockets=2, socket_mbit_per_s=200, mbit_per_s=100, num_mb=8, num_turns=1)
    links = tmp_path / "links.json"
    links.write_text(json.dumps(cell.topology().to_dict()))
    with Bed(2, sockets=2) as bed:
        plans = [
            bed.run(picked, 8 * 2**20, wire_dtype, str(tmp_path), str(links), True, ranks_per_host=4)[0][0]
            for wire_dtype in ("exact", "int8")
        ]
        assert max(bed.run(error, plans[0], ranks_per_host=4)) <= 1e-6
    # Sums of a host cross its sockets before anything is quantized; those of a socket cross nothing.
    assert [len(plan.groups) for plan in plans] == [2, 4]
