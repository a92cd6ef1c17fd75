"""Nominal figures of links: payload in GB/s in one direction, latency in microseconds.

They are those of NCCL (src/graph/topo.h, topo.cc and tuning.cc), which are below the rated ones because of protocol
overhead.
"""

from trainkit.topology.topology import LinkKind

NVLINK_GB_PER_S = {"6.0": 18.0, "7.0": 20.0, "7.5": 20.0, "8.0": 20.0, "8.6": 12.0, "9.0": 20.6, "10.0": 40.1}
"""Of one NVLink, by compute capability."""

ANY_NVLINK_GB_PER_S = 20.0
MOST_NVLINKS = 18
"""Of a GPU at most; where all pairs would need more, the GPUs are connected by a switch."""

PCIE_GB_PER_S_PER_LANE = {1: 0.1875, 2: 0.375, 3: 0.75, 4: 1.5, 5: 3.0, 6: 6.0}
"""By generation; 16 lanes of generation 3 have 12 GB/s."""

PCIE_GENERATION_OF_GT_PER_S = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}

NIC_GB_PER_S_PER_GBIT = 0.12
"""12 GB/s of payload for 100 Gb/s on the wire."""

LOOPBACK_GB_PER_S = 2.0
"""Of gloo between two processes of one machine: one core copies through a TCP socket."""

LATENCY_US: dict[LinkKind, float] = {
    "nvlink": 0.6,
    "nvswitch": 0.3,  # two on the way from GPU to GPU
    "pcie": 0.5,
    "socket": 0.5,
    "nic": 2.5,
    "loopback": 15.0,
}
TCP_NIC_LATENCY_US = 15.0
"""Of a network card that is reached through sockets."""

# For GPUs of which only the name is known: part of the name, compute capability, PCIe generation. Longer parts first.
_GPUS = (
    ("GB200", "10.0", 5),
    ("GB300", "10.0", 5),
    ("GH200", "9.0", 5),
    ("B100", "10.0", 5),
    ("B200", "10.0", 5),
    ("B300", "10.0", 5),
    ("H100", "9.0", 5),
    ("H200", "9.0", 5),
    ("H800", "9.0", 5),
    ("H20", "9.0", 5),
    ("A100", "8.0", 4),
    ("A800", "8.0", 4),
    ("A30", "8.0", 4),
    ("A6000", "8.6", 4),
    ("A5000", "8.6", 4),
    ("A5500", "8.6", 4),
    ("A4500", "8.6", 4),
    ("A40", "8.6", 4),
    ("A10", "8.6", 4),
    ("RTX 30", "8.6", 4),
    ("RTX 40", "8.9", 4),
    ("L40", "8.9", 4),
    ("L4", "8.9", 4),
    ("Ada", "8.9", 4),
    ("RTX 50", "12.0", 5),
    ("RTX PRO", "12.0", 5),
    ("V100", "7.0", 3),
    ("TITAN V", "7.0", 3),
    ("TITAN RTX", "7.5", 3),
    ("RTX 20", "7.5", 3),
    ("RTX 8000", "7.5", 3),
    ("T4", "7.5", 3),
    ("P100", "6.0", 3),
)


# Between two sockets. AMD's by family, as Linux counts and as NCCL writes it into its XML; Zen 1 and 2 otherwise.
_AMD_GB_PER_S = {25: 24.0, 175: 24.0, 26: 32.0, 191: 32.0}
# Intel's, from the oldest model on: Emerald Rapids, Sapphire Rapids, Skylake, and before.
_INTEL_GB_PER_S = ((0xCF, 40.0), (0x8F, 22.0), (0x55, 10.0), (0, 6.0))


def compute_capability(gpu_name: str) -> str | None:
    """`9.0` for `NVIDIA H100 80GB HBM3`; None for an unknown name."""
    return next((capability for part, capability, _ in _GPUS if part in gpu_name), None)


def pcie_generation(gpu_name: str) -> int:
    """The PCIe generation of a GPU by its name; 3 for an unknown name."""
    return next((generation for part, _, generation in _GPUS if part in gpu_name), 3)


def nvlink_gb_per_s(gpu_name: str = "", capability: str | None = None) -> float:
    """The bandwidth of one NVLink of a GPU, by its compute capability, otherwise by its name."""
    capability = capability or compute_capability(gpu_name)
    if capability is None:
        return ANY_NVLINK_GB_PER_S
    major = int(capability.split(".")[0])
    newest = NVLINK_GB_PER_S["10.0"] if major >= 10 else NVLINK_GB_PER_S.get(f"{major}.0", ANY_NVLINK_GB_PER_S)
    return NVLINK_GB_PER_S.get(capability, newest)


def pcie_gb_per_s(generation: int, num_lanes: int = 16) -> float:
    """The bandwidth of a PCIe link; that of the newest known generation for a newer one."""
    generation = min(max(generation, 1), max(PCIE_GB_PER_S_PER_LANE))
    return PCIE_GB_PER_S_PER_LANE[generation] * num_lanes


def pcie_generation_of(link_speed: str) -> int | None:
    """The generation of `16.0 GT/s PCIe` or `8 GT/s`, as sysfs and NCCL write them; None for anything else."""
    try:
        rate = float(link_speed.split()[0])
    except (ValueError, IndexError):
        return None
    return PCIE_GENERATION_OF_GT_PER_S.get(rate)


def socket_gb_per_s(vendor: str = "", family: int = 0, model: int = 0) -> float:
    """The bandwidth between two sockets, by the vendor, family and model of the processor in /proc/cpuinfo."""
    if vendor == "AuthenticAMD":
        return _AMD_GB_PER_S.get(family, 16.0)
    if vendor == "GenuineIntel":
        return next(figure for oldest, figure in _INTEL_GB_PER_S if model >= oldest)
    return 6.0 if vendor == "ARM" else 10.0
