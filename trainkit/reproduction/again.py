"""Again: the specification of a run that is made again from its manifest, and what differs here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainkit import manifest
from trainkit.config import Node, compose_onto, resolve
from trainkit.errors import ConfigError, DataError
from trainkit.manifest import Difference
from trainkit.manifest.files import read_files
from trainkit.tracking.command import as_typed
from trainkit.training.trust import require_ours

SPECIFICATION = "specification.json"
_THREADS = "OMP_NUM_THREADS"
_TRACKED = {"_target_": "trainkit.tracking.trackers", "console": True, "jsonl": True}
_NOT_TRACKED = dict.fromkeys(("curve", "media", "report", "tensorboard"), False)


@dataclass(frozen=True)
class Again:
    """A run that is to be made again.

    Args:
        config: what is trained, with its interpolations.
        run_dir: the new run directory.
        num_ranks: processes.
        num_threads: of each; None: not recorded.
        changed: what differs from the manifest already: what was typed, and what somebody wrote into config.yaml.
        notes: what cannot be the same even here.
    """

    config: Node
    run_dir: Path
    num_ranks: int
    num_threads: int | None
    changed: tuple[Difference, ...]
    notes: tuple[str, ...]

    def write(self, stop_after: int | None) -> Path:
        """Writes the specification that `python -m trainkit.cli.again` takes, in the new run directory.

        Args:
            stop_after: in steps; None: at the end of the run.

        Returns:
            Its path.

        Raises:
            ConfigError: the directory exists and is not empty, or cannot be made.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if any(self.run_dir.iterdir()):
                raise ConfigError(f"--to={self.run_dir} is not empty: give another directory")
            path = self.run_dir / SPECIFICATION
            path.write_text(json.dumps({"config": self.config, "stop_after": stop_after}, indent=1))
        except OSError as error:
            raise ConfigError(f"--to={self.run_dir} cannot be made: {error.strerror or error}") from error
        return path


def prepare(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    to: Path | None = None,
    num_ranks: int | None = None,
    config_dir: str | Path | None = None,
    trust: bool = False,
) -> Again:
    """Reads the manifest of a run, and decides how to make it again.

    Args:
        run: its directory.
        overrides: `key=value` on its configuration, such as the path of the data here.
        to: the new run directory; None: beside the run, with `_again` after its name.
        num_ranks: processes; None: as many as the run had.
        config_dir: as for `compose`.
        trust: as for `load_recipe`.

    Raises:
        ConfigError: for a run that no configuration describes, or of several hosts; UntrustedError where `trust` is
            needed.
        DataError: the run has no manifest, or it cannot be read.
    """
    found = manifest.read(run)
    composed, training = found.get("composed"), found["training"]
    if not isinstance(composed, Mapping) or "recipe" not in composed:
        raise ConfigError(
            f"{run} was not made by a configuration: start its script again with another run directory "
            f"({_command(found)}), and compare: trainkit diff {run} OTHER"
        )
    directory = to or _free(run)
    changed = compose_onto(composed, overrides, config_dir)
    changed |= {"run_dir": str(directory), "copy_to": None, "resume": "never"}
    changed |= {"tracking": {**_TRACKED, **_NOT_TRACKED, "wandb": None}}
    if not trust:
        require_ours(composed)
        require_ours(resolve(changed))
    first = found["configuration"]
    differing = manifest.differences({"configuration": first}, {"configuration": resolve(changed)})
    return Again(
        config=changed,
        run_dir=directory,
        num_ranks=num_ranks or _ranks(run, training),
        num_threads=_number(training.get("num_threads")),
        changed=(*differing, *_edited(run, first)),
        notes=tuple(_notes(found)),
    )


