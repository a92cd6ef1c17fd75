"""Compares the predictions of CostModel with published bus bandwidths of all-reduces. It measures nothing.

    python benchmarks/predictions.py

Every row names its source. `fitted`: one of the five constants in FITTED was set by it; every other row is held out.
Rows of PEAKS are the largest messages of their source; the goal (median error at most 5 %, worst 20 %) is theirs.
Where a source gives neither size nor number of hosts, 8 GiB and 4 hosts are assumed. NVIDIA/nccl#412 and #812 are
what NVIDIA's engineers state of such machines.
CURVES are smaller messages, printed without a goal: NCCL changes its protocol there, and its tuner, whose constants the
model uses, is inaccurate.
Excluded: reports of a fault, and sources that do not say what the machine is; see NOT_COMPARABLE.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from trainkit.planning import CostModel, flat
from trainkit.topology import NETWORK, Device, Host, Link, Nic, Topology, preset

GIB, MIB = 1 << 30, 1 << 20
FITTED = {
    "19.2 GB/s a lane of the A100's NVLink (nominal: 20)": "8 x A100: 230",
    "NVLS reaches 0.83 of Hopper's links (in NCCL: 0.85), after 80 us (25)": "8 x H100: 480, and its curve",
    "a PCIe host bridge passes 5/6 of what a slot does": "3 x A100 PCIe: 20",
    "without direct copies between GPUs, 0.88 of PCIe is left": "4 x RTX 5090: 35",
    "28 GB/s between the sockets of two Xeon 8480+": "8 x RTX 5090: 28",
}
NOT_COMPARABLE = {
    "NVIDIA/nccl#307, DGX-1, 2 nodes: 58": "quoted from memory, without size; the model says 74",
    "NVIDIA/nccl#527, p4d, 2 to 4 nodes: 57, 32, 30": "report of a fault; AWS itself publishes 78 on 2 (below)",
    "NVIDIA/nccl#1161, 2 x H100 PCIe with bridges: 116": "report of a fault; the model says 247",
    "NVIDIA/nccl#2409, 2 nodes x 8 H100: 231": "report of a fault",
    "NVIDIA/nccl#495, 2 nodes x 8 A100, 8 x 100 Gb/s: 75": "'a bit low' to NVIDIA; the model says 96",
    "NVIDIA/nccl-tests#44, 2 x RTX 2080 Ti: 22": "does not say how many NVLinks",
    "Azure NC96ads A100 v4, 4 x A100 PCIe: 31, a pair 58": "does not say how many NVLinks the virtual machine sees",
    "Oracle, 32 nodes x 4 GB200: 684": "an NVLink domain over many hosts is not described by a topology yet",
}


def hosts(
    num_nodes: int,
    num_gpus: int,
    capability: str,
    *,
    nvswitch_gb_per_s: float = 0.0,
    nics: Sequence[float] = (),
    nvlinks: Sequence[tuple[int, int, float]] = (),
    slot_gb_per_s: float = 24.0,
    sockets: int = 1,
    socket_gb_per_s: float = 20.0,
    p2p: bool = True,
) -> Topology:
    """A machine from a few figures. nics: Gb/s of each; they sit evenly among the GPUs, at their PCIe switches."""
    num_switches = max(1, min(len(nics), num_gpus)) if nics else num_gpus
    links = []
    for i in range(num_gpus):
        links.append(_link(f"gpu{i}", f"pcie{i * num_switches // num_gpus}", "pcie", slot_gb_per_s))
        if nvswitch_gb_per_s:
            links.append(_link(f"gpu{i}", "nvswitch", "nvswitch", nvswitch_gb_per_s))
    links += [_link(f"gpu{a}", f"gpu{b}", "nvlink", gb_per_s) for a, b, gb_per_s in nvlinks]
    for i, gbit in enumerate(nics):
        links.append(_link(f"nic{i}", f"pcie{i * num_switches // len(nics)}", "pcie", 48.0))
        links.append(_link(f"nic{i}", NETWORK, "nic", 0.12 * gbit))
    for i in range(num_switches):
        links.append(_link(f"pcie{i}", f"socket{i * sockets // num_switches}", "pcie", slot_gb_per_s * 5 / 6))
    links += [_link("socket0", f"socket{i}", "socket", socket_gb_per_s) for i in range(1, sockets)]
    host = Host(
        name="host",
        devices=tuple(Device(id=f"gpu{i}", compute_capability=capability) for i in range(num_gpus)),
        nics=tuple(Nic(id=f"nic{i}", kind="infiniband") for i in range(len(nics))),
        switches=("nvswitch", *(f"pcie{i}" for i in range(num_switches)), *(f"socket{i}" for i in range(sockets))),
        links=tuple(links),
        facts={"p2p": p2p},
    )
    return Topology(hosts=(host,)).times(num_nodes)


def _link(
    a: str, b: str, kind: Literal["nvlink", "nvswitch", "pcie", "socket", "loopback", "nic"], gb_per_s: float
) -> Link:
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=gb_per_s, latency_us=1.0)


def part(topology: Topology, num_gpus: int) -> Topology:
    """The first GPUs of each host only."""
    wanted = {f"gpu{i}" for i in range(num_gpus)}
    return replace(topology, places=tuple(p for p in topology.places if p.device in wanted))


def a100(num_nodes: int = 1, nics: Sequence[float] = (), lanes: int = 12) -> Topology:
    return hosts(num_nodes, 8, "8.0", nvswitch_gb_per_s=19.2 * lanes, nics=nics)


def h100(
    num_nodes: int = 1, nics: Sequence[float] = (), lanes: int = 18, num_gpus: int = 8, nvls: bool = True
) -> Topology:
    capability = "9.0" if nvls else "8.0"
    return hosts(num_nodes, num_gpus, capability, nvswitch_gb_per_s=20.6 * lanes, nics=nics, slot_gb_per_s=48.0)


def b200(num_nodes: int = 1, nics: Sequence[float] = ()) -> Topology:
    return hosts(num_nodes, 8, "10.0", nvswitch_gb_per_s=40.1 * 18, nics=nics, slot_gb_per_s=48.0)


A100_PAIRS = hosts(1, 8, "8.0", nvlinks=[(i, i + 1, 19.2 * 12) for i in range(0, 8, 2)], sockets=2)
V100_QUAD = [(a, b, 40.0) for a in range(4) for b in range(a)]
GITHUB = "https://github.com/"
TESTS = GITHUB + "NVIDIA/nccl-tests/issues/"
NCCL = GITHUB + "NVIDIA/nccl/issues/"
AWS = GITHUB + "aws-samples/awsome-distributed-training: micro-benchmarks/nccl-tests/README.md"
AZURE = GITHUB + "Azure/AI-benchmarking-guide: "
ORACLE = GITHUB + "oracle-quickstart/oci-hpc-oke: README.md"
RTX_5090: dict[str, Any] = {
    "capability": "12.0",
    "slot_gb_per_s": 48.0,
    "sockets": 2,
    "socket_gb_per_s": 28.0,
    "p2p": False,
}


@dataclass(frozen=True, eq=False)
class Row:
    """published: GB/s of bus bandwidth."""

    machine: str
    topology: Topology
    num_bytes: int
    published: float
    source: str
    fitted: bool = False


PEAKS = [
    Row("8 x A100 SXM", a100(), 8 * GIB, 230, TESTS + "149", fitted=True),
    Row("8 x A100 SXM (Azure ND A100 v4)", a100(), 8 * GIB, 231.58, AZURE + "Azure_Results/ND_A100_v4_results.md"),
    Row("8 x A100 SXM", a100(), 4 * GIB, 232.54, TESTS + "175"),
    Row("8 x A800 SXM, 8 NVLinks", a100(lanes=8), 8 * GIB, 160, NCCL + "412"),
    Row("8 x H100 SXM", h100(), 8 * GIB, 480, TESTS + "212", fitted=True),
    Row("8 x H100 SXM, rings only", h100(nvls=False), 8 * GIB, 370, TESTS + "212"),
    Row("8 x H100 SXM (Azure ND H100 v5)", h100(), 8 * GIB, 478.87, AZURE + "Azure Results/NDv5 Results.md"),
    Row("8 x H200 SXM (Azure ND H200 v5)", h100(), 8 * GIB, 479.98, AZURE + "Azure_Results/ND_H200_v5_results.md"),
    Row("8 x H200 SXM", h100(), 4 * GIB, 475, TESTS + "272"),
    Row("8 x H800 SXM, 8 NVLinks", h100(lanes=8), 8 * GIB, 215, NCCL + "1374"),
    Row("8 x GB200 of one NVLink domain", b200(), 32 * GIB, 847.12, ORACLE + " (GB200)"),
    Row("2 x A100 PCIe, a pair of 12 NVLinks", part(A100_PAIRS, 2), 8 * GIB, 208, TESTS + "178"),
    Row("3 x A100 PCIe, a pair and one", part(A100_PAIRS, 3), 8 * GIB, 20, TESTS + "178", fitted=True),
    Row("4 x RTX 5090, PCIe 5", part(hosts(1, 8, **RTX_5090), 4), 8 * GIB, 35, NCCL + "1639", fitted=True),
    Row("8 x RTX 5090, PCIe 5, 2 sockets", hosts(1, 8, **RTX_5090), 8 * GIB, 28, NCCL + "1639", fitted=True),
    Row("4 x DGX-1 V100, 4 x 100 Gb/s", preset("dgx-1", 4), 8 * GIB, 47, NCCL + "307"),
    Row(
        "2 x 4 V100, 2 x 100 Gb/s", hosts(2, 4, "7.0", nvlinks=V100_QUAD, nics=[100] * 2), 8 * GIB, 41.55, TESTS + "251"
    ),
    Row("2 x 8 A100, 1 x 200 Gb/s", a100(2, [200]), 4 * GIB, 24, TESTS + "175"),
    Row("12 x 8 A800, 1 x 200 Gb/s", a100(12, [200], lanes=8), 8 * GIB, 24, NCCL + "412"),
    Row("2 x 8 A100, 4 x 200 Gb/s", a100(2, [200] * 4), 4 * GIB, 86, TESTS + "175"),
    Row("2 x 8 A100, 4 x 200 Gb/s", a100(2, [200] * 4), 8 * GIB, 91, TESTS + "100"),
    Row("3 x 8 A100, 4 x 200 Gb/s", a100(3, [200] * 4), 131072008, 96.45, TESTS + "119"),
    Row("4 x DGX A100, 8 x 200 Gb/s", preset("dgx-a100", 4), 8 * GIB, 192, NCCL + "812"),
    Row("2 x 8 A100, 16 x 100 Gb/s (Oracle, NCCL 2.25)", a100(2, [100] * 16), 4 * GIB, 190.02, ORACLE),
    Row("2 x 8 A100, 16 x 100 Gb/s (Oracle, NCCL unnamed)", a100(2, [100] * 16), 8 * GIB, 237.94, ORACLE),
    Row("2 x 8 A100, 4 x 100 Gb/s (AWS p4de)", a100(2, [100] * 4), 2 * GIB, 78.33, AWS),
    Row("2 x 8 H100, 32 x 100 Gb/s (AWS p5)", h100(2, [100] * 32), 16 * GIB, 487.09, AWS),
    Row("2 x 8 H100, 8 x 400 Gb/s", h100(2, [400] * 8), 8 * GIB, 470, TESTS + "309"),
    Row(
        "2 x 8 H100, 16 x 200 Gb/s (Oracle)",
        h100(2, [200] * 16),
        16 * GIB,
        464.57,
        "Oracle Japan, OCI tutorials: NCCL Tests on BM.GPU.H100.8",
    ),
    Row(
        "2 x 8 H100, 8 x 400 Gb/s (Nebius)",
        h100(2, [400] * 8),
        8 * GIB,
        467.28,
        GITHUB + "skypilot-org/skypilot: Nebius InfiniBand example",
    ),
    Row(
        "2 x 8 H200, 8 x 400 Gb/s (Nebius)",
        h100(2, [400] * 8),
        16 * GIB,
        478.15,
        GITHUB + "twinanda/ml-cookbook: runai/README.md",
    ),
    Row("4 x 8 H100, 8 x 400 Gb/s", h100(4, [400] * 8), 16 * GIB, 365.84, TESTS + "309"),
    Row("2 x 1 H100, 1 x 400 Gb/s", part(h100(2, [400] * 8), 1), 16 * GIB, 50, TESTS + "232"),
    Row(
        "2 x 8 B200, 8 x 400 Gb/s (GCP A4)",
        b200(2, [400] * 8),
        8 * GIB,
        683.52,
        GITHUB + "dstackai/dstack: examples/clusters/a4/README.md",
    ),
]

CURVES = [
    Row(machine, topology, num_bytes, published, source)
    for machine, topology, source, points in (
        ("8 x A100 (Azure)", a100(), AZURE + "Azure_Results/ND_A100_v4_results.md", (36.22, 109.22, 174.18, 228.10)),
        ("8 x H100 (Azure)", h100(), AZURE + "Azure Results/NDv5 Results.md", (43.7, 234.45, 400.61, 466.35)),
        ("8 x H200 (Azure)", h100(), AZURE + "Azure_Results/ND_H200_v5_results.md", (52.96, 240.41, 412.45, 467.58)),
        ("2 x 8 A100 (AWS p4de)", a100(2, [100] * 4), AWS, (6.35, 26.39, 64.31, 76.79)),
        ("2 x 8 A100 (Oracle, NCCL unnamed)", a100(2, [100] * 16), ORACLE, (22.97, 111.29, 163.20, 219.12)),
        ("2 x 8 H100 (AWS p5)", h100(2, [100] * 32), AWS, (15.95, 105.52, 289.16, 436.95)),
    )
    for num_bytes, published in zip((MIB, 16 * MIB, 128 * MIB, GIB), points, strict=True)
]


@cache
def predict(row: Row) -> float:
    """GB/s of bus bandwidth, of NCCL left to itself."""
    return CostModel(row.topology, "nccl").bus_bandwidth_gb_per_s(flat(row.topology.world_size), row.num_bytes)


def error(row: Row) -> float:
    """Of the prediction, as a share of what was published; positive where the model is too fast."""
    return predict(row) / row.published - 1


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Median and worst of the absolute errors, in percent."""
    errors = [100 * abs(error(row)) for row in rows]
    return {"rows": len(rows), "median": round(statistics.median(errors), 1), "worst": round(max(errors), 1)}


