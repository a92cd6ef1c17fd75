"""Differences: what differs between the manifests of two runs, and what each difference can change."""

import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Part = Literal["configuration", "code", "data", "packages", "environment", "hardware", "processes"]

NOTHING = "nothing"
# Keys of what is watched and kept, which change nothing that is trained.
_NOT_TRAINED = (
    *("run_dir", "copy_to", "resume", "tracking", "log_every", "keep_", "save_every", "checkpoint."),
    *("evaluate_every", "hang_timeout_s", "machine_check"),
)
_BY_PACKAGE = {
    **dict.fromkeys(("torch", "triton", "mkl", "intel-openmp"), "the kernels: every number, by rounding"),
    **dict.fromkeys(("numpy", "scipy"), "what is drawn and computed while data are read: batches"),
    **dict.fromkeys(("tokenizers", "transformers", "sentencepiece"), "how text is encoded: batches"),
    **dict.fromkeys(("pillow", "torchvision", "opencv-python"), "how pictures are decoded: batches"),
    **dict.fromkeys(("datasets", "pyarrow", "pandas", "polars", "h5py"), "how data are read: batches"),
    "deepspeed": "how parameters are updated: every weight",
    "trainkit": "anything",
}
# Variables that torchrun and torch.compile set in the processes that train, wherever these are; they change no number.
_SET_BY_TORCH = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_MOST_NAMED = 20  # of files, packages or modules, each


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in two runs.

    Args:
        part: of the manifest.
        name: such as a key, a package or a file.
        before: in the first run.
        now: in the second.
        effect: what it can change; `nothing` where it cannot.
    """

    part: Part
    name: str
    before: str
    now: str
    effect: str

    def __str__(self) -> str:
        return f"{self.part}: {self.name} {self.before} -> {self.now}; can change {self.effect}"


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    files: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> list[Difference]:
    """Compares two manifests.

    Args:
        before: of the first run.
        now: of the second.
        files: of each, the files that its data consist of, as `data_files` gives them.

    Returns:
        What differs, what can change most first: configuration, data, code, packages and the machine.
    """
    return [
        *_of_configuration(_part(before, "configuration"), _part(now, "configuration")),
        *_of_data(_part(before, "data"), _part(now, "data"), files),
        *_of_code(_part(before, "code"), _part(now, "code")),
        *_of_packages(_part(before, "environment"), _part(now, "environment")),
        *_of_environment(_part(before, "environment"), _part(now, "environment")),
        *_of_hardware(_part(before, "hardware"), _part(now, "hardware")),
        *_of_processes(_part(before, "training"), _part(now, "training")),
    ]


def _of_configuration(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    from trainkit.config.tree import flat  # a Runtime does not import Hydra

    old, new = flat(before), flat(now)
    for key in dict.fromkeys([*old, *new]):
        first, second = _shown(old, key), _shown(new, key)
        if first != second and not key.startswith(_NOT_TRAINED):
            yield Difference("configuration", key, first, second, _effect_of_key(key))


def _effect_of_key(key: str) -> str:
    if key == "seed":
        return "the initial weights, the order of the data and all that is drawn: everything from the first step on"
    if key.partition(".")[0] == "data" or key.startswith("recipe.data"):
        return "batches, from the first step on"
    return "what is trained"


def _of_data(
    before: Mapping[str, Any], now: Mapping[str, Any], files: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> Iterator[Difference]:
    old, new = _at_the_same_place(*files)
    effect = "batches, and what is measured on"
    names = [name for name in dict.fromkeys([*old, *new]) if _content(old.get(name)) != _content(new.get(name))]
    for name in names[:_MOST_NAMED] if old and new else []:
        yield Difference("data", name, _file(old.get(name)), _file(new.get(name)), effect)
    if len(names) > _MOST_NAMED and old and new:
        yield Difference("data", f"{len(names) - _MOST_NAMED:,} more files", "", "", effect)
    first, second = _part(before, "fingerprints"), _part(now, "fingerprints")
    for name in first:
        if name in second and first[name] != second[name]:
            yield Difference("data", f"fingerprint of {name}", str(first[name]), str(second[name]), effect)


def _at_the_same_place(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Files of data that lie elsewhere now, by their places in the folder that holds them all."""
    if old.keys() & new.keys():
        return old, new
    if len(old) == len(new) == 1:
        return old, dict(zip(old, new.values(), strict=True))
    try:
        return _below(old), _below(new)
    except ValueError:  # none, or absolute paths beside relative ones
        return old, new


