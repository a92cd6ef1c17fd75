"""Listing: the files of a folder, and a digest of each, in arrays on disk that are mapped into memory."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from trainkit.data.folder_scan import Digest
from trainkit.data.mapped_files import MappedFiles
from trainkit.whole_file import write_text

_SUMMARY = "summary.json"
_HASHED_AT_ONCE = 1 << 24  # bytes
_ROWS_AT_ONCE = 4096
_EMPTY = np.zeros(0, np.uint8)


class Strings(Sequence[bytes]):
    """Byte strings in two files, of which only what is asked for is read.

    Args:
        path: of the files, without their suffixes.
        files: in which they are mapped.
    """

    def __init__(self, path: Path, files: MappedFiles) -> None:
        self._text, self._ends, self._files = path.with_suffix(".text"), path.with_suffix(".ends"), files

    def __len__(self) -> int:
        return self._ends.stat().st_size // 8

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"string {index} of {len(self)}")
            return self[index % len(self) : index % len(self) + 1][0]
        start, stop, step = index.indices(len(self))
        if stop <= start or step != 1:
            return [self[number] for number in range(start, stop, step)]
        ends = self._files.array(self._ends, np.dtype(np.int64))[max(0, start - 1) : stop].tolist()
        bounds = ends if start else [0, *ends]
        text = self._bytes()[bounds[0] : bounds[-1]].tobytes()
        return [text[a - bounds[0] : b - bounds[0]] for a, b in pairwise(bounds)]

    def add_to(self, digest: Digest) -> None:
        """Hashes all strings, one after the other."""
        text = self._bytes()
        for start in range(0, len(text), _HASHED_AT_ONCE):
            digest.update(np.ascontiguousarray(text[start : start + _HASHED_AT_ONCE]))

    def _bytes(self) -> NDArray[np.uint8]:
        return self._files.array(self._text, np.dtype(np.uint8)) if self._text.stat().st_size else _EMPTY


class ListedFiles(Sequence[Path]):
    """The paths of some files of a folder, in order; each is made when it is asked for.

    Args:
        root: the folder.
        path: of the arrays, without their suffixes.
        files: in which they are mapped.
    """

    def __init__(self, root: Path, path: Path, files: MappedFiles) -> None:
        self.root, self._path, self._files = root, path, files
        self.names = Strings(path.with_name(f"{path.name}-names"), files)
        self.contents = Strings(path.with_name(f"{path.name}-contents"), files)
        """Of each file what stands for its content in the digest of all."""
        self._directories = Strings(path.with_name(f"{path.name}-directories"), files)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.root / os.fsdecode(self.relative(range(len(self))[index], 1)[0])

    def __iter__(self) -> Iterator[Path]:
        return (self.root / os.fsdecode(name) for name in self.relatives())

    def relatives(self) -> Iterator[bytes]:
        """Yields the paths relative to the folder."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.relative(start, _ROWS_AT_ONCE)

    def relative(self, start: int, num: int) -> list[bytes]:
        """Returns the paths of at most `num` files from `start` on, relative to the folder."""
        names = self.names[start : start + num]
        firsts = self._array("first", np.int64, 1)
        run = int(np.searchsorted(firsts, start, side="right")) - 1
        last = int(np.searchsorted(firsts, start + len(names), side="left"))
        directories = self._directories[run:last]
        of = (np.searchsorted(firsts[run:last], np.arange(start, start + len(names)), side="right") - 1).tolist()
        return [
            b"/".join((directories[k], name)) if directories[k] else name for k, name in zip(of, names, strict=True)
        ]

    @property
    def states(self) -> NDArray[np.int64]:
        """int64 [len, 4], as of `Run`."""
        return self._array("states", np.int64, 4)

    @property
    def num_bytes(self) -> int:
        """The size of the files together."""
        return int(np.maximum(self.states[:, 0], 0).sum())

    def _array(self, suffix: str, dtype: type, width: int) -> NDArray[Any]:
        path = self._path.with_suffix(f".{suffix}")
        found = self._files.array(path, np.dtype(dtype)) if path.stat().st_size else np.zeros(0, dtype)
        return found.reshape(-1, width) if width > 1 else found


