"""plan_all_reduce: chooses the ReducePlan with the shortest predicted time. Pure: the same on every rank."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from trainkit.planning.cost import CommBackend, CostModel
from trainkit.planning.reduce_plan import ReducePlan, WireDtype, flat
from trainkit.topology.graph import Graph
from trainkit.topology.topology import Topology

MIN_GAIN = 0.05
"""The share of the time of `flat` that another plan must be predicted to save, to be chosen over it."""
CHUNK_BYTES = (None, 1 << 20, 2 << 20, 4 << 20, 8 << 20)
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Predicted:
    """A plan with its predicted time.

    Args:
        plan: the plan.
        time_us: microseconds of one all-reduce.
    """

    plan: ReducePlan
    time_us: float


def plan_all_reduce(
    topology: Topology, num_bytes: int, *, wire_dtype: WireDtype = "exact", backend: CommBackend | None = None
) -> ReducePlan:
    """Chooses the plan with the shortest predicted time; `flat` unless another saves more than 5 %.

    Args:
        topology: the hosts, their links, and where the ranks run.
        num_bytes: of a bucket of float32 gradients.
        wire_dtype: a format that is allowed between groups in addition to `exact`.
        backend: of the collectives; None: `nccl` where all devices are GPUs, otherwise `gloo`.

    Returns:
        The plan.

    Raises:
        TopologyError: where no link leads from one rank to another.

    Example:
        >>> from trainkit.topology.presets import preset
        >>> plan_all_reduce(preset("workstation-2", 2), 25_000_000, wire_dtype="int8").kind
        'hierarchical'
    """
    every = candidates(topology, num_bytes, wire_dtype=wire_dtype, backend=backend)
    plain = next(entry for entry in every if entry.plan.kind == "flat")
    return every[0].plan if every[0].time_us < (1 - MIN_GAIN) * plain.time_us else plain.plan


def candidates(
    topology: Topology,
    num_bytes: int,
    *,
    wire_dtype: WireDtype = "exact",
    backend: CommBackend | None = None,
    chunk_bytes: int | None = None,
) -> list[Predicted]:
    """Predicts the time of all possible plans.

    Args:
        topology: see `plan_all_reduce`, as for the other arguments.
        num_bytes: of a bucket of float32 gradients.
        wire_dtype: a format that is allowed between groups in addition to `exact`.
        backend: of the collectives.
        chunk_bytes: of all plans with chunks; None: several sizes are tried.

    Returns:
        The plans, fastest first; `flat` is always among them.

    Raises:
        TopologyError: where no link leads from one rank to another.
    """
    model = CostModel(topology, backend)
    found = [
        Predicted(plan=plan, time_us=model.all_reduce_us(plan, num_bytes))
        for plan in _possible(topology, num_bytes, wire_dtype, model.backend, chunk_bytes)
    ]
    return sorted(found, key=lambda entry: entry.time_us)  # stable: the simpler of two equally fast plans comes first


def shortlist(every: Sequence[Predicted], count: int = 3) -> list[Predicted]:
    """Selects plans to measure.

    They differ in more than the size of their chunks, so that each kind is measured once.

    Args:
        every: plans, fastest first.
        count: the number of plans to return, at most.

    Returns:
        The fastest, in their order.
    """
    best: dict[tuple[object, ...], Predicted] = {}
    for entry in every:
        best.setdefault((entry.plan.kind, entry.plan.groups, entry.plan.wire_dtype), entry)
    return list(best.values())[:count]


def groupings(topology: Topology) -> list[Groups]:
    """The partitions of the ranks into groups with faster links than between them.

    By NVLink domain and by host; within hosts by NVLink, and by PCIe switch and socket where these cut no NVLinks.

    Args:
        topology: of the job.

    Returns:
        Partitions with at least 2 groups.
    """
    by_host = topology.ranks_by_host()
    graphs = [Graph(host) for host in topology.hosts]
    islands = _within(topology, graphs, Graph.islands)
    by_pcie = [_within(topology, graphs, by) for by in (Graph.by_pcie_switch, Graph.by_socket)]
    uncut = (groups for groups in by_pcie if all(any({*island} <= {*group} for group in groups) for island in islands))
    within = [groups for groups in (islands, *uncut) if max(map(len, groups)) > 1]
    return [groups for groups in dict.fromkeys((topology.ranks_by_nvlink_node(), by_host, *within)) if len(groups) > 1]


def _within(
    topology: Topology, graphs: Sequence[Graph], by: Callable[[Graph, Sequence[str]], tuple[tuple[str, ...], ...]]
) -> Groups:
    """The ranks by host, and within each host by a partition of its devices."""
    found: list[tuple[int, ...]] = []
    for ranks in topology.ranks_by_host():
        device_of = {rank: topology.places[rank].device for rank in ranks}
        for devices in by(graphs[topology.places[ranks[0]].host], tuple(dict.fromkeys(device_of.values()))):
            found.append(tuple(rank for rank, device in device_of.items() if device in devices))
    return tuple(found)


def _possible(
    topology: Topology, num_bytes: int, wire_dtype: WireDtype, backend: CommBackend, given: int | None
) -> Iterator[ReducePlan]:
    num_ranks = topology.world_size
    yield flat(num_ranks)
    by_host = topology.ranks_by_host()
    # NCCL orders its rings itself.
    if backend == "gloo" and len(by_host) > 1 and tuple(chain(*by_host)) != tuple(range(num_ranks)):
        yield ReducePlan(kind="ring", groups=by_host)
    dtypes: tuple[WireDtype, ...] = tuple(dict.fromkeys(("exact", wire_dtype)))
    for groups in groupings(topology):
        equal, alone = len({len(group) for group in groups}) == 1, len(groups) == num_ranks
        for dtype in dtypes:
            if alone and dtype == "exact":
                continue
            for chunk_bytes in CHUNK_BYTES if given is None else (given,):
                if given is None and chunk_bytes is not None and chunk_bytes >= num_bytes:
                    continue
                if equal:
                    yield ReducePlan(kind="hierarchical", groups=groups, wire_dtype=dtype, chunk_bytes=chunk_bytes)
                if not alone:
                    yield ReducePlan(kind="leader", groups=groups, wire_dtype=dtype, chunk_bytes=chunk_bytes)
