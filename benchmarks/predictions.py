"""Compares the predictions of CostModel with published bus bandwidths of all-reduces. It measures nothing.

    python benchmarks/predictions.py

The rows are in published_all_reduces.yaml. Half of the sources set the constants in FITTED, the other half is held
out: the sources of each kind of machine (that of a source's first row) are sorted by name, and every second one, from
the first on, is fitted. So all rows of a source are on one side, which was decided before the fit. The shape of the
model was changed twice after held-out rows had been seen: the clock of the GPU, and network cards without RDMA. A third
set was never used: unseen_all_reduces.yaml was written down before the model was compared with it.
Where a source gives neither size nor number of hosts, 8 GiB and 4 hosts are assumed. NVIDIA/nccl#412 and #812 are
what NVIDIA's engineers state of such machines.
Excluded: reports of a fault, and sources that do not say what the machine is; see NOT_COMPARABLE.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import yaml

from benchmarks.machines import machine, part
from trainkit.planning import PUBLISHED_RANGES, SMALL_BYTES, CostModel, MachineKind, flat, machine_kind
from trainkit.topology import Topology, preset

PUBLISHED = Path(__file__).parent / "published_all_reduces.yaml"
UNSEEN = Path(__file__).parent / "unseen_all_reduces.yaml"
MIB = 1 << 20
GOALS_PERCENT = {
    f"{size}, {use}": goals
    for size, goals in {"up to 128 MiB": (15.0, 50.0), "above 128 MiB": (3.0, 30.0)}.items()
    for use in ("held out", "never used")
}
"""The goals for the median and the worst absolute error of rows that are not fitted, from 1 MiB on."""
FITTED = {
    "19.5 GB/s an NVLink of the A100 (nominal: 20)": "8 x A100",
    "NVLS reaches 0.83 of Hopper's links (in NCCL: 0.85), after 87 us (25)": "8 x H100, 8 x H200",
    "NVLS over two hosts: 59.9 GB/s a channel (57.7), after 207 us and 11 a step (20.9)": "2 x 8 H100",
    "NVLink steps of LL and Simple: 0.25 and 4 of the tuner's; before Hopper 2.4 of that": "8 x A100, 8 x H100",
    "steps between hosts of LL128 and Simple: 3.7 and 4 of the tuner's": "all rows over hosts",
    "latencies over EFA: 6.7 of those over InfiniBand": "AWS p4de, p5",
    "LL reaches 0.41 of the tuner's bandwidth": "all rows of small messages",
    "a PCIe switch passes 5/6 of what a slot does": "4 x RTX PRO 6000 with ACS",
    "staged through host memory: 0.84 of PCIe": "T4, RTX 2080 Ti, RTX 5090",
    "staged by kernels on AMD hosts: 4.4 GB/s, 1.4 between sockets": "2 and 4 x A40, 4 x A100 without peer access",
    "28 GB/s between the sockets of two Xeon 8480+": "8 x RTX 5090",
}
NOT_COMPARABLE = {
    "NVIDIA/nccl#307, DGX-1, 2 nodes: 58": "quoted from memory, without size",
    "NVIDIA/nccl#527, p4d, 2 to 4 nodes: 57, 32, 30": "report of a fault; AWS itself publishes 78 on 2",
    "NVIDIA/nccl#1161, 2 x H100 PCIe with bridges: 116": "report of a fault",
    "NVIDIA/nccl#2409, 2 nodes x 8 H100: 231": "report of a fault",
    "NVIDIA/nccl-tests#290, 2 nodes x 8 H100: 156": "report of a fault; its one node is a row",
    "NVIDIA/nccl#495, 2 nodes x 8 A100, 8 x 100 Gb/s: 75": "'a bit low' to NVIDIA",
    "NVIDIA/nccl-tests#44, 2 x RTX 2080 Ti: 22": "does not say how many NVLinks",
    "Azure NC96ads A100 v4, 4 x A100 PCIe: 31, a pair 58": "does not say how many NVLinks the virtual machine sees",
    "Oracle, 32 nodes x 4 GB200: 684": "an NVLink domain over many hosts is not described by a topology yet",
    "8 x H100 of a GCP A3 image: 263": "the settings of the image (TCPX) limit NCCL, and are not shown",
    "2 nodes x 1 and 2 L40S (Red Hat): 8.1, 9.6": "does not say how fast the virtual network cards are",
    "2 nodes x 8 A100 (Oracle Japan, 2022): 72": "half of its messages below 512 MiB are slower than smaller ones",
    "2 nodes x 2 H100 NVL (NVIDIA/nccl#2441): 4 to 11": "report of a fault",
}


@dataclass(frozen=True, eq=False)
class Row:
    """One published figure.

    Args:
        machine: in words.
        topology: of it.
        kind: of machine.
        num_bytes: of the message.
        published: GB/s of bus bandwidth.
        source: an address, or words.
        fitted: whether constants may be set by it.
        nccl: version, where it is given.
    """

    machine: str
    topology: Topology
    kind: MachineKind
    num_bytes: int
    published: float
    source: str
    fitted: bool
    nccl: str | None = None

    @property
    def is_small(self) -> bool:
        """Whether the message is at most 128 MiB."""
        return self.num_bytes <= SMALL_BYTES


def _topology(entry: dict[str, Any]) -> Topology:
    one = preset(entry["preset"]) if "preset" in entry else machine(**entry["host"])
    hosts = one.times(entry.get("num_hosts", 1))
    return part(hosts, entry["part"]) if "part" in entry else hosts


@cache
def rows() -> tuple[Row, ...]:
    """The rows that are fitted and those that are held out, in the order of their file."""
    entries = _entries(PUBLISHED)
    kinds: dict[str, MachineKind] = {}
    for entry, topology in entries:
        kinds.setdefault(entry["source"], machine_kind(topology))
    fitted: set[str] = set()
    for each in PUBLISHED_RANGES:
        fitted.update(sorted(source for source, of in kinds.items() if of == each)[::2])
    return _rows(entries, fitted)


@cache
def unseen() -> tuple[Row, ...]:
    """The rows that were never used, in the order of their file."""
    return _rows(_entries(UNSEEN), set())


def _entries(path: Path) -> list[tuple[dict[str, Any], Topology]]:
    return [(entry, _topology(entry)) for entry in yaml.safe_load(path.read_text())]


def _rows(entries: Sequence[tuple[dict[str, Any], Topology]], fitted: Set[str]) -> tuple[Row, ...]:
    return tuple(
        Row(
            machine=entry["machine"],
            topology=topology,
            kind=machine_kind(topology),
            num_bytes=round(float(mib) * MIB),
            published=float(published),
            source=entry["source"],
            fitted=entry["source"] in fitted,
            nccl=entry.get("nccl"),
        )
        for entry, topology in entries
        for mib, published in entry["busbw"].items()
    )


@cache
def predict(row: Row) -> float:
    """GB/s of bus bandwidth, of NCCL left to itself."""
    return CostModel(row.topology, "nccl").bus_bandwidth_gb_per_s(flat(row.topology.world_size), row.num_bytes)


def error(row: Row) -> float:
    """Of the prediction, as a share of what was published; positive where the model is too fast."""
    return predict(row) / row.published - 1


def groups() -> dict[str, list[Row]]:
    """The rows from 1 MiB on, by size and use, and those held out and never used by kind."""
    sizes: dict[str, Callable[[Row], bool]] = {
        "up to 128 MiB": lambda row: MIB <= row.num_bytes <= SMALL_BYTES,
        "above 128 MiB": lambda row: row.num_bytes > SMALL_BYTES,
    }
    uses = {
        "never used": unseen(),
        "held out": tuple(row for row in rows() if not row.fitted),
        "fitted": tuple(row for row in rows() if row.fitted),
    }
    found = {
        f"{size}, {use}": [row for row in some if holds(row)]
        for size, holds in sizes.items()
        for use, some in uses.items()
    }
    for use in ("never used", "held out"):
        for size in sizes:
            for each in PUBLISHED_RANGES:
                of_kind = [row for row in found[f"{size}, {use}"] if row.kind == each]
                if of_kind:
                    found[f"{size}, {use}, {each}"] = of_kind
    return found


def summary(some: Sequence[Row]) -> dict[str, float]:
    """Median and worst of the absolute errors, in percent."""
    errors = [100 * abs(error(row)) for row in some]
    return {"rows": len(some), "median": round(statistics.median(errors), 1), "worst": round(max(errors), 1)}


def ranges() -> dict[MachineKind, tuple[tuple[float, float], tuple[float, float]]]:
    """What `trainkit.planning.accuracy.PUBLISHED_RANGES` holds: percentiles of published over predicted."""
    return {each: (_percentiles(each, is_small=True), _percentiles(each, is_small=False)) for each in PUBLISHED_RANGES}


def _percentiles(of: MachineKind, *, is_small: bool) -> tuple[float, float]:
    ratios = [row.published / predict(row) for row in rows() if row.kind == of and row.is_small == is_small]
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    return round(tenths[0], 2), round(tenths[-1], 2)


def share_in_range(some: Sequence[Row]) -> float:
    """The share of rows within the range that is printed beside their predictions."""
    inside = 0
    for row in some:
        low, high = PUBLISHED_RANGES[row.kind][not row.is_small]
        inside += min(low, 1.0) <= row.published / predict(row) <= max(high, 1.0)
    return inside / len(some)


def results() -> dict[str, Any]:
    """Everything that is written."""
    return {
        "summary_percent": {name: summary(some) for name, some in groups().items()},
        "goals_percent": GOALS_PERCENT,
        "ranges": ranges(),
        "share_in_range": {"never used": round(share_in_range(unseen()), 2)},
        "fitted": FITTED,
        "not_comparable": NOT_COMPARABLE,
        "rows": [_written(row) for row in rows()],
        "unseen_rows": [_written(row) for row in unseen()],
    }


def _written(row: Row) -> dict[str, Any]:
    return {
        **{field.name: getattr(row, field.name) for field in fields(row) if field.name != "topology"},
        "predicted": round(predict(row), 2),
        "error_percent": round(100 * error(row), 1),
    }


def main() -> None:
    """Prints the tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    print(f"{'machine':49} {'MiB':>6} {'published':>9} {'predicted':>9} {'error':>7}")
    for row in (*rows(), *unseen()):
        mark = "fitted" if row.fitted else "unseen" if row in unseen() else ""
        figures = f"{row.num_bytes / MIB:6g} {row.published:9.2f} {predict(row):9.2f} {100 * error(row):+6.1f}%"
        print(f"{row.machine:49} {figures} {mark:6} {row.source.removeprefix('https://github.com/')}")
    found, now = results(), datetime.now(UTC)
    for name, figures in found["summary_percent"].items():
        print(f"{name}: {figures['rows']} rows, median error {figures['median']} %, worst {figures['worst']} %")
    for each, pair in found["ranges"].items():
        print(f"{each}: {pair}")
    print(f"within its range: {found['share_in_range']['never used']:.0%} of the rows that were never used")
    path = arguments.output / f"predictions_{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"time": now.isoformat(), **found}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
