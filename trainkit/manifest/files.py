"""Files: the content of each file that the configured data name, so that one that has changed can be named."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainkit.data.files import walk
from trainkit.data.folder_scan import holds
from trainkit.data.shards.index import FILE as INDEX
from trainkit.json_text import MAX_BYTES, parse_json, read_bounded
from trainkit.whole_file import write_text

FILES = "data_files.jsonl"
MAX_FILES = 200_000
MAX_WHOLE_BYTES = 4 << 30
"""All files together up to which every byte is hashed; of more, the first and the last 64 KiB of each file."""
_ENDS = 1 << 16
_LONGEST = 4096  # characters of a path


def data_files(data: Any, *, whole: bool | None = None) -> dict[str, Any]:
    """Hashes the files below each path in the configuration of data.

    Of shards, the index and the checksums, which are those of all their bytes.

    Args:
        data: the node `data` of a configuration.
        whole: whether every byte is hashed; None: where they are at most 4 GiB together.

    Returns:
        `num_files`, `num_bytes`, `hashed` (`whole` or `ends`), and `files`: of each path its size and sha256, which is
        None where it cannot be read. Of more than 200,000 files only `more_than`, for a list of them would be longer
        than the data of many runs, and counting them would take minutes beside the training.
    """
    if _are_very_many(_roots(data)):
        return {"more_than": MAX_FILES}
    found = {str(path): path for root in _roots(data) for path in _below(root)}
    sizes = {name: path.stat().st_size for name, path in found.items()}
    num_bytes = sum(sizes.values())
    is_whole = num_bytes <= MAX_WHOLE_BYTES if whole is None else whole
    facts = {"num_files": len(found), "num_bytes": num_bytes, "hashed": "whole" if is_whole else "ends"}
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        sums = pool.map(lambda path: _sum_of(path, is_whole), found.values())
        files = {name: {"num_bytes": sizes[name], "sha256": sha} for name, sha in zip(found, sums, strict=True)}
    return {**facts, "files": files}


def write_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes a list of files, one JSON object a line.

    Args:
        path: the file.
        files: of `data_files`.

    Returns:
        The sha256 of the list.
    """
    text = "".join(json.dumps({"path": name, **facts}) + "\n" for name, facts in files.items())
    write_text(path, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_files(path: Path) -> dict[str, dict[str, Any]]:
    """Reads what `write_files` wrote; empty where there is none.

    Args:
        path: the file.

    Raises:
        ValueError: it is no such list, or too large.
    """
    if not path.is_file():
        return {}
    lines = map(parse_json, read_bounded(path, MAX_BYTES).splitlines())
    return {str(line.pop("path")): line for line in lines if isinstance(line, dict) and "path" in line}


def _roots(data: Any) -> Iterator[Path]:
    from trainkit.config.tree import flat  # a Runtime does not import Hydra

    for key, text in flat({"data": data}).items():
        if not isinstance(text, str) or key.endswith(("_dir", "_target_")) or len(text) > _LONGEST or "\0" in text:
            continue
        path = Path(text).expanduser()
        # `text` of data.field=text means a column, though there may be a folder of that name.
        if ("/" in text or key.endswith(("path", "file", "folder", "root", "weights"))) and path.exists():
            yield path


def _are_very_many(roots: Iterable[Path]) -> bool:
    """Whether there are more than `MAX_FILES` files; takes neither more time nor more memory where there are more."""
    num = 0

    def is_beyond(_: Path) -> bool:
        nonlocal num
        num += 1
        return num > MAX_FILES

    return any(holds(root, is_beyond) for root in roots if root.is_dir() and not (root / INDEX).is_file())


def _below(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    if (index := root / INDEX).is_file():  # the checksums stand for the shards
        yield from (index, *sorted(root.glob("*.sums")))
        return
    for directory, _, names in walk(root):
        yield from (path for name in names if (path := directory / name).is_file())


def _sum_of(path: Path, is_whole: bool) -> str | None:
    try:
        file = path.open("rb")
    except OSError:  # whether training can do without it is for the data set to say
        return None
    with file:
        if is_whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(file.read(_ENDS))
        file.seek(max(file.tell(), path.stat().st_size - _ENDS))
        digest.update(file.read(_ENDS))
        return digest.hexdigest()
