"""Files below a folder: found through links, each directory once, and those that nobody reads are counted."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath


def walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(directory, folders, files) from `path` down, names sorted, hidden ones aside; links are followed.

    A directory that several links lead to comes once, so that a link to a folder above ends. What is taken out of
    `folders` is not entered.
    """
    seen: set[tuple[int, int]] = set()
    for directory, folders, files in os.walk(path, followlinks=True):
        status = Path(directory).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(directory), folders, sorted(name for name in files if not name.startswith("."))


def suffix_of(name: str | PurePath) -> str:
    """In lower case; with the one before it where that is of a compressed file: `.txt.gz`."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    is_compressed = len(suffixes) > 1 and suffixes[-1] in (".gz", ".zst")
    return "".join(suffixes[-2:]) if is_compressed else "".join(suffixes[-1:])


def counted(names: Iterable[str | PurePath], most: int = 4) -> str:
    """`3 .heic, 1 without a suffix`, the commonest first; empty for none."""
    counts = Counter(suffix_of(name) or "without a suffix" for name in names).most_common()
    shown = [f"{count} {suffix}" for suffix, count in counts[:most]]
    others = sum(count for _, count in counts[most:])
    return ", ".join([*shown, f"{others} others"] if others else shown)
