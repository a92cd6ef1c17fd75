"""Encrypted: the files of a checkpoint for its recipients, read straight into tensors."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from trainkit.distributed.shard import DTYPES
from trainkit.encryption import AgeReader, AgeWriter, Identity, Recipient
from trainkit.errors import CheckpointError
from trainkit.json_text import parse_json

_MAX_HEADER_BYTES = 100_000_000
"""As safetensors itself allows."""
_PIECE_BYTES = 16 << 20


def write_encrypted(path: Path, chunks: Iterable[Any], recipients: Sequence[Recipient]) -> dict[str, Any]:
    """Writes a file, and flushes it to disk.

    Args:
        path: the file.
        chunks: buffers, one after the other.
        recipients: who can read it.

    Returns:
        Its `num_bytes`, and its checksum `xxh3_128` in hexadecimal.

    Raises:
        OSError: where it cannot be written.
    """
    total = xxhash.xxh3_128()
    with path.open("wb", buffering=0) as file:

        def write(block: Any) -> None:
            total.update(block)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]

        with AgeWriter(write, recipients) as sealed:
            for chunk in chunks:
                sealed.write(chunk)
        os.fsync(file.fileno())
        return {"num_bytes": file.tell(), "xxh3_128": total.hexdigest()}


class EncryptedTensors:
    """The tensors of an encrypted safetensors file. Close it, or use it as a context manager.

    Args:
        path: the file.
        identities: of which one must be of a recipient.
        seal: of the checkpoint that it must be of.

    Raises:
        CheckpointError: where it cannot be decrypted, or is another file than its name says.
    """

    def __init__(self, path: Path, identities: Sequence[Identity], *, seal: str) -> None:
        self.path, self._file = path, AgeReader(path, identities)
        try:
            self._entries, self._start = self._header()
            metadata = self._entries.pop("__metadata__", None)
            if metadata != {"seal": seal, "file": path.name}:
                raise CheckpointError(f"{path} is a file of another checkpoint or rank: the checkpoint was changed")
        except BaseException:
            self._file.close()
            raise

    def read_into(self, name: str, start: int, target: Tensor) -> None:
        """Fills a tensor with elements of one that is stored, flat.

        Args:
            name: of the stored tensor.
            start: the first element.
            target: flat, on any device.

        Raises:
            CheckpointError: the file was changed, or has no such elements.
        """
        entry = self._entries.get(name)
        dtype, (first, end) = self._place_of(name, entry)
        first += start * dtype.itemsize
        if first + target.numel() * dtype.itemsize > end:
            raise CheckpointError(f"{self.path} has fewer elements of {name} than the manifest says")
        if target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
            self._fill(first, target)
            return
        for piece in target.split(_PIECE_BYTES // dtype.itemsize):
            own = torch.empty(piece.shape, dtype=dtype)
            self._fill(first, own)
            piece.copy_(own)
            first += own.numel() * dtype.itemsize

    def authenticate(self) -> None:
        """Verifies every byte. Raises CheckpointError where one was changed."""
        self._file.authenticate()

    def __enter__(self) -> "EncryptedTensors":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def _fill(self, first: int, target: Tensor) -> None:
        if target.numel():
            self._file.read_into(self._start + first, target.detach().view(torch.uint8).numpy().data)

    def _header(self) -> tuple[dict[str, Any], int]:
        """The header of the safetensors file, and where its tensors begin."""
        try:
            num_bytes = int.from_bytes(self._file.read(0, 8), "little")
            if not 0 < num_bytes <= _MAX_HEADER_BYTES:
                raise ValueError
            entries = parse_json(self._file.read(8, num_bytes))
            if not isinstance(entries, dict):
                raise ValueError
        except ValueError:
            raise CheckpointError(f"{self.path} is no safetensors file") from None
        return entries, 8 + num_bytes

    def _place_of(self, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, int]]:
        """The dtype of a stored tensor, and its bytes."""
        try:
            (first, end), dtype = entry["data_offsets"], DTYPES[entry["dtype"]]
            if not 0 <= first <= end <= self._file.num_bytes - self._start:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{self.path} does not hold {name} as its manifest says") from None
        return dtype, (first, end)
