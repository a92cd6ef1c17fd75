"""The facts of a host that a job depends on. Only Python's own library: it also runs where trainkit is missing."""

from __future__ import annotations  # for a Python that is older than ours, which is then named

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
from pathlib import Path


def facts() -> dict[str, object]:
    """Reads the facts of this host, without an import of torch or trainkit.

    Returns:
        The versions of `python`, `torch` and `trainkit` (None where one is missing), `source`: a digest of trainkit's
        files; and `num_gpus` that CUDA_VISIBLE_DEVICES leaves (None where NVML cannot be imported).
    """
    version, source = _trainkit()
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "trainkit": version,
        "source": source,
        "num_gpus": _num_gpus(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _trainkit() -> tuple[str | None, str | None]:
    found = importlib.util.find_spec("trainkit")
    if found is None or not found.submodule_search_locations:
        return None, None
    top = Path(next(iter(found.submodule_search_locations)))
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*.py")):
        digest.update(str(path.relative_to(top)).encode() + b"\0" + path.read_bytes() + b"\0")
    match = re.search('__version__ = "([^"]+)"', (top / "version.py").read_text())
    version = match.group(1) if match else None
    return version, digest.hexdigest()[:8]


def _num_gpus() -> int | None:
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        num = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0  # no driver
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return num
    visible = 0
    for entry in chosen.split(","):
        if not entry.strip() or entry.strip() == "-1":
            break  # CUDA ignores what stands behind it
        visible += 1
    return visible if num else 0


if __name__ == "__main__":
    print(json.dumps(facts()))
