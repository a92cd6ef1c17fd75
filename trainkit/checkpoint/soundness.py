"""Soundness: a manifest may come from anybody, so what is read by it is bounded by the files that are there."""

import math
from collections.abc import Mapping
from typing import Any

from trainkit.distributed.shard import DTYPES

MAX_MANIFEST_BYTES = 1 << 28
MAX_DIMS = 64


def require_sound_files(manifest: Mapping[str, Any]) -> None:
    """Requires that a manifest names files in its own directory, with their sizes and checksums.

    Args:
        manifest: of a checkpoint.

    Raises:
        ValueError: naming what is wrong.
    """
    files = _table(manifest, "files")
    for name, entry in files.items():
        is_plain = name not in ("", ".", "..") and name.isprintable() and not {*name} & {"/", "\\"}
        _require(is_plain, f"{name!r} is no name of a file beside it")
        _require(isinstance(entry, dict) and _is_size(entry.get("num_bytes")), f"{name} has no size")
        _require(isinstance(entry.get("xxh3_128"), str), f"{name} has no checksum")
    _require(_is_size(manifest.get("position")), "it has no position")
    _table(manifest, "values")
    owners = manifest.get("encrypted_for", [])
    is_keys = isinstance(owners, list) and all(isinstance(key, str) and key.isprintable() for key in owners)
    _require(is_keys, "it does not say for whom it is encrypted")


def require_sound_tensors(manifest: Mapping[str, Any]) -> None:
    """Requires that the tensors of a manifest are what its files can hold.

    Args:
        manifest: of a checkpoint, with sound files.

    Raises:
        ValueError: naming what is wrong.
    """
    engines, tensors = _table(manifest, "engines"), _table(manifest, "tensors")
    _require(all(isinstance(engine, dict) for engine in engines.values()), "an engine has no values")
    left = {name: entry["num_bytes"] for name, entry in manifest["files"].items()}
    for name, entry in tensors.items():
        # A terminal acts upon what is not printable.
        _require(name.isprintable(), f"{name!r} is no name of a tensor")
        _require(isinstance(entry, dict) and entry.get("dtype") in DTYPES, f"tensor {name} has no known dtype")
        shape, parts = entry.get("shape"), entry.get("parts")
        is_shape = isinstance(shape, list) and len(shape) <= MAX_DIMS and all(_is_size(size) for size in shape)
        _require(is_shape, f"tensor {name} has no shape")
        _require(isinstance(parts, list), f"tensor {name} has no parts")
        end = 0
        for part in parts:
            is_part = isinstance(part, list) and len(part) == 3 and part[0] == end and _is_size(part[1])
            _require(is_part and isinstance(part[2], str) and part[2] in left, f"tensor {name} has parts of nowhere")
            end += part[1]
            left[part[2]] -= part[1] * DTYPES[entry["dtype"]].itemsize
            _require(left[part[2]] >= 0, f"tensor {name} is larger than its file {part[2]}")
        _require(end == math.prod(shape), f"tensor {name} is not whole")


def _table(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = manifest.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"it has no table of {name}")
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
