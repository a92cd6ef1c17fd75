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


def staged_pairs(host: Host) -> frozenset[frozenset[str]] | None:
    """The pairs of GPUs without access to each other's memory (the fact `p2p_off`); None: all are alike."""
    off = host.facts.get("p2p_off")
    return frozenset(frozenset(ends.split()) for ends in off) if off else None


def is_redirected(host: Host) -> bool:
    """Whether PCIe's access control services (ACS) send messages between GPUs at one switch to its host bridge."""
    return host.facts.get("acs") is True


def link_gb_per_s(host: Host, link: Link, *, staged: bool | None = None) -> float:
    """The bandwidth of a link for messages between GPUs.

    Args:
        host: of the link; its facts `cpu` (the vendor as in /proc/cpuinfo) and `environment` decide. A host of unknown
            vendor is taken for an AMD one.
        link: PCIe and between sockets; others, and measured ones, keep their bandwidth.
        staged: whether the messages pass through the memory of the host; None: as all of the host do.

    Returns:
        GB/s in one direction.
    """
    passes = is_staged(host) if staged is None else staged
    if not passes or link.source != "nominal" or link.kind not in ("pcie", "socket"):
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
