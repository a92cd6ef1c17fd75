"""Machines to discover: an object that answers as nvidia-ml-py's module does, and what a host is read from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainkit.topology.discover import Sources, read_nvml
from trainkit.topology.topology import Host

DATA = Path(__file__).parent / "data"
NOWHERE = Path("/nowhere")


class NVMLError(Exception):
    """As pynvml's: every error is one of these."""


class NotSupported(NVMLError):
    def __str__(self) -> str:
        return "Not Supported"


class FakeNvml:
    """`gpus`: bus ids in NVML's order. nvlinks: of each GPU, the bus id at the far end of each of its links.

    levels: of pairs of indices, nvmlGpuTopologyLevel_t; p2p: of pairs, nvmlGpuP2PStatus_t. lacking: functions that this
    driver answers with Not Supported. slices: of an index, how many MIG slices it is cut into.
    """

    NVMLError = NVMLError

    def __init__(
        self,
        gpus: list[str],
        *,
        name: str = "NVIDIA A100-SXM4-80GB",
        capability: tuple[int, int] = (8, 0),
        nvlinks: dict[int, list[str]] | None = None,
        levels: dict[tuple[int, int], int] | None = None,
        p2p: dict[tuple[int, int], int] | None = None,
        numa: list[int] | None = None,
        pcie: dict[int, tuple[int, int, int, int]] | None = None,
        slices: dict[int, int] | None = None,
        lacking: tuple[str, ...] = (),
        broken: str = "",
    ) -> None:
        self.gpus, self.name, self.capability = gpus, name, capability
        self.nvlinks, self.levels, self.p2p = nvlinks or {}, levels or {}, p2p or {}
        self.numa, self.pcie, self.slices = numa, pcie or {}, slices or {}
        self.lacking, self.broken = lacking, broken
        self.num_open = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "lacking"):

            def refuse(*arguments: Any) -> None:
                raise NotSupported

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54.15"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle:04x}-aaaa"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str, int]:
        if not uuid.startswith("MIG-"):
            raise NotSupported
        return ("slice", int(uuid[4]))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: tuple[str, int]) -> int:
        return handle[1]

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(busId=self.gpus[handle])

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.name

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.capability

    def nvmlDeviceGetMemoryAffinity(self, handle: int, num_words: int, scope: int) -> list[int]:
        if self.numa is None:
            raise NotSupported
        return [1 << self.numa[handle]] + [0] * (num_words - 1)

    def nvmlDeviceGetTopologyCommonAncestor(self, a: int, b: int) -> int:
        return self.levels.get((min(a, b), max(a, b)), 50)

    def nvmlDeviceGetP2PStatus(self, a: int, b: int, index: int) -> int:
        return self.p2p.get((min(a, b), max(a, b)), 0)

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        if link >= 18:
            raise NVMLError("Invalid Argument")
        return int(link < len(self.nvlinks.get(handle, [])))

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> SimpleNamespace:
        return SimpleNamespace(busId=self.nvlinks[handle][link])

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:
        return 0 if self.nvlinks[handle][link] in self.gpus else 2

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: int) -> int:
        return self.pcie.get(handle, (4, 4, 16, 16))[0]

    def nvmlDeviceGetGpuMaxPcieLinkGeneration(self, handle: int) -> int:
        return self.pcie.get(handle, (4, 4, 16, 16))[1]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: int) -> int:
        return self.pcie.get(handle, (4, 4, 16, 16))[2]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: int) -> int:
        return self.pcie.get(handle, (4, 4, 16, 16))[3]

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        return [int(handle in self.slices), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> int:
        if index >= self.slices[handle]:
            raise NVMLError("Not Found")
        return index


def bus(number: int) -> str:
    """As NVML writes it."""
    return f"00000000:{0x10 + number:02X}:00.0"


def nvswitch_host(**given: Any) -> FakeNvml:
    """8 GPUs, each with 2 links to each of 6 NVSwitches; two a PCIe switch, four a socket."""
    gpus = [bus(i) for i in range(8)]
    switches = [f"00000000:C{i}:00.0" for i in range(6)]
    levels = {(a, b): 20 if a // 2 == b // 2 else 40 if a // 4 == b // 4 else 50 for a in range(8) for b in range(8)}
    return FakeNvml(
        gpus,
        nvlinks={i: [switch for switch in switches for _ in range(2)] for i in range(8)},
        levels=levels,
        numa=[i // 4 for i in range(8)],
        **given,
    )


def paired_host(num_gpus: int = 4, **given: Any) -> FakeNvml:
    """Pairs of RTX A6000 with a bridge of 4 NVLinks."""
    gpus = [bus(i) for i in range(num_gpus)]
    nvlinks = {i: [bus(i ^ 1)] * 4 for i in range(num_gpus)}
    levels = {(a, b): 40 for a in range(num_gpus) for b in range(num_gpus)}
    given = {"name": "NVIDIA RTX A6000", "capability": (8, 6), "numa": [0] * num_gpus} | given
    return FakeNvml(gpus, nvlinks=nvlinks, levels=levels, **given)


def nvml_host(module: FakeNvml, **facts: Any) -> Host:
    host = read_nvml(module)
    assert host is not None
    return replace(host, facts={**host.facts, **facts})


def links(host: Host, kind: str) -> dict[tuple[str, str], float]:
    return {(way.a, way.b): way.bandwidth_gb_per_s for way in host.links if way.kind == kind}


def sources(
    root: Path = NOWHERE, proc: Path = NOWHERE, *, etc: Path = NOWHERE, module=None, smi_text: str = "", **environment
) -> Sources:
    """Of a machine that has only what is given; NVML is missing unless given."""
    module = FakeNvml([], broken="Driver Not Loaded") if module is None else module
    return Sources(environment=environment, root=root, proc=proc, etc=etc, nvml=module, smi_text=smi_text or None)


def matrix(num_gpus: int, cell: Callable[[int, int], str], more: str = "") -> str:
    """The text of `nvidia-smi topo -m`, with the cell of each pair a < b."""
    names = [f"GPU{i}" for i in range(num_gpus)]
    rows = [
        [name, *(" X " if i == j else cell(min(i, j), max(i, j)) for j in range(num_gpus))]
        for i, name in enumerate(names)
    ]
    return "\n".join("\t".join(row) for row in [["", *names], *rows]) + "\n" + more


def nccl_xml(below_gpus: list[str], capability: str = "90") -> str:
    """NCCL's XML of GPUs on one socket, with the addresses of `bus` and what is below each <gpu>."""
    gpus = "\n".join(
        f'<pci busid="{bus(i)[4:].lower()}" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16">'
        f'<gpu dev="{i}" sm="{capability}" rank="{i}" gdr="1">{inside}</gpu></pci>'
        for i, inside in enumerate(below_gpus)
    )
    return f'<system version="1"><cpu numaid="0" arch="x86_64">\n{gpus}\n</cpu></system>'


def write(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text + "\n")
    return path
