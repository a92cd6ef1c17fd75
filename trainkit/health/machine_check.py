"""A short measurement of every rank and link before a long job: matrix products, pairs of ranks, an all-reduce."""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.health.gpu_state import gpu_problems
from trainkit.health.machine_report import LinkFigure, MachineReport, RankFigure
from trainkit.topology.measure import bench, exchange
from trainkit.topology.paths import between
from trainkit.topology.topology import Topology

SECONDS = 0.5
FEWEST, MOST = 4, 200  # products
SIZE = {"cpu": 512, "cuda": 8192}
ALL_REDUCE_BYTES = {"cpu": 4_000_000, "cuda": 256_000_000}
NUM_PHASES = 4

Multiply = Callable[[Tensor, Tensor], Tensor]
Say = Callable[[str], None]


def check_machines(
    device: torch.device,
    *,
    num_phases: int = NUM_PHASES,
    multiply: Multiply = torch.mm,
    host: str | None = None,
    group: dist.ProcessGroup | None = None,
    topology: Topology | None = None,
    say: Say = lambda text: None,
) -> MachineReport:
    """Measures every rank, links between them, and an all-reduce. Collective: every rank must call.

    Links are measured between pairs of ranks, which do not wait for other pairs: so a slow one is told from those that
    would only wait for it in a ring. First all pairs within hosts, then ranks of the same number on different hosts.

    Args:
        device: of this process.
        num_phases: partners of each rank at most, within its host and on others; all pairs where there are no more.
        multiply: of two matrices.
        host: of this rank; None: $TRAINKIT_HOST, or the host's name.
        group: of all ranks; None: the default one, where it is initialized.
        topology: of the ranks: with it, links of GPUs are held against their hardware, too.
        say: called with the name of each part before it starts.

    Returns:
        The figures of all ranks, the same on every rank.
    """
    world_size = dist.get_world_size(group) if dist.is_initialized() else 1
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    say("matrix products on each rank")
    gflops_per_s, num_wrong, problems = products(device, multiply)
    mine = RankFigure(rank, host or host_name(), _name(device), gflops_per_s, num_wrong, tuple(problems))
    ranks: list[Any] = [mine]
    links: list[LinkFigure] = []
    if world_size > 1:
        ranks = [None] * world_size
        dist.all_gather_object(ranks, mine, group=group)
        hosts = [figure.host for figure in ranks]
        say("links between ranks of a host")
        known = topology if device.type == "cuda" else None  # gloo is slower than what it runs on
        received = _received(pairs_within(hosts, num_phases), rank, device, group, known)
        say("links between hosts")
        received += _received(pairs_across(hosts, num_phases), rank, device, group, known)
        everyone: list[Any] = [None] * world_size
        dist.all_gather_object(everyone, received, group=group)
        links = [link for some in everyone for link in some]
    say("an all-reduce")
    timing = next(bench([ALL_REDUCE_BYTES[device.type]], device=device, group=group)) if world_size > 1 else None
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the run will use other sizes
    return MachineReport(tuple(ranks), tuple(links), timing)


def host_name() -> str:
    """The name of this host: as the user has typed it where `trainkit launch` started the process."""
    return os.environ.get("TRAINKIT_HOST") or socket.gethostname()


# -- matrix products ---------------------------------------------------------------------------------------------------


def products(device: torch.device, multiply: Multiply = torch.mm) -> tuple[float, int, list[str]]:
    """Multiplies matrices of small integers for half a second, and checks each product by its rows' weighted sums.

    The elements are -1, 0 and 1, so that products are integers that float32 and bfloat16 hold exactly: a row whose sum
    differs from that of float64 holds a wrong number, not a rounded one.

    Args:
        device: of the matrices.
        multiply: of two matrices.

    Returns:
        GFLOP/s of the fastest product, the rows that were wrong, and what is wrong with a GPU while it computes.
    """
    size, dtype = SIZE[device.type], torch.float32 if device.type == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    a, b = (_small_integers(size, generator).to(device, dtype) for _ in range(2))
    weights = (torch.arange(size, device=device) % 7 + 1).double()
    expected = a.double() @ (b.double() @ weights)
    fastest_s, wrong, num, end = float("inf"), torch.zeros((), dtype=torch.int64, device=device), 0, 0.0
    while num < FEWEST or (time.perf_counter() < end and num < MOST):
        _wait_for(device)
        began = time.perf_counter()
        product = multiply(a, b)
        _wait_for(device)
        took_s = time.perf_counter() - began
        end = end or began + SECONDS
        fastest_s = min(fastest_s, took_s) if num else took_s
        wrong += ((product.double() @ weights) != expected).sum()  # NaN is unequal, too
        num += 1
    problems = []
    if device.type == "cuda":
        multiply(a, b)  # still computes while its clock is read
        problems = gpu_problems(_bus_id(device))
        _wait_for(device)
    return 2e-9 * size**3 / fastest_s, int(wrong), problems


