"""Environment: Python, its packages, and what of the environment variables changes numbers."""

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

_VARIABLES = re.compile(
    r"(OMP|MKL|OPENBLAS|KMP|NCCL|GLOO|CUDA|CUBLAS|CUDNN|NVIDIA_TF32|TORCH|TORCHINDUCTOR|PYTORCH|ATEN|ONEDNN|TRITON)_\w+"
    r"|PYTHONHASHSEED|TOKENIZERS_PARALLELISM|TRAINKIT_(?!HOST\b)\w+"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|IDENTITY")
IMAGE_DIGEST = "TRAINKIT_IMAGE_DIGEST"
"""The variable in which a container is told its own digest, which it cannot see."""


def describe() -> dict[str, Any]:
    """Returns the environment of this process, as a manifest holds it.

    Returns:
        `python`, `platform`, `cuda` (what torch was built with, cuDNN, NCCL, driver), `packages` by name (version, the
        hash of the file where pip knows it, and of the content), `variables` and `container`.
    """
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "cuda": cuda(),
        "packages": packages(),
        "variables": variables(),
        "container": container(),
    }


@cache
def packages() -> dict[str, dict[str, Any]]:
    """Returns the installed packages by their normalized names."""
    found: dict[str, dict[str, Any]] = {}
    for distribution in importlib.metadata.distributions():
        name = normalized(distribution.metadata["Name"] or "")
        if not name or name in found:  # the first one on the path is the one that is imported
            continue
        if "_vendor" in Path(str(distribution.locate_file(""))).parts:  # setuptools puts copies of its own on the path
            continue
        origin, record = distribution.read_text("direct_url.json"), distribution.read_text("RECORD")
        found[name] = {"version": distribution.version}
        if record is not None:
            found[name]["content_sha256"] = _content(record)
        if hashes := json.loads(origin or "{}").get("archive_info", {}).get("hashes"):
            found[name]["archive_hashes"] = hashes
    return dict(sorted(found.items()))


def imported() -> list[str]:
    """Returns the names of the packages of which this process has imported something."""
    tops = {name.partition(".")[0] for name in [*sys.modules]}
    return sorted({normalized(name) for top in tops & _providers().keys() for name in _providers()[top]})


def needed(names: Iterable[str]) -> list[str]:
    """Returns packages and all that they require, without extras; of those that are installed.

    Args:
        names: of packages, normalized.
    """
    left, found = [*names], set[str]()
    while left:
        name = left.pop()
        if name in found or name not in packages():
            continue
        found.add(name)
        left += _required(name)
    return sorted(found)


def normalized(name: str) -> str:
    """Returns the name of a package as indexes compare it.

    Args:
        name: as it is spelt somewhere.

    Example:
        >>> normalized("Hydra_Core")
        'hydra-core'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def cuda() -> dict[str, Any]:
    """Returns the versions of CUDA and its libraries; empty for a torch without."""
    if torch.version.cuda is None:
        return {}
    return {
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        "driver": _driver(),
    }


def variables() -> dict[str, str]:
    """Returns the environment variables that libraries of training read; never one that may be a secret."""
    chosen = (name for name in sorted(os.environ) if _VARIABLES.fullmatch(name) and not _SECRET.search(name))
    return {name: os.environ[name] for name in chosen}


def container() -> dict[str, str | None]:
    """Returns the kind of the container that this process runs in, and its digest where it was told; empty outside."""
    if os.environ.get("APPTAINER_CONTAINER"):
        return {"kind": "apptainer", "image": os.environ["APPTAINER_CONTAINER"], "digest": os.environ.get(IMAGE_DIGEST)}
    is_docker = Path("/.dockerenv").exists()
    if is_docker or Path("/run/.containerenv").exists() or os.environ.get(IMAGE_DIGEST):
        return {"kind": "docker" if is_docker else "container", "digest": os.environ.get(IMAGE_DIGEST)}
    return {}


def _content(record: str) -> str:
    """A hash of what the package contains, which does not depend on what installed it."""
    rows = (line.rsplit(",", 2) for line in record.splitlines() if line)
    lines = sorted(
        f"{row[0]},{row[1]}"
        for row in rows
        if len(row) == 3 and row[1] and not row[0].startswith("../") and ".dist-info/" not in row[0]
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@cache
def _required(name: str) -> list[str]:
    """The packages that one requires here, without extras."""
    given = map(Requirement, importlib.metadata.requires(name) or ())
    return [normalized(each.name) for each in given if each.marker is None or each.marker.evaluate({"extra": ""})]


@cache
def _providers() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _driver() -> str | None:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
