"""The plan of a build: what is being made of what, written down where the shards will lie before anything is made."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from trainkit.data.images import Images
from trainkit.data.shards.index import PLAN, WORK
from trainkit.data.shards.prepare_images import ImageBuild
from trainkit.data.shards.prepare_text import TextBuild
from trainkit.data.shards.work import Work
from trainkit.data.text import Text
from trainkit.errors import DataError
from trainkit.json_text import digest, parse_json
from trainkit.storage import Location

Build = TextBuild | ImageBuild


def begun(build: Build, made_with: Mapping[str, Any]) -> Build:
    """Writes down what is to be made, or finds that it is what was begun.

    Args:
        build: that is to begin, or to go on.
        made_with: its settings.

    Returns:
        The build.

    Raises:
        DataError: where the folder holds something else, or another build.
        StorageError: where the store cannot be written.
        Finished: where another process has ended the build meanwhile.
    """
    to = build.folder
    plan = build.work.folder.child(PLAN)
    try:
        if not plan.is_file():
            if others := _others(to):
                raise DataError(
                    f"--to {to.shown}: holds {others}, which is no part of shards; give a new or empty folder"
                )
            build.work.folder.child("begun").write(b"trainkit")  # before the source is read: a store may refuse
        state = build.state()
        if not plan.is_file():
            text = json.dumps({"made_with": made_with, "state": state}, indent=1)
            build.work.put(plan, lambda file: file.write(text.encode()))
        found = parse_json(build.work.read_file(plan))
    except OSError as error:
        raise DataError(f"--to {to.shown} cannot be written: {error.strerror or error}") from error
    require_same(to.shown, found["made_with"], made_with, "begun")
    if found["state"] != state:
        raise DataError(
            f"--to {to.shown}: SOURCE has changed since the shards were begun; remove {to.shown} and begin again"
        )
    if build.work.has_locks:
        return build
    # Two commands with other settings that begin at the same moment must not take each other's results for their own.
    folder = build.work.folder.child(digest([dict(made_with), state]))
    return replace(build, work=Work(folder, build.work.goal, build.work.name))


def require_same(to: str, before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raises DataError, naming the first setting that differs.

    Args:
        to: the folder of the shards, for the message.
        before: the settings of the shards that are there.
        now: those that are asked for.
        what: whether these shards were `begun` or `made`.
    """
    names = {field.name for field in (*fields(Text), *fields(Images))} | {"shard_mb", "kind"}
    for name in now:
        if name in names and before.get(name) != now[name]:
            key = {"shard_mb": "--shard-mb ", "kind": "--kind "}.get(name, f"{name}=")
            raise DataError(
                f"{key}{now[name]}: the shards in {to} were {what} with {before.get(name)}; give that, or another --to"
            )


def _others(folder: Location) -> str | None:
    """Returns the name of something in a folder that is no part of a build; None where there is nothing."""
    path = folder.local_path()
    if path is not None:
        return next((entry.name for entry in path.iterdir() if entry.name != WORK), None) if path.is_dir() else None
    return next(iter(folder.names()), None) if folder.is_folder() else None
