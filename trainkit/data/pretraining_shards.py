"""PretrainingShard: an HDF5 file of NVIDIA's BERT example, and the records that it is converted to."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cached
from trainkit.data.files import state_of
from trainkit.errors import DataError

SUFFIXES = (".hdf5", ".h5")
RECORDS = "records.bin"
_SUMMARY = "summary.json"
_FORMAT = 1  # of the cache: increase it whenever the same file would give other records
_NAMES = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
_READ_AT_ONCE = 1 << 13  # samples, about: whole chunks of the file are read, each is decompressed once


@dataclass(frozen=True)
class Shape:
    """Sizes of a shard.

    Args:
        num_samples: in the file.
        sequence_length: tokens in a sample, padding included.
        num_slots: masked tokens in a sample at most.
    """

    num_samples: int
    sequence_length: int
    num_slots: int


@dataclass(frozen=True)
class Records:
    """A shard as converted: one record for each sample, in a file that can be memory-mapped.

    h5py stores narrow chunks, so that a single compressed sample takes milliseconds to read.

    Args:
        directory: in the cache.
        shape: of the shard.
        largest: token number.
        first: token of the first sample.
        is_padded: whether some sample is shorter than the others.
        content: hash of the records.
    """

    directory: Path
    shape: Shape
    largest: int
    first: int
    is_padded: bool
    content: str


def record_dtype(shape: Shape, token: np.dtype[Any]) -> np.dtype[Any]:
    """Returns the dtype of a record.

    Fields: `tokens` before masking, the number of those that are no padding, the place of the first one of the second
    sentence, the label of the next sentence; and the masking: the number of masked tokens, where they are, and what the
    model sees there.

    Args:
        shape: of the shard.
        token: dtype of a token number.
    """
    slots = (shape.num_slots,)
    return np.dtype(
        [
            ("tokens", token, (shape.sequence_length,)),
            ("length", np.uint16),
            ("second", np.uint16),
            ("next", np.int8),
            ("num_masked", np.uint16),
            ("positions", np.uint16, slots),
            ("seen", token, slots),
        ]
    )


@dataclass(frozen=True)
class PretrainingShard:
    """A file of NVIDIA's create_pretraining_data.py.

    Args:
        path: of the file.
        cache: the directory that its records are kept in.
        token: dtype of a token number in them.
    """

    path: Path
    cache: Path
    token: np.dtype[Any]

    def shape(self) -> Shape:
        """Returns its sizes, without reading samples.

        Raises:
            DataError: for a file that is not of this form.
        """
        if (self._directory / _SUMMARY).is_file():
            return self.records().shape
        with self._open() as file:
            return _shape(self.path, file)

    def records(self) -> Records:
        """Returns its records, which are made if they are not in the cache.

        Raises:
            DataError: for a file that is not of this form, or cannot be read to its end.
        """
        cached(self.cache, self._directory.name, self._convert)
        summary = json.loads((self._directory / _SUMMARY).read_text())
        return Records(self._directory, Shape(**summary.pop("shape")), **summary)

    @property
    def _directory(self) -> Path:
        state = hashlib.blake2b(f"{_FORMAT} {self.token} {state_of([self.path])}".encode(), digest_size=16)
        return self.cache / f"pretraining-{state.hexdigest()}"

    def _convert(self, directory: Path) -> None:
        content, shape = hashlib.blake2b(digest_size=16), self.shape()
        largest, first, is_padded = 0, -1, False
        with (directory / RECORDS).open("wb") as target:
            for arrays in self._blocks():
                records, block_largest = _records(self.path, arrays, record_dtype(shape, self.token))
                first = int(arrays["input_ids"][0, 0]) if first < 0 else first
                largest = max(largest, block_largest)
                is_padded |= bool((records["length"] < shape.sequence_length).any())
                written = records.tobytes()
                content.update(written)
                target.write(written)
        summary = {
            "shape": asdict(shape),
            "largest": largest,
            "first": first,
            "is_padded": is_padded,
            "content": content.hexdigest(),
        }
        (directory / _SUMMARY).write_text(json.dumps(summary) + "\n")

    def _blocks(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the arrays of some samples at a time, by name."""
        with self._open() as file:
            chunk = max((file[name].chunks or (1,))[0] for name in _NAMES)
            rows = -(-_READ_AT_ONCE // chunk) * chunk
            for start in range(0, len(file["input_ids"]), rows):
                yield {name: file[name][start : start + rows] for name in _NAMES}

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import h5py
        except ImportError as error:
            raise DataError(f"{self.path} is read by h5py, which is missing: pip install 'trainkit[hdf5]'") from error
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except (OSError, RuntimeError, KeyError) as error:  # h5py's own of damaged files
            if getattr(error, "errno", None) is not None:  # of the system
                raise
            raise DataError(
                f"{self.path} cannot be read as HDF5, or is incomplete ({str(error).splitlines()[0]}): copy or make it "
                f"again"
            ) from error


def _shape(path: Path, file: Any) -> Shape:
    for name in _NAMES:
        _require(path, name in file, f"no dataset {name!r}, found {', '.join(file) or 'nothing'}")
        dtype = file[name].dtype
        _require(path, dtype.kind in "iu", f"{name} is of dtype {dtype}, and must be of integers in rows of one length")
    has_rows = len(file["input_ids"].shape) == len(file["masked_lm_ids"].shape) == 2
    _require(path, has_rows, "input_ids and masked_lm_ids must have a row for each sample")
    (num_samples, length), num_slots = file["input_ids"].shape, file["masked_lm_ids"].shape[1]
    expected = dict.fromkeys(_NAMES[:3], (num_samples, length)) | dict.fromkeys(_NAMES[3:5], (num_samples, num_slots))
    for name, sizes in {**expected, "next_sentence_labels": (num_samples,)}.items():
        shape = file[name].shape
        _require(path, shape == sizes, f"{name} has the shape {[*shape]}, where input_ids need {[*sizes]}")
    return Shape(num_samples, length, num_slots)


def _records(path: Path, arrays: dict[str, NDArray[Any]], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """The records of some samples, and the largest token number."""
    tokens, positions, originals = (arrays[name] for name in ("input_ids", "masked_lm_positions", "masked_lm_ids"))
    columns = np.arange(tokens.shape[1])
    is_attended, is_second = arrays["input_mask"] != 0, arrays["segment_ids"] != 0
    lengths = is_attended.sum(1)
    seconds = lengths - is_second.sum(1)
    # Unused slots are 0 at the end: position 0 is [CLS], which is never masked.
    is_used = np.cumprod(positions != 0, axis=1).astype(bool)
    _require(path, (lengths > 0).all(), "input_mask is zero in a whole sample")
    _require(path, (is_attended == (columns < lengths[:, None])).all(), "input_mask has ones after a zero")
    in_second = (columns >= seconds[:, None]) & is_attended
    _require(path, (is_second == in_second).all(), "segment_ids are not zeros, then ones up to the padding")
    in_sample = (positions > 0) & (positions < lengths[:, None])
    _require(path, (in_sample | ~is_used).all(), "masked_lm_positions are outside their sample")
    lowest = min(int(tokens.min()), int(originals.min()))
    _require(path, lowest >= 0, "token numbers are below 0")
    _require(path, np.isin(arrays["next_sentence_labels"], (0, 1)).all(), "next_sentence_labels are not 0 or 1")

    places = np.where(is_used, positions, 0)
    seen = np.take_along_axis(tokens, places, 1)
    restored = tokens.copy()
    np.put_along_axis(restored, places, np.where(is_used, originals, tokens[:, :1]), 1)
    records = np.zeros(len(tokens), dtype)
    records["tokens"], records["length"], records["second"] = restored, lengths, seconds
    records["next"], records["num_masked"] = arrays["next_sentence_labels"], is_used.sum(1)
    records["positions"], records["seen"] = places, seen
    return records, max(int(tokens.max()), int(restored.max()))


def _require(path: Path, holds: Any, what: str) -> None:
    if not holds:
        raise DataError(f"{path}: {what}; data=nvidia_bert takes files of NVIDIA's create_pretraining_data.py")
