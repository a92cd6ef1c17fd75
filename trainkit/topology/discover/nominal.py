"""Nominal figures of links: payload in GB/s in one direction, latency in microseconds.

They are those of NCCL (src/graph/topo.h, topo.cc and tuning.cc), which are below the rated ones because of protocol
overhead. Models of GPUs are found in trainkit/topology/cards.csv.
"""

from trainkit.topology.cards import card_of
from trainkit.topology.topology import Device, LinkKind

NVLINK_GB_PER_S = {"6.0": 18.0, "7.0": 20.0, "7.5": 20.0, "8.0": 20.0, "8.6": 12.0, "9.0": 20.6, "10.0": 40.1}
"""Of one NVLink, by compute capability."""

ANY_NVLINK_GB_PER_S = 20.0
"""Of one NVLink of a GPU whose model and compute capability are unknown."""
ASSUMED_PCIE_GENERATION = 3
"""Of a GPU whose model and compute capability are unknown, and of a machine that cannot be read."""
MOST_NVLINKS = 18
"""Of a GPU at most; where all pairs would need more, the GPUs are connected by a switch."""

PCIE_GB_PER_S_PER_LANE = {1: 0.1875, 2: 0.375, 3: 0.75, 4: 1.5, 5: 3.0, 6: 6.0}
"""By generation; 16 lanes of generation 3 have 12 GB/s."""

PCIE_GENERATION_OF_GT_PER_S = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}

NIC_GB_PER_S_PER_GBIT = 0.12
"""12 GB/s of payload for 100 Gb/s on the wire."""

UNKNOWN_NIC_GBIT = {"infiniband": 100.0, "ethernet": 1.0}
"""The assumed rate of a network card whose rate cannot be read."""

LOOPBACK_GB_PER_S = 2.0
"""Of gloo between two processes of one machine: one core copies through a TCP socket."""

LATENCY_US: dict[LinkKind, float] = {
    "nvlink": 0.6,
    "nvswitch": 0.3,  # two on the way from GPU to GPU
    "xgmi": 0.6,
    "pcie": 0.5,
    "socket": 0.5,
    "nic": 2.5,
    "loopback": 15.0,
}
TCP_NIC_LATENCY_US = 15.0
"""Of a network card that is reached through sockets."""

# For a GPU that is not in the table of cards, by the major number of its compute capability.
_PCIE_GENERATION = {6: 3, 7: 3, 8: 4, 9: 5, 10: 5, 12: 5}


# Between two sockets. AMD's by family, as Linux counts and as NCCL writes it into its XML; Zen 1 and 2 otherwise.
_AMD_GB_PER_S = {25: 24.0, 175: 24.0, 26: 32.0, 191: 32.0}
# Intel's, from the oldest model on: Emerald Rapids, Sapphire Rapids, Skylake, and before.
_INTEL_GB_PER_S = ((0xCF, 40.0), (0x8F, 22.0), (0x55, 10.0), (0, 6.0))


def compute_capability(device: Device) -> str | None:
    """The compute capability of a GPU: its own, otherwise that of its model; None where neither is known."""
    if device.compute_capability is not None:
        return device.compute_capability
    card = card_of(device)
    return None if card is None else card.compute_capability


def pcie_generation(device: Device) -> int | None:
    """The PCIe generation of a GPU's slot, by its model, otherwise by its compute capability; None: unknown."""
    card = card_of(device)
    if card is not None and card.pcie_generation is not None:
        return card.pcie_generation
    capability = compute_capability(device)
    return None if capability is None else _PCIE_GENERATION.get(int(capability.split(".")[0]))


def slot_gb_per_s(device: Device) -> float:
    """The bandwidth of a GPU's PCIe link, where it could not be read."""
    card = card_of(device)
    lanes = card.pcie_lanes if card is not None and card.pcie_lanes is not None else 16
    return pcie_gb_per_s(pcie_generation(device) or ASSUMED_PCIE_GENERATION, lanes)


def nvlink_gb_per_s(device: Device) -> float | None:
    """The bandwidth of one NVLink of a GPU, by its compute capability; None: unknown."""
    capability = compute_capability(device)
    if capability is None:
        return None
    major = int(capability.split(".")[0])
    newest = NVLINK_GB_PER_S["10.0"] if major >= 10 else NVLINK_GB_PER_S.get(f"{major}.0")
    return NVLINK_GB_PER_S.get(capability, newest)


def assumed(device: Device, *, pcie: bool, nvlink: bool) -> str:
    """The figures that are assumed for a GPU because its model is unknown, such as `PCIe 3`; an empty text: none.

    Args:
        device: the GPU.
        pcie: whether its PCIe link could not be read.
        nvlink: whether it has NVLinks of unknown speed.
    """
    figures = []
    if pcie and pcie_generation(device) is None:
        figures.append(f"PCIe {ASSUMED_PCIE_GENERATION} with 16 lanes")
    if nvlink and nvlink_gb_per_s(device) is None:
        figures.append(f"{ANY_NVLINK_GB_PER_S:g} GB/s for an NVLink")
    return " and ".join(figures)


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
