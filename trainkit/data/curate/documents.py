"""SourceDocuments: the texts at a path, one after the other, as often as is needed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainkit.data.corpus import find_corpus
from trainkit.data.readers import reader_of
from trainkit.errors import ConfigError, DataError

_BATCH_DOCUMENTS, _BATCH_CHARS = 512, 1 << 20
_OPTIONS = re.compile(r"\bdata\.(path|field)\b")
_NAMES = {"path": "PATH", "field": "--field"}


class Document(NamedTuple):
    """A document.

    Args:
        number: its place among all documents that are not blank, from 0.
        file: relative to the folder that was given.
        place: its number in the file, from 1, blank ones counted.
        text: of it.
    """

    number: int
    file: str
    place: int
    text: str

    @property
    def where(self) -> str:
        """How it is named to people."""
        return f"{self.file}, document {self.place}"


@dataclass(frozen=True)
class UnreadFile:
    """A file that could not be read to its end.

    Args:
        file: relative to the folder that was given.
        reason: one line.
        num_before: documents of it that were read before.
    """

    file: str
    reason: str
    num_before: int


class SourceDocuments:
    """Reads the documents at a path, as a run does: a paragraph of a text file, a row of a table.

    Args:
        path: as of data.path; None: the built-in corpus.
        field: the key or column with the text.
        on_unreadable: what a file that cannot be read to its end does: `error`, or `skip`: what was read of it counts,
            and `unread` names it.

    Raises:
        DataError: where nothing there can be read as text.
    """

    def __init__(self, path: Path | None, field: str = "text", on_unreadable: str = "error") -> None:
        if on_unreadable not in ("error", "skip"):
            raise ConfigError(f"--on-unreadable={on_unreadable}: must be error or skip")
        self.path, self.field, self._skips = path, field, on_unreadable == "skip"
        try:
            self._corpus = find_corpus(path, field)
        except DataError as error:
            raise _renamed(error) from error
        self.num_blank = 0
        """Documents without a character, of the last reading."""
        self.unread: list[UnreadFile] = []
        """Files that could not be read to their end, of the last reading."""

    @property
    def num_bytes(self) -> int:
        """The size of the files to train on, as they are stored."""
        return sum(path.stat().st_size for path in self._corpus.train)

    @property
    def num_files(self) -> int:
        """Files to train on."""
        return len(self._corpus.train)

    @property
    def num_held_out_files(self) -> int:
        """Files of the source's own held-out split, which are left alone."""
        return len(self._corpus.held_out)

    @property
    def unread_names(self) -> Sequence[Path]:
        """Files that are no text."""
        return self._corpus.unread

    def __iter__(self) -> Iterator[Document]:
        number, self.num_blank, self.unread = 0, 0, []
        for path in self._corpus.train:
            read = reader_of(path)
            assert read is not None, f"{path} was found to be readable"
            name, first = self._name(path), number
            try:
                for place, text in enumerate(read(path, self.field), start=1):
                    if not text or text.isspace():
                        self.num_blank += 1
                        continue
                    yield Document(number, name, place, text)
                    number += 1
            except DataError as error:
                if not self._skips:
                    raise DataError(
                        f"{_renamed(error)}; or leave out what cannot be read: --on-unreadable skip"
                    ) from error
                self.unread.append(UnreadFile(name, str(_renamed(error)), number - first))
        if number == 0:
            reason = f": {self.unread[0].reason}" if self.unread else ""
            raise DataError(f"{self.path} holds no document that can be read{reason}")

    def batches(self) -> Iterator[list[Document]]:
        """Yields documents by some hundreds, or fewer long ones."""
        batch: list[Document] = []
        num_chars = 0
        for document in self:
            batch.append(document)
            num_chars += len(document.text)
            if len(batch) == _BATCH_DOCUMENTS or num_chars >= _BATCH_CHARS:
                yield batch
                batch, num_chars = [], 0
        if batch:
            yield batch

    def _name(self, path: Path) -> str:
        if self.path is not None and path.is_relative_to(self.path) and path != self.path:
            return path.relative_to(self.path).as_posix()
        return path.name


def _renamed(error: DataError) -> DataError:
    """The same about the arguments of the command."""
    return DataError(_OPTIONS.sub(lambda found: _NAMES[found[1]], str(error)))
