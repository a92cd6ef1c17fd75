"""Prepare: makes shards of a source, by many processes that share the work, and goes on where it was ended."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from trainkit.data.files import suffix_of, walk
from trainkit.data.image_formats import extensions
from trainkit.data.images import Images
from trainkit.data.readers import READERS
from trainkit.data.shards.index import FILE, WORK, Kind, ShardIndex, read_index, require_sizes
from trainkit.data.shards.prepare_images import ImageBuild
from trainkit.data.shards.prepare_images import settings_of as settings_of_images
from trainkit.data.shards.prepare_text import TextBuild
from trainkit.data.shards.prepare_text import settings_of as settings_of_text
from trainkit.data.shards.work import Crew, Finished, Work, write_whole
from trainkit.data.text import Text
from trainkit.errors import ConfigError, DataError, nearest
from trainkit.storage import locate

SETTINGS: dict[Kind, tuple[str, ...]] = {
    "text": (
        "field",
        "vocab_file",
        "vocab_size",
        "lowercase",
        "strip_accents",
        "tokenize_chinese_chars",
        "held_out",
        "on_unreadable",
    ),
    "images": (
        "resolution",
        "channels",
        "held_out",
        "max_pixels",
        "max_file_mb",
        "on_unreadable",
        "fit",
        "background",
        "frames",
        "labels",
    ),
}
_PLAN = "plan.json"
MB = 1_000_000


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made.

    Args:
        index: of the shards.
        was_there: whether all of it was there before.
    """

    index: ShardIndex
    was_there: bool


def prepare(
    source: Path,
    to: Path,
    *,
    kind: Kind | None = None,
    shard_mb: int = 64,
    num_workers: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Prepared:
    """Makes shards of text or of images.

    Any number of processes on any machines that see both paths may run it at the same time: they share the work. What
    they make does not depend on their number, nor on how often they were killed.

    Args:
        source: as `data.path` of `Text` or `Images`.
        to: the folder of the shards; empty, new, or one that this was begun in.
        kind: of data; None: by what is there.
        shard_mb: about how large a file is, in MB.
        num_workers: processes; None: one per core.
        settings: of `Text` or `Images`, those in `SETTINGS`.
        progress: whether to show progress bars.

    Returns:
        The index.

    Raises:
        DataError: for a source that cannot be read, settings out of range, and a folder with something else in it.
    """
    source, to = source.expanduser().absolute(), to.expanduser().absolute()
    if not source.exists():
        raise DataError(f"SOURCE {source} does not exist; give a folder or a file of text or images")
    if (source / FILE).is_file():
        raise DataError(f"SOURCE {source} holds shards, which are ready to train on: data.path={source}")
    if not 1 <= shard_mb <= 4096:
        raise DataError(f"--shard-mb {shard_mb}: must be 1 to 4096")
    if num_workers is not None and num_workers < 1:
        raise DataError(f"--workers {num_workers}: must be at least 1")
    inside, outside = to.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise DataError(f"--to {to}: must not be in SOURCE, nor SOURCE in it: give another folder")
    kind = kind or kind_of(source)
    given = _checked(kind, settings or {})
    build = _build(kind, source, to, shard_mb, given)
    made_with = {**_settings_of(build), "shard_mb": shard_mb, "kind": kind}
    if (to / FILE).is_file():
        return _found(to, build, made_with)
    _begin(to, build, made_with)
    try:
        with Crew(num_workers or os.cpu_count() or 1, progress) as crew:
            build.run(crew)
    except (Finished, FileNotFoundError):  # another process has ended the build, and removes what it no longer needs
        if not (to / FILE).is_file():
            raise
    shutil.rmtree(to / WORK, ignore_errors=True)  # another process may be at it, too
    return Prepared(read_index(locate(to)), False)


def kind_of(source: Path) -> Kind:
    """Tells by the names of files whether a path holds text or images.

    Raises:
        DataError: for both, or neither.
    """
    names = [file for _, _, files in walk(source) for file in files] if source.is_dir() else [source.name]
    has_images = any(Path(name).suffix.lower() in extensions() for name in names) or source.suffix.lower() == ".zip"
    has_text = any(suffix_of(name) in READERS for name in names if suffix_of(name) != ".py")
    if has_images and has_text:
        raise DataError(f"{source} holds both text and images: say which with --kind text or --kind images")
    return "images" if has_images else "text"  # of what is neither, the reader of text says what it takes


def _checked(kind: Kind, settings: Mapping[str, Any]) -> dict[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    known = SETTINGS[kind]
    hints = {**get_type_hints(Images), **get_type_hints(Text)} if kind == "text" else get_type_hints(Images)
    found = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{name}={value}: of {kind} it must be one of {', '.join(known)}.{nearest(name, known)}")
        try:
            found[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{name}={value}: {error.errors()[0]['msg'].lower()}") from None
    return found


def _build(kind: Kind, source: Path, to: Path, shard_mb: int, given: dict[str, Any]) -> "TextBuild | ImageBuild":
    work, num_bytes = Work(to / WORK, to / FILE), shard_mb * MB
    if kind == "images":
        return ImageBuild(Images(path=source, **given), to, work, num_bytes, shard_mb)
    skip = given.pop("on_unreadable", "error") == "skip"
    return TextBuild(Text(path=source, **given), to, work, num_bytes, shard_mb, skip)


def _settings_of(build: "TextBuild | ImageBuild") -> dict[str, Any]:
    if isinstance(build, TextBuild):
        return settings_of_text(build.text, build.skip)
    return settings_of_images(build.images)


def _begin(to: Path, build: "TextBuild | ImageBuild", made_with: dict[str, Any]) -> None:
    """Writes down what is to be made, or finds that it is what was begun."""
    plan = to / WORK / _PLAN
    try:
        if not plan.is_file():
            others = [path.name for path in to.iterdir() if path.name != WORK] if to.is_dir() else []
            if others:
                raise DataError(f"--to {to}: holds {others[0]}, which is no part of shards; give a new or empty folder")
            plan.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"made_with": made_with, "state": build.state()}, indent=1)
            write_whole(plan, lambda path: path.write_text(text))
        begun = json.loads(plan.read_text())
    except OSError as error:
        raise DataError(f"--to {to} cannot be written: {error.strerror or error}") from error
    _require_same(to, begun["made_with"], made_with, "begun")
    if begun["state"] != build.state():
        raise DataError(f"--to {to}: SOURCE has changed since the shards were begun; remove {to} and begin again")


def _found(to: Path, build: "TextBuild | ImageBuild", made_with: dict[str, Any]) -> Prepared:
    index = read_index(locate(to))
    require_sizes(index)
    mb = {"shard_mb": index.settings.get("shard_mb"), "kind": index.kind}
    _require_same(to, {**index.settings, **mb}, made_with, "made")
    fingerprint = build.fingerprint()
    if fingerprint != index.source["fingerprint"]:
        raise DataError(f"--to {to}: holds shards of something else than SOURCE is now; remove it, or give another")
    shutil.rmtree(to / WORK, ignore_errors=True)  # of a process that was killed right at its end
    return Prepared(index, True)


def _require_same(to: Path, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    names = {field.name for field in (*fields(Text), *fields(Images))} | {"shard_mb", "kind"}
    for name in now:
        if name in names and before.get(name) != now[name]:
            key = {"shard_mb": "--shard-mb ", "kind": "--kind "}.get(name, f"{name}=")
            raise DataError(
                f"{key}{now[name]}: the shards in {to} were {what} with {before.get(name)}; give that, or another --to"
            )
