"""Machines of several shapes, written down by hand."""

from trainkit.topology.topology import NETWORK, Device, Host, Link, Nic, Topology

CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def link(a, b, kind, bandwidth_gb_per_s, latency_us=0.5, **others):
    return Link(a=a, b=b, kind=kind, bandwidth_gb_per_s=bandwidth_gb_per_s, latency_us=latency_us, **others)


def box(name, num_gpus, num_switches, num_nics, *, pcie=12.0, nic=12.0, nvswitch=0.0, nvlinks=(), gpu=""):
    """Two sockets, PCIe switches shared out between them, GPUs and network cards shared out between those."""
    links = [link("socket0", "socket1", "socket", 9.0)]
    links += [link(f"pcie{i}", f"socket{2 * i // num_switches}", "pcie", pcie) for i in range(num_switches)]
    links += [link(f"gpu{i}", f"pcie{i * num_switches // num_gpus}", "pcie", pcie) for i in range(num_gpus)]
    links += [link(f"nic{i}", f"pcie{i * num_switches // num_nics}", "pcie", pcie) for i in range(num_nics)]
    links += [link(f"nic{i}", NETWORK, "nic", nic, 2.5) for i in range(num_nics)]
    links += [link(f"gpu{a}", f"gpu{b}", "nvlink", n * 20.0) for (a, b), n in dict(nvlinks).items()]
    links += [link(f"gpu{i}", "nvswitch", "nvswitch", nvswitch) for i in range(num_gpus) if nvswitch]
    return Host(
        name=name,
        devices=tuple(Device(id=f"gpu{i}", name=gpu) for i in range(num_gpus)),
        nics=tuple(Nic(id=f"nic{i}", name=f"mlx5_{i}", kind="infiniband") for i in range(num_nics)),
        switches=(
            *(f"pcie{i}" for i in range(num_switches)),
            "socket0",
            "socket1",
            *(["nvswitch"] if nvswitch else []),
        ),
        links=tuple(links),
    )


def dgx_1():
    return Topology(hosts=(box("dgx-1", 8, 4, 4, nvlinks=CUBE_MESH, gpu="Tesla V100-SXM2-32GB"),))


def dgx_2():
    return Topology(hosts=(box("dgx-2", 16, 8, 8, nvswitch=120.0, gpu="Tesla V100-SXM3-32GB"),))


def dgx_h100(num_nodes=1):
    host = box("dgx-h100", 8, 8, 8, pcie=48.0, nic=48.0, nvswitch=370.8, gpu="NVIDIA H100 80GB HBM3")
    return Topology(hosts=(host,)).times(num_nodes)


def workstation():
    links = [link(f"gpu{i}", "socket0", "pcie", 24.0 / (1 + 3 * i), rated_gb_per_s=24.0) for i in range(2)]
    links += [link("nic0", "socket0", "pcie", 3.0), link("nic0", NETWORK, "nic", 0.12, 15.0)]
    return Topology(
        hosts=(
            Host(
                name="workstation",
                devices=tuple(Device(id=f"gpu{i}", name="NVIDIA GeForce RTX 4090") for i in range(2)),
                nics=(Nic(id="nic0", name="enp5s0"),),
                switches=("socket0",),
                links=tuple(links),
            ),
        )
    )


def cpu_host(name="laptop", num_ranks=2, *, loopback=2.0, nic=0.12):
    ids = [f"cpu{i}" for i in range(num_ranks)]
    return Host(
        name=name,
        devices=tuple(Device(id=i, kind="cpu") for i in ids),
        nics=(Nic(id="nic0", name="eth0"),),
        switches=("memory",),
        links=(
            *(link(i, "memory", "loopback", loopback, 15.0) for i in ids),
            link("memory", "nic0", "pcie", 12.0),
            link("nic0", NETWORK, "nic", nic, 15.0),
        ),
    )


def cpu_hosts(num_hosts=1, num_ranks=2, **figures):
    return Topology(hosts=tuple(cpu_host(f"host{i}", num_ranks, **figures) for i in range(num_hosts)))


def cube_without_nvlink():
    return Topology(hosts=(box("pcie-box", 8, 4, 2, gpu="NVIDIA A10"),))


EVERY = {
    "dgx-1": dgx_1,
    "dgx-2": dgx_2,
    "dgx-h100": dgx_h100,
    "dgx-h100 x 4": lambda: dgx_h100(4),
    "workstation": workstation,
    "cpu": cpu_hosts,
    "2 cpu hosts": lambda: cpu_hosts(2),
    "pcie box": cube_without_nvlink,
}
