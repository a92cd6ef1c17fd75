"""Image files: those that are kept, under their own names, with their labels."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trainkit.data.image_formats import LABELS_FILE
from trainkit.data.image_sources import Folder, Zip
from trainkit.data.progress import track
from trainkit.errors import ConfigError, DataError
from trainkit.json_text import parse_json

LIST = "kept.txt"


def require_inside(names: Sequence[str]) -> None:
    """Raises DataError for a name that leads out of the folder that it is written to."""
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise DataError(f"{name!r}: a name that leads out of its folder; make the zip file again without it")


def write_images(
    source: Folder | Zip, path: Path, names: Sequence[str], directory: Path, form: str, progress: bool
) -> tuple[Mapping[str, Any], ...]:
    """Writes images, and the labels in `dataset.json`.

    Args:
        source: of the images.
        path: of it.
        names: that are kept; see `require_inside`.
        directory: that exists and is empty.
        form: see `select_images`.
        progress: whether to show a bar.

    Returns:
        The files other than images, with their numbers of images.

    Raises:
        ConfigError: for links that cannot be made.
    """
    labels = source.read(LABELS_FILE)
    if labels is not None:
        (directory / LABELS_FILE).write_text(_labels_of(labels, {*names}), encoding="utf-8")
    if form == "list":
        (directory / LIST).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return ({"name": LIST, "images": len(names)},)
    if form == "links" and not path.is_dir():
        raise ConfigError(f"--form=links: {path} is a zip file, of which there can be no links; use --form copies")
    for name in track(names, "writing images", len(names), progress):
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if form == "copies":
            target.write_bytes(source.content(name))
        else:
            try:
                os.link((path / name).resolve(), target)
            except OSError as error:
                raise ConfigError(
                    f"--form=links: {path / name} cannot be linked to ({error.strerror}); use --form copies"
                ) from error
    return ({"name": "images", "images": len(names)},)


def _labels_of(content: bytes, names: set[str]) -> str:
    """The same file without the entries of other images."""
    try:
        whole = parse_json(content)
    except ValueError as error:
        raise DataError(f"{LABELS_FILE} beside the images is no JSON ({error}); repair or remove it") from error
    entries = whole.get("labels") if isinstance(whole, dict) else None
    if isinstance(entries, list):
        kept = [one for one in entries if isinstance(one, list) and one and str(one[0]).replace("\\", "/") in names]
        whole = {**whole, "labels": kept}
    return json.dumps(whole, ensure_ascii=False) + "\n"
