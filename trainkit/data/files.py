"""Files below a folder."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath


def walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walks a folder like os.walk, in sorted order and without hidden names; links are followed.

    A directory that several links lead to comes once, so that a link to a parent folder ends. Folders that the caller
    removes from `folders` are not entered.

    Args:
        path: the folder.

    Yields:
        (directory, names of its folders, names of its files).
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


def state_of(paths: Iterable[Path]) -> str:
    """Hashes names, sizes and times of files, among them that of the last status change (ctime), which cannot be set.

    Args:
        paths: of the files. One that does not exist, such as a link to nothing, counts by its name.

    Returns:
        Hexadecimal digits.
    """
    whole = hashlib.blake2b(digest_size=16)
    for path in paths:
        whole.update(os.fsencode(path) + b"\0")
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            whole.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\0".encode())
    return whole.hexdigest()


def suffix_of(name: str | PurePath) -> str:
    """Returns the suffix in lower case, with the one before it for a compressed file.

    Args:
        name: a file name or path.

    Returns:
        The suffix with its dot; empty where there is none.

    Example:
        >>> suffix_of("wiki.TXT.gz"), suffix_of("README")
        ('.txt.gz', '')
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    is_compressed = len(suffixes) > 1 and suffixes[-1] in (".gz", ".zst")
    return "".join(suffixes[-2:]) if is_compressed else "".join(suffixes[-1:])


def counted(names: Iterable[str | PurePath], most: int = 4) -> str:
    """Counts files by suffix, for a message.

    Args:
        names: file names.
        most: suffixes to list; the rest are counted as others.

    Returns:
        The counts, largest first; empty for no files.

    Example:
        >>> counted(["a.heic", "b.heic", "README"])
        '2 .heic, 1 without a suffix'
    """
    return listed_counts(Counter(map(suffix_of, names)), most)


def listed_counts(by_suffix: Mapping[str, int], most: int = 4) -> str:
    """Lists numbers of files by suffix, for a message; see `counted`."""
    counts = Counter({suffix or "without a suffix": count for suffix, count in by_suffix.items()}).most_common()
    shown = [f"{count} {suffix}" for suffix, count in counts[:most]]
    others = sum(count for _, count in counts[most:])
    return ", ".join([*shown, f"{others} others"] if others else shown)
