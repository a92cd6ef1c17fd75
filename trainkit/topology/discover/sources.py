"""Sources: from where this host is read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Variables that change which links a job uses; stored in the facts, for advice.
SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "NCCL_IB_HCA",
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_USE_CUDA_MEMCPY",
    "NCCL_SOCKET_IFNAME",
    "NCCL_TOPO_FILE",
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources from which this host is read; tests replace them.

    Args:
        environment: variables.
        root: in place of /sys.
        proc: in place of /proc.
        etc: in place of /etc.
        nvml: in place of the module pynvml.
        smi_text: in place of the output of nvidia-smi.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    root: Path = Path("/sys")
    proc: Path = Path("/proc")
    etc: Path = Path("/etc")
    nvml: Any = None
    smi_text: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The variables of SETTINGS that are set, for this process or in NCCL's configuration files.

        As in NCCL (src/misc/param.cc) a variable of the process is used before one of $NCCL_CONF_FILE, otherwise of
        ~/.nccl.conf, and that before one of /etc/nccl.conf, where the images of clouds set NCCL_TOPO_FILE.
        """
        own = self.environment.get("NCCL_CONF_FILE")
        home = self.environment.get("HOME")
        files = [Path(own)] if own else [Path(home) / ".nccl.conf"] if home else []
        found = _assignments(self.etc / "nccl.conf")
        for file in files:
            found |= _assignments(file)
        return {name: value for name in SETTINGS if (value := self.environment.get(name) or found.get(name, ""))}


def _assignments(path: Path) -> dict[str, str]:
    """Lines NAME=VALUE of a file, the first of each name; none where there is no such file, as in NCCL."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition("=") for line in lines if not line.startswith("#")]
    return {name: value for name, _, value in reversed(pairs) if name.startswith("NCCL_")}
