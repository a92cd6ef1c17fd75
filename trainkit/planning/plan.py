"""plan_all_reduce: the choice of a ReducePlan by predicted time. Pure: the same on every rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from trainkit.planning.cost import Backend, CostModel
from trainkit.planning.reduce_plan import Format, ReducePlan, flat
from trainkit.topology.graph import Graph
from trainkit.topology.topology import Topology

MIN_GAIN = 0.05
"""What a plan must be predicted to save of flat's time, to be chosen over it."""
CHUNK_BYTES = (None, 1 << 20, 2 << 20, 4 << 20, 8 << 20)
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Predicted:
    plan: ReducePlan
    time_us: float


def plan_all_reduce(
    topology: Topology, num_bytes: int, *, wire_dtype: Format = "exact", backend: Backend | None = None
) -> ReducePlan:
    """The plan for buckets of `num_bytes` that is predicted to be fastest; flat unless another gains over 5 %.

    wire_dtype: the format that may cross between groups, beside `exact`.
    Raises TopologyError where no link leads from one rank to another.
    """
    every = candidates(topology, num_bytes, wire_dtype=wire_dtype, backend=backend)
    as_it_is = next(entry for entry in every if entry.plan.kind == "flat")
    return every[0].plan if every[0].time_us < (1 - MIN_GAIN) * as_it_is.time_us else as_it_is.plan


def candidates(
    topology: Topology,
    num_bytes: int,
    *,
    wire_dtype: Format = "exact",
    backend: Backend | None = None,
    chunk_bytes: int | None = None,
) -> list[Predicted]:
    """Every plan that is possible there, fastest first; flat is always among them.

    chunk_bytes: of all plans that have chunks; None: several sizes of each.
    Raises TopologyError where no link leads from one rank to another.
    """
    model = CostModel(topology, backend)
    found = [
        Predicted(plan=plan, time_us=model.all_reduce_us(plan, num_bytes))
        for plan in _possible(topology, num_bytes, wire_dtype, model.backend, chunk_bytes)
    ]
    return sorted(found, key=lambda entry: entry.time_us)  # stable: of equals the simpler, which comes first


def shortlist(every: Sequence[Predicted], count: int = 3) -> list[Predicted]:
    """The fastest `count` that differ in more than the size of their chunks, for who wants to time a few.

    One measurement of each kind tells more than three of one kind.
    """
    best: dict[tuple[object, ...], Predicted] = {}
    for entry in every:
        best.setdefault((entry.plan.kind, entry.plan.groups, entry.plan.format), entry)
    return list(best.values())[:count]


def groupings(topology: Topology) -> list[Groups]:
    """The ways in which fast islands part the ranks: by host, and by NVLink within hosts where that is finer."""
    by_host = topology.ranks_by_host()
    graphs = [Graph(host) for host in topology.hosts]
    by_island: list[tuple[int, ...]] = []
    for ranks in by_host:
        devices = [topology.places[rank].device for rank in ranks]
        islands = graphs[topology.places[ranks[0]].host].islands(tuple(dict.fromkeys(devices)))
        by_island += [tuple(r for r, device in zip(ranks, devices, strict=True) if device in i) for i in islands]
    found = [by_host]
    if any(len(island) > 1 for island in by_island) and tuple(by_island) != by_host:
        found.append(tuple(by_island))
    return [groups for groups in found if len(groups) > 1]


def _possible(
    topology: Topology, num_bytes: int, wire_dtype: Format, backend: Backend, asked: int | None
) -> Iterator[ReducePlan]:
    num_ranks = topology.world_size
    yield flat(num_ranks)
    by_host = topology.ranks_by_host()
    # NCCL orders its rings itself.
    if backend == "gloo" and len(by_host) > 1 and tuple(chain(*by_host)) != tuple(range(num_ranks)):
        yield ReducePlan(kind="ring", groups=by_host)
    formats: tuple[Format, ...] = tuple(dict.fromkeys(("exact", wire_dtype)))
    for groups in groupings(topology):
        equal, alone = len({len(group) for group in groups}) == 1, len(groups) == num_ranks
        for format in formats:
            if alone and format == "exact":
                continue
            for chunk_bytes in CHUNK_BYTES if asked is None else (asked,):
                if asked is None and chunk_bytes is not None and chunk_bytes >= num_bytes:
                    continue
                if equal:
                    yield ReducePlan(kind="hierarchical", groups=groups, format=format, chunk_bytes=chunk_bytes)
                if not alone:
                    yield ReducePlan(kind="leader", groups=groups, format=format, chunk_bytes=chunk_bytes)
