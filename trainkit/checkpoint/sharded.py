"""Sharded reading and writing with torch.distributed.checkpoint: a safetensors file per rank, and a JSON manifest.

Its planners take every tensor as flat: with every strategy, a rank holds a contiguous range of it.
"""

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors import safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from trainkit.checkpoint.encrypted import EncryptedTensors, write_encrypted
from trainkit.distributed.shard import DTYPES, Shard
from trainkit.encryption import Recipient, identities_in_use

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# A single process has no process group, on purpose.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)

Finish = Callable[[dict[str, Any]], None]


def write(
    temporary: Path,
    shards: Mapping[str, Shard],
    *,
    group: dist.ProcessGroup | None,
    rank: int,
    finish: Finish,
    recipients: Sequence[Recipient] = (),
) -> None:
    """Writes this rank's shards to a file of its own, flushed to disk. Collective: every rank must call.

    Args:
        temporary: the directory, made by rank 0.
        shards: flat, in host memory, by name.
        group: a gloo group of all ranks; None for one process.
        rank: of this process.
        finish: called on rank 0 once all ranks have written, with the tables `tensors` and `files` of the manifest,
            and `seal` where they are encrypted.
        recipients: for whom the files are encrypted; empty: they are not.

    Raises:
        CheckpointException: of torch.distributed.checkpoint, on all ranks.
    """
    shapes = {name: shard.shape for name, shard in shards.items()}
    dcp.save(
        dict(shards),
        storage_writer=_Writer(temporary, rank, shapes, finish, recipients),
        planner=_SavePlanner(),
        process_group=group,
        no_dist=group is None,
    )


def read(
    directory: Path, manifest: Mapping[str, Any], into: Mapping[str, Shard], group: dist.ProcessGroup | None
) -> None:
    """Reads shards of a checkpoint that any number of ranks have written. Collective over `group`.

    Args:
        directory: of the checkpoint.
        manifest: of the checkpoint.
        into: the shards to fill, by name.
        group: of all ranks; None for one process.

    Raises:
        CheckpointException: of torch.distributed.checkpoint, on all ranks.
    """
    # Ranges are in row-major order; a tensor of another memory format is filled from a copy.
    rows = {
        name: shard
        if shard.local.is_contiguous()
        else shard.like(torch.empty(shard.local.shape, dtype=shard.local.dtype, device=shard.local.device))
        for name, shard in into.items()
    }
    dcp.load(
        dict(rows),
        storage_reader=_Reader(directory, manifest),
        planner=_LoadPlanner(),
        process_group=group,
        no_dist=group is None,
    )
    with torch.no_grad():
        for name, shard in rows.items():
            if shard is not into[name]:
                into[name].local.copy_(shard.local)


# -- plans -------------------------------------------------------------------------------------------------------------


def _range_of(shard: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size([shard.start]), sizes=torch.Size([shard.local.numel()]))


