"""Network cards: of what kind one is, by its name or its PCI class, and what is assumed of one of unknown speed."""

import re
from typing import Literal

from trainkit.topology.discover import nominal
from trainkit.topology.topology import NETWORK, Link

Kind = Literal["infiniband", "ethernet", "unknown"]
ASSUMED_GBIT = 10.0
"""Of a network card of unknown speed: NCCL plans with this figure too (graph/topo.cc, transport/net_socket.cc)."""

_RDMA = re.compile(r"NIC\d|mlx|ib[ps]?\d+s|ib_|bnxt_re|irdma|roce|rdmap|efa|erdma|hns|hfi|qedr|mana")
_INFINIBAND = "0x0207"
_MELLANOX, _EFA = "15b3:", "1d0f:efa"


def kind_of(name: str = "", *, pci_class: str = "", pci_id: str | None = None) -> Kind:
    """The kind of a network card.

    Args:
        name: of its RDMA device (`mlx5_0`) or its network interface (`eth0`); empty: unknown.
        pci_class: such as `0x020700`.
        pci_id: vendor and device: NVIDIA's (Mellanox) cards of the class Ethernet can RoCE, and Amazon's EFA is RDMA.

    Returns:
        `infiniband` for InfiniBand, RoCE and EFA.

    Example:
        >>> kind_of("mlx5_0"), kind_of("eth0"), kind_of(pci_class="0x020000")
        ('infiniband', 'ethernet', 'unknown')
    """
    if name:
        return "infiniband" if _RDMA.match(name) else "ethernet"
    is_rdma = pci_class.startswith(_INFINIBAND) or (pci_id or "").startswith((_MELLANOX, _EFA))
    return "infiniband" if is_rdma else "unknown"


def nic_link(nic: str, gbit_per_s: float | None, *, by_sockets: bool = False) -> Link:
    """The link of a network card to NETWORK.

    Args:
        nic: its id.
        gbit_per_s: its rate; None: unknown, and assumed.
        by_sockets: with the latency of TCP.
    """
    return Link(
        a=nic,
        b=NETWORK,
        kind="nic",
        bandwidth_gb_per_s=round((gbit_per_s or ASSUMED_GBIT) * nominal.NIC_GB_PER_S_PER_GBIT, 4),
        latency_us=nominal.TCP_NIC_LATENCY_US if by_sockets else nominal.LATENCY_US["nic"],
        source="nominal" if gbit_per_s else "assumed",
    )
