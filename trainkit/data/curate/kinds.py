"""Kinds: whether a path holds text or images."""

from pathlib import Path
from typing import Literal, get_args

from trainkit.data.files import suffix_of, walk
from trainkit.data.formats.opening import content_of_shards
from trainkit.data.image_formats import extensions
from trainkit.data.readers import READERS, reader_of
from trainkit.errors import ConfigError, DataError, nearest

Kind = Literal["text", "images"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(path: Path, asked: str | None = None) -> tuple[Kind, int]:
    """Says what is at a path, by the names of the files.

    Args:
        path: a file or folder.
        asked: `text` or `images`; None: that of which there are more files.

    Returns:
        The kind, and the number of files of the other one.

    Raises:
        ConfigError: for another kind.
        DataError: for a path that does not exist, or holds neither.
    """
    if asked is not None and asked not in KINDS:
        raise ConfigError(f"--kind={asked}: must be text or images.{nearest(asked, KINDS)}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give a file or folder of text, or a folder or zip file of images")
    if asked is None and (content := content_of_shards(path)) is not None:
        return content, 0
    num: dict[Kind, int] = {"text": 0, "images": 0}
    for file in [path] if path.is_file() else (root / name for root, _, names in walk(path) for name in names):
        if file.suffix.lower() in extensions() or (file == path and file.suffix.lower() == ".zip"):
            num["images"] += 1
        elif suffix_of(file) in READERS or (not file.suffix and reader_of(file) is not None):
            num["text"] += suffix_of(file) != ".py"
    kind: Kind = "images" if num["images"] > num["text"] else "text"
    for one in KINDS:
        kind = one if one == asked else kind
    others = num["images" if kind == "text" else "text"]
    return kind, others
