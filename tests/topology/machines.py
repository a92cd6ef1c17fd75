"""Machines without GPUs, as gloo sees them: ranks on one memory, one network card a host."""

from trainkit.topology.topology import NETWORK, Device, Host, Link, Nic, RankPlacement, Topology


def cpu_hosts(
    num_hosts: int, ranks_per_host: int, nic_gb_per_s: float, *, loopback_gb_per_s: float = 4.0, order: str = "by host"
) -> Topology:
    """order: `by host` or `round robin`: which ranks sit together."""
    devices = tuple(Device(id=f"cpu{i}", kind="cpu") for i in range(ranks_per_host))
    links = [
        Link(a=d.id, b="memory", kind="loopback", bandwidth_gb_per_s=loopback_gb_per_s, latency_us=5.0) for d in devices
    ]
    links.append(Link(a="memory", b="nic0", kind="pcie", bandwidth_gb_per_s=12.0, latency_us=0.5))
    links.append(
        Link(a="nic0", b=NETWORK, kind="nic", bandwidth_gb_per_s=nic_gb_per_s, latency_us=20.0, source="measured")
    )
    host = Host(name="host", devices=devices, nics=(Nic(id="nic0"),), switches=("memory",), links=tuple(links))
    pairs = [(h, d.id) for h in range(num_hosts) for d in devices]
    if order == "round robin":
        pairs.sort(key=lambda pair: pair[1])
    return Topology(hosts=(host,) * num_hosts, places=tuple(RankPlacement(host=h, device=d) for h, d in pairs))
