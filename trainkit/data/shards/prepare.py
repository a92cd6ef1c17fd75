"""Prepare: makes shards of a source, by many processes that share the work, and goes on where it was ended."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from trainkit.data.files import suffix_of, walk
from trainkit.data.formats.opening import content_of_shards
from trainkit.data.image_formats import extensions
from trainkit.data.images import Images
from trainkit.data.readers import READERS
from trainkit.data.shards.index import FILE, WORK, Kind, ShardIndex, read_index, require_sizes
from trainkit.data.shards.plan import Build, begun, require_same
from trainkit.data.shards.prepare_images import ImageBuild
from trainkit.data.shards.prepare_images import settings_of as settings_of_images
from trainkit.data.shards.prepare_text import TextBuild
from trainkit.data.shards.prepare_text import settings_of as settings_of_text
from trainkit.data.shards.work import Crew, Finished, Work
from trainkit.data.text import Text
from trainkit.errors import ConfigError, DataError, nearest
from trainkit.storage import Location, is_url, locate

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
    source: str | Path,
    to: str | Path,
    *,
    kind: Kind | None = None,
    shard_mb: int = 64,
    num_workers: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Prepared:
    """Makes shards of text or of images.

    Any number of processes on any machines that see both places may run it at the same time: they share the work. What
    they make does not depend on their number, nor on how often they were killed. Behind a URL nothing is locked, and
    what is not done yet lies beside the shards.

    Args:
        source: as `data.path` of `Text` or `Images`.
        to: the folder of the shards, or its URL; empty, new, or one that this was begun in.
        kind: of data; None: by what is there.
        shard_mb: about how large a file is, in MB.
        num_workers: processes; None: one per core.
        settings: of `Text` or `Images`, those in `SETTINGS`.
        progress: whether to show progress bars.

    Returns:
        The index.

    Raises:
        DataError: for a source that cannot be read, settings out of range, and a folder with something else in it.
        StorageError: for a store that cannot be written.
    """
    if is_url(source):
        raise DataError(f"SOURCE {source}: it is read from a disk; copy it to one first")
    source = Path(source).expanduser().absolute()
    folder = locate(to if is_url(to) else Path(to).expanduser().absolute())
    if not source.exists():
        raise DataError(f"SOURCE {source} does not exist; give a folder or a file of text or images")
    if (source / FILE).is_file():
        raise DataError(f"SOURCE {source} holds shards, which are ready to train on: data.path={source}")
    if not 1 <= shard_mb <= 4096:
        raise DataError(f"--shard-mb {shard_mb}: must be 1 to 4096")
    if num_workers is not None and num_workers < 1:
        raise DataError(f"--workers {num_workers}: must be at least 1")
    if (path := folder.local_path()) is not None:
        inside, outside = path.resolve(), source.resolve()
        if inside.is_relative_to(outside) or outside.is_relative_to(inside):
            raise DataError(f"--to {path}: must not be in SOURCE, nor SOURCE in it: give another folder")
    kind = kind or kind_of(source)
    given = _checked(kind, settings or {})
    build = _build(kind, source, folder, shard_mb, given)
    made_with = {**_settings_of(build), "shard_mb": shard_mb, "kind": kind}
    if build.work.goal.is_file():
        return _found(build, made_with)
    work = build.work
    try:
        build = begun(build, made_with)
        with Crew(num_workers or os.cpu_count() or 1, progress, in_order=work.has_locks) as crew:
            build.run(crew)
    except (Finished, FileNotFoundError):  # another process has ended the build, and removes what it no longer needs
        if not work.goal.is_file():
            raise
    work.remove()
    return Prepared(read_index(folder), False)


def kind_of(source: Path) -> Kind:
    """Tells by the names of files, or the columns of shards, whether a path holds text or images.

    Raises:
        DataError: for both, or neither.
    """
    if (content := content_of_shards(source)) is not None:
        return content
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


def _build(kind: Kind, source: Path, to: Location, shard_mb: int, given: dict[str, Any]) -> Build:
    work, num_bytes = Work(to.child(WORK), to.child(FILE)), shard_mb * MB
    if kind == "images":
        return ImageBuild(Images(path=source, **given), to, work, num_bytes, shard_mb)
    skip = given.pop("on_unreadable", "error") == "skip"
    return TextBuild(Text(path=source, **given), to, work, num_bytes, shard_mb, skip)


def _settings_of(build: Build) -> dict[str, Any]:
    if isinstance(build, TextBuild):
        return settings_of_text(build.text, build.skip)
    return settings_of_images(build.images)


def _found(build: Build, made_with: dict[str, Any]) -> Prepared:
    index, to = read_index(build.folder), build.folder.shown
    require_sizes(index)
    mb = {"shard_mb": index.settings.get("shard_mb"), "kind": index.kind}
    require_same(to, {**index.settings, **mb}, made_with, "made")
    fingerprint = build.fingerprint()
    if fingerprint != index.source["fingerprint"]:
        raise DataError(f"--to {to}: holds shards of something else than SOURCE is now; remove it, or give another")
    build.work.remove()  # of a process that was killed right at its end
    return Prepared(index, True)
