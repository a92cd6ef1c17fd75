"""Staging: messages that pass through the memory of their host, because GPUs have no access to each other's. Pure.

NCCL's SHM transport then moves each message over PCIe twice. Its kernels read and write the host's memory themselves,
or, with NCCL_SHM_USE_CUDA_MEMCPY=1, the copy engines of the GPUs do.
"""

from trainkit.topology.topology import Host, Link

SHARE = 0.84
"""The share of a PCIe link's speed that staged messages reach. Fitted, as are the figures below
(benchmarks/predictions.py)."""
KERNEL_GB_PER_S = 4.4
"""That NCCL's kernels copy through the memory of an AMD host at most, whatever the PCIe generation. On Intel's hosts
the links alone limit them, as they limit copy engines."""
KERNEL_ACROSS_SOCKETS_GB_PER_S = 1.4
"""The same between two sockets."""


def is_staged(host: Host) -> bool:
    """Whether GPUs of a host have no access to each other's memory."""
    return host.facts.get("p2p") is False


def turns_at_root(host: Host) -> bool:
    """Whether messages between GPUs at one PCIe switch pass through its host bridge.

    Staged ones do, and those that PCIe's access control services (ACS) redirect.
    """
    return is_staged(host) or host.facts.get("acs") is True


def link_gb_per_s(host: Host, link: Link) -> float:
    """The bandwidth of a link for messages between GPUs.

    Args:
        host: of the link; its facts `p2p` (False: staged), `cpu` (the vendor as in /proc/cpuinfo) and `environment`
            decide. A host of unknown vendor is taken for an AMD one.
        link: PCIe and between sockets; others, and measured ones, keep their bandwidth.

    Returns:
        GB/s in one direction.
    """
    if not is_staged(host) or link.source != "nominal" or link.kind not in ("pcie", "socket"):
        return link.bandwidth_gb_per_s
    if link.kind == "pcie":
        limit, gb_per_s = KERNEL_GB_PER_S, link.bandwidth_gb_per_s * SHARE
    else:
        limit, gb_per_s = KERNEL_ACROSS_SOCKETS_GB_PER_S, link.bandwidth_gb_per_s
    by_kernels = host.facts.get("environment", {}).get("NCCL_SHM_USE_CUDA_MEMCPY") != "1"
    of_device = link.kind == "socket" or not {link.a, link.b}.isdisjoint(device.id for device in host.devices)
    if by_kernels and of_device and host.facts.get("cpu") != "GenuineIntel":
        return min(limit, gb_per_s)
    return gb_per_s