def _below(files: Mapping[str, Any]) -> dict[str, Any]:
    root = os.path.commonpath([Path(name).parent for name in files])
    return {str(Path(name).relative_to(root)): facts for name, facts in files.items()}


def _of_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    old, new = _part(before, "modules"), _part(now, "modules")
    changed = [name for name in old if name in new and old[name] != new[name]]
    for name in changed[:_MOST_NAMED]:
        yield Difference("code", name, str(old[name])[:12], str(new[name])[:12], "anything")
    if len(changed) > _MOST_NAMED:
        yield Difference("code", f"{len(changed) - _MOST_NAMED:,} more modules", "", "", "anything")


def _of_packages(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    old, new = _part(before, "packages"), _part(now, "packages")
    used, num_others = {*_names(before.get("imported")), *_names(now.get("imported"))}, 0
    for name in dict.fromkeys([*old, *new]):
        first, second = _version(old.get(name)), _version(new.get(name))
        if first == second:
            if first == "missing" or _packed(old[name]) == _packed(new[name]) or name not in used or name == "trainkit":
                continue
            first, second = f"{first} of {_packed(old[name])}", f"{second} of {_packed(new[name])}"
        if name in used:
            yield Difference("packages", name, first, second, _effect_of_package(name))
        num_others += name not in used
    if num_others:
        yield Difference("packages", f"{num_others} others", "", "", f"{NOTHING}: none was imported")


def _effect_of_package(name: str) -> str:
    if name.startswith("nvidia-"):
        return _BY_PACKAGE["torch"]
    return _BY_PACKAGE.get(name, "what it was imported for")


def _of_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    yield from _of(before, now, "python", "environment", "how packages behave", "Python")
    yield from _of(before, now, "platform", "environment", "the mathematical functions of the C library", "platform")
    for name in dict.fromkeys([*_part(before, "cuda"), *_part(now, "cuda")]):
        yield from _of(_part(before, "cuda"), _part(now, "cuda"), name, "environment", _BY_PACKAGE["torch"])
    old, new = _part(before, "variables"), _part(now, "variables")
    for name in dict.fromkeys([*old, *new]):
        if name not in _SET_BY_TORCH:
            yield from _of(old, new, name, "environment", "what the library that reads it does")


def _of_hardware(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    rounding = "which kernels run: every number, by rounding"
    old, new = _part(before, "cpu"), _part(now, "cpu")
    for name in ("model", "architecture", "capability"):
        yield from _of(old, new, name, "hardware", rounding, f"processor {name}")
    first, second = _gpus(before), _gpus(now)
    if first != second:
        yield Difference("hardware", "GPUs", first, second, rounding)


def _of_processes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    order = "the order in which sums are taken: every number, by rounding"
    effects = {
        "num_ranks": order,
        "num_ranks_per_host": order,
        "num_threads": order,
        "strategy": order,
        "layout": order,
    }
    for name, effect in {**effects, "device": "which kernels run", "precision_obtained": "every number"}.items():
        yield from _of(before, now, name, "processes", effect)
    yield from _of(before, now, "ops", "processes", "which kernels run: every number, by rounding")
    for name in ("topology", "plans"):
        yield from _of(before, now, name, "processes", order)


def _of(
    before: Mapping[str, Any], now: Mapping[str, Any], key: str, part: Part, effect: str, name: str | None = None
) -> Iterator[Difference]:
    first, second = _shown(before, key), _shown(now, key)
    if first != second:
        yield Difference(part, name or key, first, second, effect)


def _part(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A dict of a manifest, which anybody may have written; empty where it is none."""
    found = facts.get(name)
    return found if isinstance(found, Mapping) else {}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "missing"


def _names(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _version(package: Any) -> str:
    return str(package.get("version")) if isinstance(package, Mapping) else "missing"


def _packed(package: Any) -> str:
    return str(package.get("content_sha256"))[:12] if isinstance(package, Mapping) else ""


def _content(file: Any) -> Any:
    return (file.get("num_bytes"), file.get("sha256")) if isinstance(file, Mapping) else None


def _file(file: Any) -> str:
    if not isinstance(file, Mapping):
        return "missing"
    return f"{file.get('num_bytes')} bytes {str(file.get('sha256'))[:12]}"


def _gpus(hardware: Mapping[str, Any]) -> str:
    found = hardware.get("gpus")
    names = [str(gpu.get("name")) for gpu in found if isinstance(gpu, Mapping)] if isinstance(found, list) else []
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