def results() -> dict[str, object]:
    kinds = {
        "peaks": PEAKS,
        "peaks, held out": [row for row in PEAKS if not row.fitted],
        "peaks, fitted": [row for row in PEAKS if row.fitted],
        "curves": CURVES,
    }
    table = [
        {
            **{field.name: getattr(row, field.name) for field in fields(row) if field.name != "topology"},
            "kind": kind,
            "predicted": round(predict(row), 2),
            "error_percent": round(100 * error(row), 1),
        }
        for kind, rows in (("peak", PEAKS), ("curve", CURVES))
        for row in rows
    ]
    return {
        "summary_percent": {name: summary(rows) for name, rows in kinds.items()},
        "fitted": FITTED,
        "not_comparable": NOT_COMPARABLE,
        "rows": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    for title, rows in (("largest messages", PEAKS), ("smaller messages, no goal", CURVES)):
        print(f"{title}\n{'machine':49} {'MiB':>6} {'published':>9} {'predicted':>9} {'error':>7}")
        for row in rows:
            mark = "fitted" if row.fitted else ""
            figures = f"{row.num_bytes / MIB:6.0f} {row.published:9.1f} {predict(row):9.1f} {100 * error(row):+6.1f}%"
            print(f"{row.machine:49} {figures} {mark:6} {row.source.removeprefix(GITHUB)}")
    found, now = results(), datetime.now(UTC)
    for name, figures in found["summary_percent"].items():  # type: ignore[attr-defined]
        print(f"{name}: {figures['rows']} rows, median error {figures['median']} %, worst {figures['worst']} %")
    path = arguments.output / f"predictions_{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"time": now.isoformat(), **found}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
