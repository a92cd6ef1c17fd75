"""Given: what a path names, as one side of an audit: texts, rows of tables, or pictures."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from trainkit.audit.pictures import SIDE
from trainkit.data.corpus import find_corpus
from trainkit.data.decoding import Decoder, Unreadable
from trainkit.data.examples import Examples
from trainkit.data.files import suffix_of, walk
from trainkit.data.formats.opening import content_of_shards
from trainkit.data.image_formats import extensions
from trainkit.data.image_sources import find_source
from trainkit.data.parallel import in_order
from trainkit.data.shards.index import FILE as SHARDS
from trainkit.data.sides import Entry
from trainkit.data.split import content_key
from trainkit.errors import DataError, nearest

Content = Literal["text", "table", "pictures"]
CONTENTS: tuple[Content, ...] = get_args(Content)

_MAX_PIXELS, _MAX_FILE_MB = 89_478_485, 256
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".conll")


class Given:
    """The examples at a path, which can be read more than once.

    Args:
        path: a file or folder of text, a table, or a folder or zip file of pictures.
        content: which of these; None: pictures where it holds any, else a table where it is one, else text.
        text: the column of a table with the text.
        label: the column with the label; None: there is none.
        group_by: the column with the group; None: there is none.
        time: the column with the time; None: there is none.

    Raises:
        DataError: for a path that does not exist or holds nothing of the kind, and columns of what is no table.
    """

    def __init__(
        self,
        path: Path,
        content: Content | None = None,
        *,
        text: str = "text",
        label: str | None = None,
        group_by: str | None = None,
        time: str | None = None,
    ) -> None:
        if not path.exists():
            raise DataError(f"{path} does not exist; give a file or folder of text, a table, or a folder of pictures")
        if (path / SHARDS).is_file():
            raise DataError(
                f"{path} holds shards, in which a run compares both sides when it starts: give what they were made of"
            )
        if content is not None and content not in CONTENTS:
            raise DataError(f"--content={content}: must be one of {', '.join(CONTENTS)}.{nearest(content, CONTENTS)}")
        self.path, self.content = path, content or _content_of(path)
        self._text, self._label, self._group_by, self._time = text, label, group_by, time
        self.unreadable: list[Unreadable] = []
        """Pictures that could not be decoded, once `entries` has ended."""
        columns = {"--label": label, "--group-by": group_by, "--time": time}
        wrong = next((option for option, column in columns.items() if column is not None), None)
        if wrong is not None and self.content != "table":
            raise DataError(f"{wrong}={columns[wrong]}: {path} is read as {self.content}, which has no columns")
        readers: dict[str, Callable[[], Callable[[], Iterator[Entry]]]] = {
            "text": self._texts,
            "table": self._rows,
            "pictures": self._pictures,
        }
        self._entries = readers[self.content]()

    def entries(self) -> Iterator[Entry]:
        """Yields the examples.

        Raises:
            DataError: naming the file and the place that cannot be read.
        """
        return self._entries()

    def _texts(self) -> Callable[[], Iterator[Entry]]:
        corpus = find_corpus(self.path, self._text)

        def read() -> Iterator[Entry]:
            return (Entry(content_key(text), name, text=text) for _, name, text in corpus.named())

        return read

    def _rows(self) -> Callable[[], Iterator[Entry]]:
        examples = Examples(text=self._text, label=self._label or "")

        def read() -> Iterator[Entry]:
            for example in examples.read(self.path):
                if self._label is not None and self._label not in example.row.values:
                    columns = example.row.values
                    raise DataError(
                        f"{example.where}: no column {self._label!r}, found {', '.join(map(repr, columns))}; set "
                        f"--label=NAME.{nearest(self._label, columns)}"
                    )
                yield example.entry(self._group_by, self._time)

        return read

    def _pictures(self) -> Callable[[], Iterator[Entry]]:
        source = find_source(self.path)
        decoder = Decoder(resolution=SIDE, fit="stretch", max_pixels=_MAX_PIXELS, max_file_mb=_MAX_FILE_MB)

        def read() -> Iterator[Entry]:
            self.unreadable = []
            for decoded in in_order(partial(decoder.decode, source), source.names()):
                if isinstance(decoded, Unreadable):
                    self.unreadable.append(decoded)
                    continue
                pixels = decoded.frames[0]
                key = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
                yield Entry(key, decoded.name, pixels=pixels)

        return read


def _content_of(path: Path) -> Content:
    if (content := content_of_shards(path)) is not None:
        return "pictures" if content == "images" else "text"
    if path.is_file():
        suffix = suffix_of(path)
        if suffix == ".zip":
            return "pictures"
        return "table" if suffix.removesuffix(".gz").removesuffix(".zst") in _TABLES else "text"
    names = (name for _, _, files in walk(path) for name in files)
    return "pictures" if any(Path(name).suffix.lower() in extensions() for name in names) else "text"