def _small_integers(size: int, generator: torch.Generator) -> Tensor:
    """Three quarters are 0: sums of 8192 products then stay below 256, up to which bfloat16 holds every integer."""
    drawn = torch.randint(0, 8, (size, size), generator=generator)
    return (drawn == 1).float() - (drawn == 2).float()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _bus_id(device: torch.device) -> str:
    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- links -------------------------------------------------------------------------------------------------------------

Phase = dict[int, int]  # partner by rank


def pairs_within(hosts: Sequence[str], num_phases: int) -> list[Phase]:
    """Pairs of the ranks of each host.

    Args:
        hosts: of each rank.
        num_phases: that there may be.

    Returns:
        Phases; in each a rank has one partner at most.

    Example:
        >>> pairs_within(["a", "a", "b", "b"], 4)
        [{0: 1, 1: 0, 2: 3, 3: 2}]
    """
    by_host = _by_host(hosts)
    most = max(len(ranks) for ranks in by_host)
    phases: list[Phase] = [{} for _ in _tournament(most)[:num_phases]]
    for ranks in by_host:
        for phase, pairs in zip(phases, _tournament(len(ranks)), strict=False):
            _pair(phase, [(ranks[i], ranks[j]) for i, j in pairs])
    return phases


def pairs_across(hosts: Sequence[str], num_phases: int) -> list[Phase]:
    """Pairs of ranks that have the same number on two hosts.

    Args:
        hosts: of each rank.
        num_phases: that there may be.

    Returns:
        Phases; in each a host has one partner at most.

    Example:
        >>> pairs_across(["a", "a", "b", "b"], 4)
        [{0: 2, 2: 0, 1: 3, 3: 1}]
    """
    by_host = _by_host(hosts)
    phases: list[Phase] = []
    for pairs in _tournament(len(by_host))[:num_phases]:
        phase: Phase = {}
        for i, j in pairs:
            _pair(phase, list(zip(by_host[i], by_host[j], strict=False)))
        phases.append(phase)
    return phases


def _by_host(hosts: Sequence[str]) -> list[list[int]]:
    return [[rank for rank, other in enumerate(hosts) if other == host] for host in dict.fromkeys(hosts)]


def _pair(phase: Phase, pairs: Sequence[tuple[int, int]]) -> None:
    for a, b in pairs:
        phase[a], phase[b] = b, a


def _tournament(num: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each of `num` meets each other one once: one stays, the others turn around."""
    if num < 2:
        return []
    players = [*range(num), *([-1] if num % 2 else [])]  # whoever meets -1 waits
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        met = zip(players[:half], reversed(players[half:]), strict=True)
        rounds.append([(min(pair), max(pair)) for pair in met if -1 not in pair])
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def expected(topology: Topology, phase: Phase) -> dict[int, float]:
    """What ranks receive where all pairs of a phase exchange messages at the speed of the hardware.

    Args:
        topology: of the ranks.
        phase: their pairs.

    Returns:
        GB/s by the rank that receives; a link that several pairs share is divided. Ranks without a known path are
        left out.
    """
    paths = {
        rank: [
            (host, vertex, link)
            for host, path in between(topology, partner, rank)
            for vertex, link in zip(path.vertices, path.links, strict=False)
        ]
        for rank, partner in phase.items()
    }
    load = Counter(edge for path in paths.values() for edge in path)
    return {rank: min(edge[2].bandwidth_gb_per_s / load[edge] for edge in path) for rank, path in paths.items() if path}


def _received(
    phases: Sequence[Phase],
    rank: int,
    device: torch.device,
    group: dist.ProcessGroup | None,
    topology: Topology | None,
) -> list[LinkFigure]:
    """What this rank received from its partner in each phase."""
    found = []
    for phase in phases:
        partner = phase.get(rank)
        flow = exchange([rank] if partner is None else sorted((rank, partner)), device, group)
        if flow is not None:
            hardware = None if topology is None else expected(topology, phase).get(rank)
            found.append(LinkFigure(flow.a, flow.b, flow.gb_per_s, flow.latency_us, hardware))
    return found
