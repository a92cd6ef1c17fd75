"""Slots: parts of a machine, by the output of `nvidia-smi -L` of four kinds of machines."""

from types import SimpleNamespace

import pytest

from trainkit.errors import ConfigError
from trainkit.sweep.busy import require_free
from trainkit.sweep.slots import gpus, slots

CORES = list(range(64))


def _listing(name, num, slices=()):
    """As `nvidia-smi -L` prints it: `num` GPUs, the first ones cut into the profiles of `slices`."""
    lines = []
    for index in range(num):
        lines.append(f"GPU {index}: {name} (UUID: GPU-{index:08x}-1111-2222-3333-444444444444)")
        profiles = slices[index] if index < len(slices) else ()
        for place, profile in enumerate(profiles):
            lines.append(
                f"  MIG {profile:<12} Device {place:>2}: (UUID: MIG-{index}{place:07x}-aaaa-bbbb-cccc-dddddddddddd)"
            )
    return "\n".join(lines) + "\n"


A100 = _listing("NVIDIA A100-SXM4-80GB", 8, [["1g.10gb"] * 7] * 8)
H100 = _listing("NVIDIA H100 80GB HBM3", 8, [["3g.40gb", "2g.20gb", "1g.10gb+me"]])
H200 = _listing("NVIDIA H200", 8)
B200 = _listing("NVIDIA B200", 8, [["1g.23gb"] * 7, ["7g.180gb"]])


@pytest.mark.parametrize(
    ("text", "num_slots", "first"),
    [
        (A100, 56, "GPU 0 slice 0 (1g.10gb)"),  # seven applications a GPU, 56 on a DGX
        (H100, 3, "GPU 0 slice 0 (3g.40gb)"),
        (H200, 8, "GPU 0"),
        (B200, 8, "GPU 0 slice 0 (1g.23gb)"),
    ],
)
def test_slots_of_four_machines(text, num_slots, first):
    found = slots("auto", cores=CORES, smi=lambda: text)
    assert len(found) == num_slots and found[0].name == first
    devices = [device for slot in found for device in slot.devices]
    assert len(set(devices)) == num_slots, "no two slots have the same slice or GPU"
    assert all(len(slot.devices) == 1 for slot in found), "a slice is one process"
    assert sorted({core for slot in found for core in slot.cores}) == CORES


def test_two_gpus_a_trial():
    found = slots("gpu:2", processes=2, cores=CORES, smi=lambda: H200)
    assert [slot.name for slot in found] == ["GPU 0-1", "GPU 2-3", "GPU 4-5", "GPU 6-7"]
    assert all(len(slot.devices) == 2 and len(slot.cores) == 16 for slot in found)


def test_half_a_gpu():
    found = slots("gpu:0.5", cores=CORES, smi=lambda: _listing("NVIDIA H200", 2))
    assert [slot.name for slot in found] == ["GPU 0 part 1/2", "GPU 0 part 2/2", "GPU 1 part 1/2", "GPU 1 part 2/2"]
    assert {slot.memory_share for slot in found} == {0.5}


def test_chosen_slices_and_visible_gpus():
    uuid = gpus(A100)[3].slices[2][1]
    (slot,) = slots(f"mig:{uuid}", cores=CORES, smi=lambda: A100)
    assert slot.devices == (uuid,) and slot.name == "GPU 3 slice 2 (1g.10gb)"
    assert [slot.name for slot in slots("auto", cores=CORES, smi=lambda: H200, visible="2,5")] == ["GPU 2", "GPU 5"]
    assert slots("auto", cores=CORES, smi=lambda: A100, visible=uuid)[0].devices == (uuid,)


def test_cores_of_a_machine_without_gpus():
    assert [slot.cores for slot in slots("auto", cores=[0, 1, 4], smi=lambda: "")] == [(0,), (1,), (4,)]
    assert [slot.cores for slot in slots("cpu:2", cores=[0, 1, 4], smi=lambda: H200)] == [(0, 1)]
    assert [slot.cores for slot in slots("cpu", processes=2, cores=[0, 1, 4, 5], smi=lambda: "")] == [(0, 1), (4, 5)]


def test_more_slots_than_cores_share_them():
    found = slots("mig", cores=[0, 1], smi=lambda: A100)
    assert {slot.cores for slot in found} == {(0,), (1,)} and len(found) == 56


@pytest.mark.parametrize(
    ("text", "listing", "processes", "reason"),
    [
        ("gpus", H200, 1, "Did you mean 'gpu'?"),
        ("cpu:0", "", 1, "must be auto"),
        ("cpu:9", "", 1, "there are 4 cores here"),
        ("cpu:1", "", 2, "a trial has 2 processes"),
        ("gpu", "", 1, "lists no GPU here"),
        ("gpu:9", H200, 9, "there are 8 GPUs here"),
        ("gpu:2", H200, 1, "give --processes 2 too"),
        ("gpu:0.7", H200, 1, "0.5 or less"),
        ("gpu:0.5", H200, 2, "cannot share a GPU"),
        ("gpu", H100, 1, "GPU 0 is cut into MIG slices"),
        ("mig", H200, 1, "use --slots gpu"),
        ("mig", A100, 2, "NCCL cannot join MIG slices"),
        ("mig:MIG-0", A100, 1, "there is no slice MIG-0 here"),
    ],
)
def test_what_cannot_be_had(text, listing, processes, reason):
    with pytest.raises(ConfigError, match="--slots") as caught:
        slots(text, processes=processes, cores=[0, 1, 2, 3], smi=lambda: listing)
    assert reason in str(caught.value)


class _Nvml:
    """NVML of a machine on which one slice is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, busy):
        self.busy, self.is_open = busy, False

    def nvmlInit(self):
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid.startswith("MIG-00000006"):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=4321)] if handle == self.busy else []


def test_a_slice_that_is_used_is_one_line():
    found = slots("auto", cores=CORES, smi=lambda: H100)
    nvml = _Nvml(found[1].devices[0])
    require_free([found[0]], nvml)
    with pytest.raises(ConfigError, match=r"GPU 0 slice 1 \(2g\.20gb\) .* is used by process 4321 already") as caught:
        require_free(found, nvml)
    assert "\n" not in str(caught.value) and not nvml.is_open
    with pytest.raises(ConfigError, match=r"slice 6 .* cannot be used: Not Found"):
        require_free(slots("auto", cores=CORES, smi=lambda: A100), _Nvml(None))
    require_free(slots("cpu", cores=[0, 1], smi=lambda: ""), None)
