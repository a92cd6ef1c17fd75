"""TextFiles: documents as numbered .jsonl files, each with its origin."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from trainkit.data.curate.documents import Document


class TextFiles:
    """Writes rows {"text": ..., "source": the file that it was in, "document": its number there, from 1}.

    Attributes: `written`, of each file its name, the documents and the bytes before compression.

    Args:
        directory: that exists.
        compress: whether by Zstandard, as `.jsonl.zst`.
        shard_bytes: from which on the next file is begun.
    """

    def __init__(self, directory: Path, *, compress: bool, shard_bytes: int) -> None:
        self._directory, self._compress, self._shard_bytes = directory, compress, shard_bytes
        self._file: Any = None
        self.written: list[dict[str, Any]] = []

    def __enter__(self) -> "TextFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def add(self, document: Document) -> None:
        """Writes a document."""
        row = {"text": document.text, "source": document.file, "document": document.place}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        if self._file is None or self.written[-1]["bytes"] + len(line) > self._shard_bytes:
            self._close()
            self._open()
        self._file.write(line)
        self.written[-1]["documents"] += 1
        self.written[-1]["bytes"] += len(line)

    def _open(self) -> None:
        import pyarrow

        name = f"text-{len(self.written):05d}.jsonl" + (".zst" if self._compress else "")
        # Not by its suffix alone: a folder may be called so, too.
        kind = "zstd" if self._compress else None
        self._file = pyarrow.output_stream(str(self._directory / name), compression=kind)
        self.written.append({"name": name, "documents": 0, "bytes": 0})

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
