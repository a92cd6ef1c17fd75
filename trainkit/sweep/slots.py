"""Slots: the parts of a machine that each run one trial at a time: cores, GPUs, or MIG slices."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainkit.errors import ConfigError, nearest

FORMS = "auto, cpu, cpu:N (cores each), gpu, gpu:N (GPUs each), gpu:0.5 (two on each GPU), mig, or mig:UUID,UUID"
_GPU = re.compile(r"^GPU (\d+): (.*?) \(UUID: (GPU-[^)\s]+)\)")
_SLICE = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)\s]+)\)")
_PATIENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A part of this machine that runs one trial at a time.

    Args:
        name: such as `cpu 0-3` or `GPU 2`.
        cores: numbers of the CPU cores that its processes may use.
        devices: what CUDA_VISIBLE_DEVICES becomes: numbers or UUIDs of GPUs or of one MIG slice; none: no GPU.
        memory_share: of the GPU's memory that a process may use; None: all.
        holds: for the user: what the slot has.
    """

    name: str
    cores: tuple[int, ...]
    devices: tuple[str, ...] = ()
    memory_share: float | None = None
    holds: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU as `nvidia-smi -L` lists it.

    Args:
        index: its number.
        name: its model.
        uuid: its UUID.
        slices: profile, such as `1g.10gb`, and UUID of each MIG slice.
    """

    index: int
    name: str
    uuid: str
    slices: tuple[tuple[str, str], ...] = ()


def gpus(text: str) -> list[Gpu]:
    r"""Reads the output of `nvidia-smi -L`.

    Args:
        text: all of it.

    Example:
        >>> gpus("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)\n")
        [Gpu(index=0, name='NVIDIA H100 80GB HBM3', uuid='GPU-1', slices=(('1g.10gb', 'MIG-2'),))]
    """
    found: list[Gpu] = []
    for line in text.splitlines():
        if match := _GPU.match(line):
            found.append(Gpu(int(match[1]), match[2], match[3]))
        elif found and (match := _SLICE.match(line)):
            last = found[-1]
            found[-1] = Gpu(last.index, last.name, last.uuid, (*last.slices, (match[1], match[3])))
    return found


def listed() -> str:
    """The output of `nvidia-smi -L`; empty where there is no such command, or no GPU."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def slots(
    text: str,
    *,
    processes: int = 1,
    cores: Sequence[int] | None = None,
    smi: Callable[[], str] = listed,
    visible: str | None = None,
) -> list[Slot]:
    """The slots that `--slots` means on this machine.

    Args:
        text: one of `FORMS`.
        processes: of each trial.
        cores: numbers of the CPU cores to be shared out; None: those that this process may use.
        smi: returns the output of `nvidia-smi -L`.
        visible: CUDA_VISIBLE_DEVICES of this process; None: it is not set.

    Raises:
        ConfigError: for text that means nothing, or nothing here.

    Example:
        >>> [slot.name for slot in slots("cpu:2", cores=[0, 1, 2, 3, 4], smi=lambda: "")]
        ['cores 0-1', 'cores 2-3']
    """
    kind, colon, amount = text.partition(":")
    if kind not in ("auto", "cpu", "gpu", "mig") or (colon and (not amount or kind == "auto")):
        raise ConfigError(f"--slots {text}: must be {FORMS}.{nearest(kind, ('auto', 'cpu', 'gpu', 'mig'))}")
    all_cores = sorted(os.sched_getaffinity(0)) if cores is None else [*cores]
    found = _visible(gpus(smi()), visible) if kind != "cpu" else []
    if kind == "auto":
        kind = "mig" if any(gpu.slices for gpu in found) else "gpu" if found else "cpu"
    if kind == "cpu":
        return _of_cores(text, all_cores, _number(text, amount) if amount else processes, processes)
    if not found:
        raise ConfigError(f"--slots {text}: nvidia-smi -L lists no GPU here; use --slots cpu")
    if kind == "mig":
        return _of_slices(text, found, amount, all_cores, processes)
    return _of_gpus(text, found, amount, all_cores, processes)


def _of_cores(text: str, cores: list[int], num: int, processes: int) -> list[Slot]:
    if num > len(cores):
        raise ConfigError(f"--slots {text}: there are {len(cores)} cores here; use --slots cpu:{len(cores)} at most")
    if num < processes:
        raise ConfigError(f"--slots {text}: a trial has {processes} processes; use --slots cpu:{processes} at least")
    groups = [tuple(cores[i : i + num]) for i in range(0, len(cores) - num + 1, num)]
    return [
        Slot(name=f"{'core' if num == 1 else 'cores'} {_span(group)}", cores=group, holds=_count(num, "core"))
        for group in groups
    ]