class _SavePlanner(dcp.DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        return SavePlan(
            [
                WriteItem(
                    index=MetadataIndex(name, torch.Size([shard.start])),
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=_range_of(shard),
                        properties=TensorProperties(dtype=shard.local.dtype),
                        size=torch.Size([shard.shape.numel()]),
                    ),
                )
                for name, shard in self.state_dict.items()
                if shard.local.numel()
            ]
        )

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        local: Tensor = self.state_dict[index.fqn].local
        return local.flatten()


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, shard in self.state_dict.items():
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata)
            if shard.local.numel():
                items += create_read_items_for_chunk_list(name, saved, [_range_of(shard)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        local: Tensor = self.state_dict[index.fqn].local
        return local.view(-1)


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WrittenRange:
    """Where a range of a tensor was written."""

    file: str
    dtype: str
    file_facts: Mapping[str, Any]


class _Writer(StorageWriter):
    def __init__(
        self,
        directory: Path,
        rank: int,
        shapes: Mapping[str, torch.Size],
        finish: Finish,
        recipients: Sequence[Recipient],
    ) -> None:
        self.directory, self.rank, self.shapes, self.on_finish = directory, rank, shapes, finish
        self.recipients = recipients
        self.seal: str | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            shutil.rmtree(self.directory, ignore_errors=True)  # of a save that was killed
            self.directory.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if not self.recipients:
            return plans
        # Encrypted with the tensors, and with the manifest: files of two checkpoints, or of two ranks, cannot be mixed.
        self.seal = secrets.token_hex(16)
        return [replace(plan, storage_data=self.seal) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            name = f"rank_{self.rank:05d}.safetensors{'.age' if self.recipients else ''}"
            metadata = {"seal": plan.storage_data, "file": name} if self.recipients else None
            path = self.directory / name
            facts = write_safetensors(path, tensors, metadata, self.recipients)  # type: ignore[arg-type]
            for item in plan.items:
                tensor = tensors[item.index.fqn]
                assert isinstance(tensor, Tensor)
                written = _WrittenRange(name, _NAMES[tensor.dtype], facts)
                results.append(WriteResult(item.index, tensor.numel() * tensor.element_size(), written))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, Any] = {}
        files: dict[str, Any] = {}
        for result in sorted((r for by_rank in results for r in by_rank), key=lambda r: (r.index.fqn, r.index.offset)):
            written: _WrittenRange = result.storage_data
            name, dtype = result.index.fqn, written.dtype
            tensors.setdefault(name, {"dtype": dtype, "shape": list(self.shapes[name]), "parts": []})
            assert result.index.offset is not None
            length = result.size_in_bytes // DTYPES[dtype].itemsize
            tensors[name]["parts"].append([result.index.offset[0], length, written.file])
            files[written.file] = dict(written.file_facts)
        for name, shape in self.shapes.items():
            if not shape.numel():
                tensors[name] = {"dtype": "F32", "shape": list(shape), "parts": []}
        self.on_finish({"tensors": tensors, "files": files, **({"seal": self.seal} if self.seal else {})})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _Reader(StorageReader):
    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one load to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors = {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=DTYPES[entry["dtype"]]),
                size=torch.Size([torch.Size(entry["shape"]).numel()]),
                chunks=[
                    ChunkStorageMetadata(offsets=torch.Size([start]), sizes=torch.Size([length]))
                    for start, length, _ in entry["parts"]
                ],
            )
            for name, entry in self.manifest["tensors"].items()
        }
        files = {
            MetadataIndex(name, torch.Size([start])): file
            for name, entry in self.manifest["tensors"].items()
            for start, _, file in entry["parts"]
        }
        return Metadata(state_dict_metadata=tensors, storage_data=files)  # type: ignore[arg-type]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.files = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.files[item.storage_index], []).append(item)
        with torch.no_grad():
            for name, items in by_file.items():
                with self._opened(name) as file:
                    for item in items:
                        start, length = item.storage_offsets[0], item.lengths[0]
                        target = planner.resolve_tensor(item)
                        if isinstance(file, EncryptedTensors):
                            file.read_into(item.storage_index.fqn, start, target)
                        else:
                            target.copy_(file.get_slice(item.storage_index.fqn)[start : start + length])
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _opened(self, name: str) -> Any:
        if "encrypted_for" in self.manifest:
            return EncryptedTensors(self.directory / name, identities_in_use(), seal=self.manifest["seal"])
        return safe_open(self.directory / name, framework="pt")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    recipients: Sequence[Recipient] = (),
) -> dict[str, Any]:
    """Writes a safetensors file and flushes it to disk.

    The library's `save_file` is not used: it copies all bytes once more, and the checksum would have to read them
    again.

    Args:
        path: the file.
        tensors: by name, on the CPU.
        metadata: of the file's header.
        recipients: for whom it is encrypted; empty: it is not.

    Returns:
        Its `num_bytes`, and its checksum `xxh3_128` in hexadecimal.

    Raises:
        OSError: where it cannot be written.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    chunks: list[Any] = [len(header).to_bytes(8, "little"), header]
    chunks += [t.contiguous().flatten().view(torch.uint8).numpy().data for t in tensors.values() if t.numel()]
    if recipients:
        return write_encrypted(path, chunks, recipients)
    # Writing and hashing both release the interpreter's lock, so they run in parallel.
    with ThreadPoolExecutor(1) as executor:
        checksum = executor.submit(_sum_of, chunks)
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return {"num_bytes": 8 + len(header) + end, "xxh3_128": checksum.result()}


def _sum_of(chunks: Sequence[Any]) -> str:
    total = xxhash.xxh3_128()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def reason_of(error: BaseException) -> str:
    """The cause of an error in one line; torch.distributed.checkpoint's message has a traceback of each rank.

    Args:
        error: of a read or a write.
    """
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = min(error.failures.items())
        return f"rank {rank}: {first}"
    return str(error)
