"""Machine: what a file of results says of the hardware and of the packages with which it was measured."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from trainkit.manifest import hardware
from trainkit.version import __version__


def describe() -> dict[str, Any]:
    """The hardware of this machine, without its name: another machine of the same parts is the same."""
    found = hardware.describe()
    found.pop("host")
    return found


def versions() -> dict[str, str]:
    """The packages that decide the speed."""
    found = {"trainkit": __version__, "torch": str(torch.__version__)}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of the same hardware."""
    return all(one[part] == other[part] for part in ("cpu", "gpus"))


def in_words(machine: Mapping[str, Any]) -> str:
    """A machine in a few words, such as `8 x NVIDIA H200` or the name of its processor."""
    names = [str(gpu["name"]) for gpu in machine.get("gpus", [])]
    if names:
        kinds = {name: names.count(name) for name in names}
        return ", ".join(f"{num} x {name}" for name, num in kinds.items())
    cpu = machine.get("cpu", {})
    return f"{cpu.get('model', 'a CPU')}, {cpu.get('cores', '?')} cores"


def now() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
