"""What is wrong with the readings of a host themselves: sources that cannot be used, and NVLinks that are down."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainkit.planning.finding import Advice
from trainkit.topology.topology import NETWORK, Host, Nic

CHECK_NVLINK = (
    "nvidia-smi nvlink -s (links that are <inactive>) and nvidia-smi nvlink -e (errors); "
    "sudo dmesg | grep -i xid (74: NVLink)"
)
CHECK_FABRIC = (
    "systemctl status nvidia-fabricmanager, of the driver's own version; reset the GPUs or reboot; dcgmi diag -r 3; "
    "what then stays down is for the vendor to replace (RMA)"
)


def findings(host: Host, devices: Sequence[str]) -> Iterator[Advice]:
    """Finds what is wrong with the readings of a host.

    Args:
        host: that was read.
        devices: that the job uses.
    """
    yield from _unread(host)
    yield from _nvlinks_down(host, devices)
    if host.facts.get("nvlinks") == "unknown" and len(devices) > 1:
        yield Advice(
            severity="hint",
            subject="NVLink",
            problem="what was read does not show NVLinks: predictions are those of GPUs without them",
            remedy="pip install nvidia-ml-py, which asks the driver; or --topology with what nvidia-smi topo -m prints",
        )
    if host.facts.get("pcie_lanes") == "unknown":
        yield Advice(
            severity="hint",
            subject="PCIe links",
            problem="their number of lanes is not shown, as in many guests: 16 is assumed, as NCCL does",
            remedy="measure them: trainkit topo probe",
        )


def assumed_nics(host: Host, nics: Iterable[Nic]) -> list[Nic]:
    """Those of `nics` whose speed is assumed."""
    assumed = {end for link in host.links if link.source == "assumed" for end in (link.a, link.b)}
    return [nic for nic in nics if nic.id in assumed]


def unknown_speed(host: Host) -> Iterator[Advice]:
    """Network cards of unknown speed, of one of several hosts."""
    cards = assumed_nics(host, host.nics)
    if cards:
        more = f" and {len(cards) - 3} more" if len(cards) > 3 else ""
        gb_per_s = next(link.bandwidth_gb_per_s for link in host.links if {link.a, link.b} == {cards[0].id, NETWORK})
        yield Advice(
            severity="hint",
            subject=f"speed of {', '.join(nic.name or nic.id for nic in cards[:3])}{more}",
            problem=f"unknown: {gb_per_s:g} GB/s is assumed, as NCCL does, and predictions between hosts depend on it",
            remedy="measure it: trainkit topo probe; or state it: --nic-gbit 100",
        )


def _unread(host: Host) -> Iterator[Advice]:
    unread = host.facts.get("unread")
    if unread:
        reasons = "; ".join(dict.fromkeys(unread.values()))
        yield Advice(
            severity="hint",
            subject=", ".join(unread),
            problem=f"could not read the links ({reasons}); those of other ranks or nominal figures are used",
            remedy="pip install nvidia-ml-py, and give the container the driver's libraries: "
            "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility. Or measure: trainkit topo probe",
        )
    if "topo_file" in host.facts:
        yield Advice(
            severity="warning",
            subject="NCCL_TOPO_FILE",
            problem=f"it is not used here: {host.facts['topo_file']}. NCCL may use it all the same, and plan for wrong "
            "links or end the job",
            remedy="set it to the file of this machine type, or unset it (also in /etc/nccl.conf and ~/.nccl.conf)",
        )


def _nvlinks_down(host: Host, devices: Sequence[str]) -> Iterator[Advice]:
    down: dict[str, dict[str, Any]] = host.facts.get("nvlinks_down", {})
    alike: dict[tuple[bool, int, int, str], list[str]] = {}
    for ends, found in down.items():
        if set(ends.split()) <= set(devices) and len(devices) > 1:
            key = (" " in ends, found["up"], found["expected"], found["of"])
            alike.setdefault(key, []).append(ends)
    names = {device.id: device.name for device in host.devices}
    for (is_pair, up, expected, of), ends_of in alike.items():
        first = ends_of[0].split()[0]
        card = f" ({names[first]})" if names[first] else ""
        where = ", ".join(ends.replace(" ", " - ") for ends in ends_of)
        cost, remedy = _cost_and_remedy(host, first, is_pair=is_pair, is_up=up > 0)
        yield Advice(
            severity="warning",
            subject=f"NVLink of {where}{card}",
            problem=f"{up or 'none'} of the {expected} NVLinks {of} {'are' if up > 1 else 'is'} up: {cost}",
            remedy=remedy,
        )


def _cost_and_remedy(host: Host, device: str, *, is_pair: bool, is_up: bool) -> tuple[str, str]:
    if is_pair:
        return (
            "a ring over them is as slow as these",
            f"take the bridge off and press it on again, or replace it; {CHECK_NVLINK}",
        )
    if is_up:
        slowest = next(link for link in host.links if link.a == device and link.kind == "nvswitch")
        cost = f"an all-reduce over all GPUs runs at the speed of these, {slowest.bandwidth_gb_per_s:.0f} GB/s"
        return cost, f"{CHECK_NVLINK}; {CHECK_FABRIC}"
    leave_out = "Until then leave such a GPU out (CUDA_VISIBLE_DEVICES)"
    return "an all-reduce over all GPUs goes over PCIe", f"{CHECK_NVLINK}; {CHECK_FABRIC}. {leave_out}"