def _of_gpus(text: str, found: list[Gpu], amount: str, cores: list[int], processes: int) -> list[Slot]:
    cut = [gpu for gpu in found if gpu.slices]
    if cut:
        raise ConfigError(
            f"--slots {text}: GPU {cut[0].index} is cut into MIG slices, and cannot be used as a whole; use --slots mig"
        )
    if amount and "." in amount:
        return _of_shares(text, found, amount, cores, processes)
    num = _number(text, amount) if amount else processes
    if num > len(found):
        raise ConfigError(f"--slots {text}: there are {_count(len(found), 'GPU')} here")
    if processes != num:
        raise ConfigError(
            f"--slots {text}: each process has one GPU; give --processes {num} too, or --slots gpu:{processes}"
        )
    groups = [found[i : i + num] for i in range(0, len(found) - num + 1, num)]
    shares = _shared_out(cores, len(groups))
    return [
        Slot(
            name=f"GPU {_span([gpu.index for gpu in group])}",
            cores=share,
            devices=tuple(gpu.uuid for gpu in group),
            holds=f"{_count(num, group[0].name)}, {_count(len(share), 'core')}",
        )
        for group, share in zip(groups, shares, strict=True)
    ]


def _of_shares(text: str, found: list[Gpu], amount: str, cores: list[int], processes: int) -> list[Slot]:
    try:
        share = float(amount)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 0.5:
        raise ConfigError(f"--slots {text}: must be {FORMS}; a part of a GPU is 0.5 or less")
    if processes > 1:
        raise ConfigError(f"--slots {text}: two processes of one trial cannot share a GPU; use --processes 1")
    num = int(1 / share + 1e-9)
    places = [(gpu, part) for gpu in found for part in range(num)]
    return [
        Slot(
            name=f"GPU {gpu.index} part {part + 1}/{num}",
            cores=mine,
            devices=(gpu.uuid,),
            memory_share=share,
            holds=f"{share:.0%} of the memory of a {gpu.name}, {_count(len(mine), 'core')}",
        )
        for (gpu, part), mine in zip(places, _shared_out(cores, len(places)), strict=True)
    ]


def _of_slices(text: str, found: list[Gpu], amount: str, cores: list[int], processes: int) -> list[Slot]:
    if processes > 1:
        raise ConfigError(f"--slots {text}: NCCL cannot join MIG slices, so a trial is one process; use --processes 1")
    every = [(gpu, place, profile, uuid) for gpu in found for place, (profile, uuid) in enumerate(gpu.slices)]
    if not every:
        raise ConfigError(f"--slots {text}: no GPU here is cut into MIG slices; use --slots gpu")
    chosen = amount.split(",") if amount else [uuid for *_, uuid in every]
    known = [uuid for *_, uuid in every]
    for uuid in chosen:
        if uuid not in known:
            raise ConfigError(
                f"--slots {text}: there is no slice {uuid} here.{nearest(uuid, known)} nvidia-smi -L lists them"
            )
    every = [each for each in every if each[3] in chosen]
    return [
        Slot(
            name=f"GPU {gpu.index} slice {place} ({profile})",
            cores=mine,
            devices=(uuid,),
            holds=f"a slice {profile} of a {gpu.name}, {_count(len(mine), 'core')}",
        )
        for (gpu, place, profile, uuid), mine in zip(every, _shared_out(cores, len(every)), strict=True)
    ]


def _visible(found: list[Gpu], visible: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves to this process."""
    if visible is None:
        return found
    kept = []
    for word in filter(None, (part.strip() for part in visible.split(","))):
        for gpu in found:
            slices = tuple(each for each in gpu.slices if each[1].startswith(word))
            if word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word)):
                kept.append(gpu)
            elif slices:
                kept.append(Gpu(gpu.index, gpu.name, gpu.uuid, slices))
    return kept


def _shared_out(cores: Sequence[int], num: int) -> list[tuple[int, ...]]:
    """Neighbouring cores for each of several slots; where there are more slots than cores, some share one."""
    if num > len(cores):
        return [(cores[i * len(cores) // num],) for i in range(num)]
    bounds = [i * len(cores) // num for i in range(num + 1)]
    return [tuple(cores[start:end]) for start, end in pairwise(bounds)]


def _number(text: str, amount: str) -> int:
    if not amount.isdecimal() or int(amount) < 1:
        raise ConfigError(f"--slots {text}: must be {FORMS}")
    return int(amount)


def _span(numbers: Sequence[int]) -> str:
    is_run = [*numbers] == [*range(numbers[0], numbers[-1] + 1)]
    return f"{numbers[0]}-{numbers[-1]}" if is_run and len(numbers) > 1 else ",".join(map(str, numbers))


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}" if what in ("core", "GPU") else f"{num} x {what}"
