"""The time of all-reduce plans between hosts and sockets with slow links, and the plan that comm=auto chooses.

    python benchmarks/links.py --runs 2           # all cells, one run after the other; about 10 minutes each
    python benchmarks/links.py --cell "2 x 2, 200 Mb/s, 25 MB" --cell "1 x (2 + 2), 200 Mb/s between sockets, 25 MB"

Hosts are network namespaces of this machine with links of a given rate, see bed.py; ranks are processes with a thread
each. In every cell the plans run alternately in the same processes; the time is that of the slowest rank, and medians
are compared. Bytes are counted by the namespaces. `bound` is the time in which a host can send 2 (H - 1) / H of the
gradient over its link, or a socket as much over its own, whichever is longer; `bound_share` is bound / time of a plan
with exact gradients. auto reads the links, predicts and measures, as at the start of a run; that time is not included.
The links between sockets are those of a file, as a run on one host without GPUs reads none.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks import overhead
from benchmarks.bed import Bed, tx_bytes, why_not
from benchmarks.bed_server import Order
from trainkit.distributed import current_cluster
from trainkit.planning import WIRE_DTYPES, ReducePlan, WireDtype, flat
from trainkit.reduction import Comm, Reducer, Route
from trainkit.topology import NETWORK, Device, Host, Link, Nic, Topology

MB = 2**20
LOOPBACK_GB_PER_S = 2.0
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hosts, their links, and the message. `mbit_per_s` is of a host; of a socket where there is one host."""

    num_hosts: int
    mbit_per_s: float
    num_mb: int
    num_turns: int
    order: Order = "by host"
    ranks_per_host: int = 2
    sockets: int = 1
    socket_mbit_per_s: float | None = None

    @property
    def name(self) -> str:
        ranks = "" if self.order == "by host" else f", {self.order}"
        per_socket = self.ranks_per_host // self.sockets
        size = f"{per_socket}" if self.sockets == 1 else f"({' + '.join([str(per_socket)] * self.sockets)})"
        links = [] if self.num_hosts == 1 else [f"{self.mbit_per_s:g} Mb/s"]
        if self.socket_mbit_per_s is not None:
            links.append(f"{self.socket_mbit_per_s:g} Mb/s between sockets")
        return f"{self.num_hosts} x {size}, {', '.join(links)}, {self.num_mb} MB{ranks}"

    @property
    def bound_s(self) -> float:
        def seconds(parts: int, mbit_per_s: float) -> float:
            return 2 * (parts - 1) / parts * self.num_mb * MB / (mbit_per_s * 1e6 / 8)

        of_hosts = seconds(self.num_hosts, self.mbit_per_s)
        of_sockets = seconds(self.num_hosts * self.sockets, self.socket_mbit_per_s) if self.socket_mbit_per_s else 0.0
        return max(of_hosts, of_sockets)

    def groups(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The partitions into parts with faster links than between them, by what they are called in plans."""
        hosts, size = range(self.num_hosts), self.ranks_per_host
        if self.order != "by host":
            return {"": tuple(tuple(range(host, self.num_hosts * size, self.num_hosts)) for host in hosts)}
        part = size // self.sockets
        found = {"": tuple(tuple(range(host * size, (host + 1) * size)) for host in hosts)}
        if self.sockets > 1:
            parts = range(self.num_hosts * self.sockets)
            found = {"by host ": found[""], "by socket ": tuple(tuple(range(n * part, (n + 1) * part)) for n in parts)}
        return {name: groups for name, groups in found.items() if len(groups) > 1}

    def plans(self) -> dict[str, ReducePlan]:
        plans = {"flat": flat(self.num_hosts * self.ranks_per_host)}
        for by, groups in self.groups().items():

            def plan(
                kind: Any, wire_dtype: WireDtype = "exact", chunk_mb: float | None = None, groups: Any = groups
            ) -> ReducePlan:
                chunk_bytes = None if chunk_mb is None else int(chunk_mb * MB)
                return ReducePlan(kind=kind, groups=groups, wire_dtype=wire_dtype, chunk_bytes=chunk_bytes)

            plans[f"hierarchical {by}, whole".replace(" ,", ",")] = plan("hierarchical")
            if self.order != "by host":
                plans["ring by host"] = plan("ring")
            for kind in ("hierarchical", "leader"):
                for wire_dtype in (f for f in WIRE_DTYPES if f != "bf16"):
                    for chunk_mb in (1, 2, 4) if kind == "hierarchical" else (2,):
                        if chunk_mb < self.num_mb:
                            name = f"{kind} {by}, {wire_dtype}, chunks of {chunk_mb} MB".replace(" ,", ",")
                            plans[name] = plan(kind, wire_dtype, chunk_mb)
        return plans

    def topology(self) -> Topology:
        """Hosts whose sockets have a link each to the others of the host, and share the one to other hosts."""
        assert self.socket_mbit_per_s is not None
        devices = tuple(Device(id=f"cpu{i}", kind="cpu") for i in range(self.ranks_per_host))
        part = self.ranks_per_host // self.sockets
        links = [_link(d.id, f"socket{i // part}", "loopback", LOOPBACK_GB_PER_S) for i, d in enumerate(devices)]
        links += [_link(f"socket{i}", "bridge", "socket", self.socket_mbit_per_s / 8e3) for i in range(self.sockets)]
        links += [
            _link("bridge", "nic0", "pcie", LOOPBACK_GB_PER_S),
            _link("nic0", NETWORK, "nic", self.mbit_per_s / 8e3),
        ]
        host = Host(
            name="bed-host",
            devices=devices,
            nics=(Nic(id="nic0"),),
            switches=("bridge", *(f"socket{i}" for i in range(self.sockets))),
            links=tuple(links),
        )
        return Topology(hosts=(host,)).times(self.num_hosts)


def _link(a: str, b: str, kind: Any, gb_per_s: float) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=20.0, source="measured")


CELLS = (
    Cell(num_hosts=2, mbit_per_s=200, num_mb=25, num_turns=5),
    Cell(num_hosts=2, mbit_per_s=200, num_mb=100, num_turns=3),
    Cell(num_hosts=4, mbit_per_s=50, num_mb=4, num_turns=5),
    Cell(num_hosts=4, mbit_per_s=50, num_mb=25, num_turns=2),
    Cell(num_hosts=2, mbit_per_s=200, num_mb=25, num_turns=3, order="round robin"),
    Cell(num_hosts=4, mbit_per_s=50, num_mb=4, num_turns=3, order="round robin"),
    Cell(num_hosts=1, ranks_per_host=4, sockets=2, socket_mbit_per_s=200, mbit_per_s=1000, num_mb=25, num_turns=3),
    Cell(num_hosts=2, ranks_per_host=4, sockets=2, socket_mbit_per_s=200, mbit_per_s=100, num_mb=8, num_turns=3),
)


def picked(
    num_bytes: int, wire_dtype: WireDtype, cache: str, topology: str | None = None, deterministic: bool = False
) -> tuple[ReducePlan, list[str]]:
    """What comm=auto comes to on this rank, and what it says. Collective."""
    os.environ["TRAINKIT_CACHE"] = cache
    said: list[str] = []
    reducer = Reducer(
        Comm(wire_dtype=wire_dtype, topology=topology),
        cluster=current_cluster(),
        device=CPU,
        deterministic=deterministic,
        group=dist.group.WORLD,
        report=said.append,
        during=lambda activity: nullcontext(),
    )
    plan = reducer.choose(num_bytes).plan
    reducer.close()
    return plan, said


def sent_bytes() -> int:
    """What this rank's host, or socket, has sent on its link so far."""
    return tx_bytes(Path("/proc/self/net/dev").read_text())


def turn(plan: ReducePlan, num_bytes: int) -> tuple[float, float]:
    """Seconds of one all-reduce on this rank, with int8 error feedback; and what its host sent over `num_bytes`."""
    route = Route(plan, rank=dist.get_rank(), device=CPU)
    gradient = torch.ones(num_bytes // 4)
    route.all_reduce(gradient[: len(gradient) // 16]).wait()  # connects
    errors = [gradient.new_zeros(chunk.num_own) for chunk in route.chunks(len(gradient), 4)]
    dist.barrier()
    before, start = sent_bytes(), time.perf_counter()
    route.all_reduce(gradient, errors=errors if plan.wire_dtype == "int8" else ()).wait()
    seconds = time.perf_counter() - start
    dist.barrier()
    sent = (sent_bytes() - before) / num_bytes
    route.close()
    return seconds, sent


def turns(name: str, plans: dict[str, ReducePlan], num_bytes: int, num_turns: int) -> dict[str, Any]:
    """By plan, what `turn` gives, on this rank. Collective."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
    for number in range(num_turns):
        for label in list(plans)[:: -1 if number % 2 else 1]:
            found[label].append(turn(plans[label], num_bytes))
        if dist.get_rank() == 0:
            print(f"\r{name}: turn {number + 1} of {num_turns} ", end="", file=sys.stderr, flush=True)
    return found


def run(cell: Cell) -> dict[str, Any]:
    plans, num_bytes = cell.plans(), cell.num_mb * MB
    shape: dict[str, Any] = {"ranks_per_host": cell.ranks_per_host, "order": cell.order, "timeout_s": 900}
    links: dict[str, Any] = {"sockets": cell.sockets, "socket_mbit_per_s": cell.socket_mbit_per_s}
    with Bed(cell.num_hosts, cell.mbit_per_s, **links) as bed, tempfile.TemporaryDirectory() as cache:
        auto: dict[str, Any] = {}
        topology = None
        if cell.sockets > 1:
            topology = f"{cache}/links.json"
            Path(topology).write_text(json.dumps(cell.topology().to_dict()))
        for wire_dtype in ("exact", "int8"):
            plan, said = bed.run(picked, num_bytes, wire_dtype, cache, topology, **shape)[0]
            if plan not in plans.values():
                plans[f"auto's {plan.describe()}"] = plan
            name = next(name for name, other in plans.items() if other == plan)
            auto[wire_dtype] = {"name": name, "said": said}
        by_rank = bed.run(turns, cell.name, plans, num_bytes, cell.num_turns, **shape)
    print(file=sys.stderr)
    seconds = {
        name: [max(s for s, _ in ranks) for ranks in zip(*(r[name] for r in by_rank), strict=True)] for name in plans
    }
    sent = {name: max(s for rank in by_rank for _, s in rank[name]) for name in plans}
    return summarise(cell, plans, seconds, sent, auto)


def summarise(
    cell: Cell,
    plans: Mapping[str, ReducePlan],
    seconds: Mapping[str, list[float]],
    sent: Mapping[str, float],
    auto: dict[str, Any],
) -> dict[str, Any]:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = {
        name: {
            "seconds": medians[name],
            "all_seconds": seconds[name],
            "over_flat": medians["flat"] / medians[name],
            "bound_share": cell.bound_s / medians[name] if plan.wire_dtype == "exact" else None,
            "sent_a_host": sent[name],
        }
        for name, plan in plans.items()
    }
    for wire_dtype, found in auto.items():
        allowed = [medians[name] for name, plan in plans.items() if plan.wire_dtype in ("exact", wire_dtype)]
        found["over_best"] = medians[found["name"]] / min(allowed)
    return {"cell": cell.name, **asdict(cell), "bound_s": cell.bound_s, "plans": rows, "auto": auto}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['cell']}: bound {result['bound_s']:.3f} s",
        f"  {'plan':44} seconds   over flat  bound  bytes / S",
    ]
    for name, row in result["plans"].items():
        share = f"{row['bound_share']:5.0%}" if row["bound_share"] is not None else "     "
        lines.append(f"  {name:44} {row['seconds']:7.3f}  {row['over_flat']:8.2f}x  {share}  {row['sent_a_host']:8.3f}")
    for wire_dtype, found in result["auto"].items():
        lines.append(f"  auto, {wire_dtype}: {found['name']}; {found['over_best']:.3f} of the best plan's time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [cell.name for cell in CELLS]
    parser.add_argument("--cell", choices=names, action="append", default=[], help="one alone; may be given again")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of all cells; default: 1")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"no network namespaces here: {reason}")
    torch.set_num_threads(1)
    facts, results = overhead.machine(), []
    for number in range(1, arguments.runs + 1):
        for cell in CELLS:
            if cell.name in (arguments.cell or names):
                results.append({**run(cell), "run": number})
                print(table(results[-1]), flush=True)
    for name, some in (
        ("links", [r for r in results if r["sockets"] == 1]),
        ("links-sockets", [r for r in results if r["sockets"] > 1]),
    ):
        if some:
            overhead.write(name, facts, some, arguments.output)


if __name__ == "__main__":
    main()