class Names(Sequence[str]):
    """The paths of listed files as texts, relative to their folder."""

    def __init__(self, files: ListedFiles) -> None:
        self._of = files

    def __len__(self) -> int:
        return len(self._of)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, int):
            return os.fsdecode(self._of.relative(range(len(self))[index], 1)[0])
        start, stop, step = index.indices(len(self))
        if step != 1:
            return [self[number] for number in range(start, stop, step)]
        return [os.fsdecode(name) for name in self._of.relative(start, max(0, stop - start))]

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self._of.relatives())


class Listing:
    """What was found in a folder, by groups of files. A copy in another process maps its own arrays.

    Args:
        root: the folder.
        directory: that a `ListingWriter` has filled.
    """

    def __init__(self, root: Path, directory: Path) -> None:
        self.root, self.directory = root, directory
        self.facts: dict[str, Any] = json.loads((directory / _SUMMARY).read_text(encoding="utf-8"))
        """What was found beside the files, JSON-serializable."""
        self._files = MappedFiles()

    def group(self, name: str) -> ListedFiles:
        """Returns the files of a group."""
        return ListedFiles(self.root, self.directory / name, self._files)

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what follows from the files alone, computed once for this listing.

        Args:
            name: of the value; it contains everything beside the files that decides it.
            compute: returns the value, JSON-serializable.
        """
        path = self.directory / f"{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        value = compute()
        with suppress(PermissionError):  # a cache that another user fills
            write_text(path, json.dumps(value))
        return value


class ListingWriter:
    """Fills a directory with a `Listing`; takes the memory of a block of each file.

    Args:
        directory: where the files are written.
        groups: the names of all groups.
    """

    def __init__(self, directory: Path, groups: Sequence[str]) -> None:
        self._directory = directory
        parts = ("names.text", "names.ends", "contents.text", "contents.ends", "directories.text", "directories.ends")
        self._files = {
            group: {
                part: (directory / f"{group}{separator}{part}").open("wb")
                for separator, several in (("-", parts), (".", ("states", "first")))
                for part in several
            }
            for group in groups
        }
        self._ends = {group: {"names": 0, "contents": 0, "directories": 0} for group in groups}
        self._runs: dict[str, str | None] = dict.fromkeys(groups)
        self.num_files = dict.fromkeys(groups, 0)

    def append(self, group: str, directory: str, name: str, state: Sequence[int], content: bytes = b"") -> None:
        """Appends a file.

        Args:
            group: which it belongs to.
            directory: that it is in, relative to the folder.
            name: of the file.
            state: of it, as a row of `Run.states`.
            content: what stands for it in a digest of all.
        """
        files = self._files[group]
        if self._runs[group] != directory:
            self._runs[group] = directory
            files["first"].write(self.num_files[group].to_bytes(8, "little"))
            self._add(group, "directories", os.fsencode(directory))
        self._add(group, "names", os.fsencode(name))
        self._add(group, "contents", content)
        files["states"].write(np.asarray(state, np.int64).tobytes())
        self.num_files[group] += 1

    def _add(self, group: str, kind: str, value: bytes) -> None:
        self._ends[group][kind] += len(value)
        self._files[group][f"{kind}.text"].write(value)
        self._files[group][f"{kind}.ends"].write(self._ends[group][kind].to_bytes(8, "little"))

    def close(self, facts: dict[str, Any]) -> None:
        """Writes what is left, and `facts`; the directory is then whole."""
        self._close()
        (self._directory / _SUMMARY).write_text(json.dumps(facts), encoding="utf-8")

    def _close(self) -> None:
        for files in self._files.values():
            for file in files.values():
                file.close()

    def __enter__(self) -> "ListingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
