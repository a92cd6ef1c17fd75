import pytest

from tests.topology.hosts import write


@pytest.fixture
def machine(tmp_path):
    """A box with a PCIe switch of two GPUs and an InfiniBand card on socket 0, a GPU and an Ethernet card on socket 1.
    The card of socket 0 runs at 8 of its 16 lanes."""
    root, proc = tmp_path / "sys", tmp_path / "proc"
    gpu = {"class": "0x030200", "vendor": "0x10de", "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16"}
    card = {"vendor": "0x15b3", "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16"}
    first, second = root / "devices/pci0000:16", root / "devices/pci0000:97"
    switch = first / "0000:16:02.0" / "0000:17:00.0"
    places = {
        switch / "0000:18:00.0" / "0000:19:00.0": gpu | {"numa_node": "0", "current_link_width": "16"},
        switch / "0000:18:01.0" / "0000:1a:00.0": gpu | {"numa_node": "0", "current_link_width": "16"},
        switch / "0000:18:02.0" / "0000:1b:00.0": card
        | {"class": "0x020700", "numa_node": "0", "current_link_width": "8"},
        second / "0000:97:01.0" / "0000:98:00.0": gpu | {"numa_node": "1", "current_link_width": "16"},
        second / "0000:97:02.0" / "0000:99:00.0": card
        | {"class": "0x020000", "numa_node": "1", "current_link_width": "16"},
    }
    (root / "bus/pci/devices").mkdir(parents=True)
    for path, files in places.items():
        write(path, **files)
        (root / "bus/pci/devices" / path.name).symlink_to(path)
        write(path.parent, max_link_speed="16.0 GT/s PCIe")
    write(second / "0000:97:01.0", max_link_speed="8.0 GT/s PCIe")  # a slot of the third generation
    (bad, good) = (path for path, files in places.items() if files["vendor"] == "0x15b3")
    port = write(root / "class/infiniband/mlx5_0/ports/1", rate="200 Gb/sec (4X HDR)", state="4: ACTIVE")
    (port.parent.parent / "device").symlink_to(bad)
    write(root / "class/infiniband/mlx5_1/ports/1", rate="200 Gb/sec (4X HDR)", state="1: DOWN")
    for name, device, speed, state in (
        ("ib0", bad, "200000", "up"),
        ("eth0", good, "25000", "up"),
        ("eth1", good, "-1", "down"),
    ):
        write(root / "class/net" / name, speed=speed, operstate=state)
        (root / "class/net" / name / "device").symlink_to(device)
    write(root / "class/net/lo", operstate="unknown")
    write(root / "class/dmi/id", sys_vendor="Supermicro", product_name="SYS-420")
    write(proc, cpuinfo="vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nflags\t\t: fpu vme\n")
    write(
        proc / "net",
        route="Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t01\t3\t0\t0\t5\t00000000",
    )
    return root, proc