def differences_here(run: Path, config: Mapping[str, Any]) -> list[Difference]:
    """Compares what a run was made of with what is here, as far as that can be known before it is made again.

    Args:
        run: its directory.
        config: what is to be trained.

    Returns:
        Differences of code, data files, packages and the machine.

    Raises:
        DataError: the run has no manifest, or it cannot be read.
    """
    before, before_files = manifest.read(run), files_of(run)
    hashed = before["data"].get("files")
    whole = hashed.get("hashed") == "whole" if isinstance(hashed, Mapping) else None
    resolved = resolve(config)
    now = manifest.data_files({key: resolved.get(key) for key in ("data", "weights")}, whole=whole)
    present = manifest.present()
    # What this command has imported is not what training imports.
    known = before["code"].get("modules")
    modules = manifest.modules_by_name(known if isinstance(known, Mapping) else {})
    present["code"]["modules"] = modules
    present["environment"]["imported"] = before["environment"].get("imported", [])
    if _number(before["training"].get("num_threads")) is not None:  # which the processes are told
        own = before["environment"].get("variables")
        told = own.get(_THREADS) if isinstance(own, Mapping) else None
        others = {name: value for name, value in present["environment"]["variables"].items() if name != _THREADS}
        present["environment"]["variables"] = others if told is None else {**others, _THREADS: told}
    return manifest.differences(
        {**before, "configuration": {}, "training": {}, "data": {}},
        {**present, "configuration": {}, "training": {}, "data": {}},
        files=(before_files, now.get("files", {})),
    )


def differences_made(run: Path, again: Path) -> list[Difference]:
    """What is seen only once a run has been made again: other content of its data, other processes.

    Args:
        run: its directory.
        again: that of the run that was made of it.
    """
    before, now = manifest.read(run), manifest.read(again)
    only = ("data", "training")
    found = manifest.differences({part: before[part] for part in only}, {part: now[part] for part in only})
    return [difference for difference in found if difference.name != "num_samples"]


def files_of(run: Path) -> dict[str, dict[str, Any]]:
    """Reads the list of data files of a run. Raises DataError where it is none."""
    try:
        return read_files(run / manifest.FILES)
    except (OSError, ValueError) as error:
        raise DataError(f"{run / manifest.FILES} is no list of files: {error}") from error


def _free(run: Path) -> Path:
    base = run.with_name(f"{run.resolve().name}_again")
    number = 2
    path = base
    while path.exists():
        path, number = base.with_name(f"{base.name}_{number}"), number + 1
    return path


def _ranks(run: Path, training: Mapping[str, Any]) -> int:
    ranks, here = _number(training.get("num_ranks")) or 1, _number(training.get("num_ranks_per_host")) or 1
    if ranks != here:
        raise ConfigError(
            f"{run} had {ranks} ranks, {here} a host: give --processes N to make it again on this host alone (sums in "
            f"another order: within rounding), or start it as before with another run_dir, and type trainkit diff"
        )
    return ranks


def _edited(run: Path, recorded: Mapping[str, Any]) -> list[Difference]:
    """What somebody changed in config.yaml since the run was made."""
    path = run / "config.yaml"
    if not path.is_file() or _holds(path, recorded):
        return []
    return [Difference("configuration", "config.yaml", "as recorded", "edited", "nothing: the manifest is what counts")]


def _holds(path: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a file of YAML holds what a manifest does; keys that are numbers are strings there."""
    try:
        return json.dumps(yaml.safe_load(path.read_text(errors="replace"))) == json.dumps(recorded)
    except (yaml.YAMLError, TypeError):  # the second for what JSON does not have, such as dates
        return False


def _notes(found: Mapping[str, Any]) -> list[str]:
    configuration, training, notes = found["configuration"], found["training"], []
    if configuration.get("minutes") is not None:
        notes.append(f"minutes={configuration['minutes']}: its schedule depended on the speed of the machine")
    if training.get("device") != "cpu" and not training.get("deterministic"):
        notes.append("deterministic=false on a GPU: some kernels add in an order that changes from run to run")
    history = found.get("history")
    starts = [start for start in history if isinstance(start, Mapping)] if isinstance(history, list) else []
    if len({start.get("num_ranks") for start in starts}) > 1:
        notes.append("it was resumed on another number of ranks: sums were taken in another order from there on")
    if len({start.get("code_sha256") for start in starts if start.get("code_sha256")}) > 1:
        notes.append("it was resumed with other code: the manifest holds that of its newest start")
    return notes


def _command(found: Mapping[str, Any]) -> str:
    history = found.get("history")
    words = history[-1].get("command") if isinstance(history, list) and history else None
    return as_typed([str(word) for word in words]) if isinstance(words, list) and words else "its command is not known"


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
