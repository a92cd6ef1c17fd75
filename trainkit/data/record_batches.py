"""Record batches: parquet files and Arrow streams, which Hugging Face datasets writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.errors import DataError

_ROWS = 1024


@dataclass(frozen=True)
class RecordBatches:
    """The content of a file, as pyarrow has it.

    Args:
        path: of the file.
        schema: of its columns.
        source: a ParquetFile, or a reader of a stream.
    """

    path: Path
    schema: Any
    source: Any

    @classmethod
    def open(cls, path: Path) -> "RecordBatches":
        """Opens a .parquet or .arrow file, memory-mapped.

        Raises:
            DataError: for a file that is not of the format of its suffix.
        """
        import pyarrow
        import pyarrow.parquet

        with _readable(path):
            if path.suffix.lower() == ".parquet":
                file = pyarrow.parquet.ParquetFile(path, memory_map=True)
                return cls(path, file.schema_arrow, file)
            reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
            return cls(path, reader.schema, reader)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yields the record batches in their order, once, of a parquet file with some columns only.

        Raises:
            DataError: where the file ends too early.
        """
        with _readable(self.path):
            if self.path.suffix.lower() == ".parquet":
                yield from self.source.iter_batches(batch_size=_ROWS, columns=columns)
            else:
                yield from self.source


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    name = "a parquet file" if path.suffix.lower() == ".parquet" else "an Arrow stream"
    try:
        yield
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
            raise
        said = " ".join(str(error).split())
        raise DataError(f"{path} is not {name}, or not a complete one ({said}); write it again or remove it") from None
