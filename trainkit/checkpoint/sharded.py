"""What torch.distributed.checkpoint writes and reads here: each rank its own parts, in safetensors, by a JSON manifest.

Its planners see every tensor as flat: whatever the strategy, a rank holds a range of it.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

from trainkit.distributed.shard import DTYPES, Shard

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# One process alone is meant so.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)

Finish = Callable[[dict[str, Any], dict[str, Any]], None]


def write(
    temporary: Path, parts: Mapping[str, Shard], *, group: dist.ProcessGroup | None, rank: int, finish: Finish
) -> None:
    """Writes what this rank is to write of all tensors to a file of its own in `temporary`, flushed to disk.

    Rank 0 makes the directory, and calls `finish(tensors, files)`, the two tables of a manifest, once all have written.
    parts: flat, in host memory.  group: a gloo group of all ranks; None for one process. Collective: every rank calls.
    """
    dcp.save(
        dict(parts),
        storage_writer=_Writer(temporary, rank, {name: part.shape for name, part in parts.items()}, finish),
        planner=_SavePlanner(),
        process_group=group,
        no_dist=group is None,
    )


def read(
    directory: Path, manifest: Mapping[str, Any], into: Mapping[str, Shard], group: dist.ProcessGroup | None
) -> None:
    """Fills `into` from the ranges that any number of ranks have written. Collective over `group`."""
    # Ranges are of row-major order; a tensor of another memory format takes them from a copy.
    rows = {
        name: p
        if p.local.is_contiguous()
        else p.like(torch.empty(p.local.shape, dtype=p.local.dtype, device=p.local.device))
        for name, p in into.items()
    }
    dcp.load(
        dict(rows),
        storage_reader=_Reader(directory, manifest),
        planner=_LoadPlanner(),
        process_group=group,
        no_dist=group is None,
    )
    with torch.no_grad():
        for name, part in rows.items():
            if part is not into[name]:
                into[name].local.copy_(part.local)


# -- plans -------------------------------------------------------------------------------------------------------------


def _range_of(part: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size([part.start]), sizes=torch.Size([part.local.numel()]))


class _SavePlanner(dcp.DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        return SavePlan(
            [
                WriteItem(
                    index=MetadataIndex(name, torch.Size([part.start])),
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=_range_of(part),
                        properties=TensorProperties(dtype=part.local.dtype),
                        size=torch.Size([part.shape.numel()]),
                    ),
                )
                for name, part in self.state_dict.items()
                if part.local.numel()
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
        for name, part in self.state_dict.items():
            saved = self.metadata.state_dict_metadata[name]
            assert isinstance(saved, TensorStorageMetadata)
            if part.local.numel():
                items += create_read_items_for_chunk_list(name, saved, [_range_of(part)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        local: Tensor = self.state_dict[index.fqn].local
        return local.view(-1)


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a range of a tensor was written."""

    file: str
    dtype: str
    file_facts: Mapping[str, Any]


class _Writer(StorageWriter):
    def __init__(self, directory: Path, rank: int, shapes: Mapping[str, torch.Size], finish: Finish) -> None:
        self.directory, self.rank, self.shapes, self.on_finish = directory, rank, shapes, finish

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one save to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            shutil.rmtree(self.directory, ignore_errors=True)  # of a save that was killed
            self.directory.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        if plan.items:
            tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            name = f"rank_{self.rank:05d}.safetensors"
            facts = write_safetensors(self.directory / name, tensors)  # type: ignore[arg-type]
            for item in plan.items:
                tensor = tensors[item.index.fqn]
                assert isinstance(tensor, Tensor)
                place = _Place(name, _NAMES[tensor.dtype], facts)
                results.append(WriteResult(item.index, tensor.numel() * tensor.element_size(), place))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, Any] = {}
        files: dict[str, Any] = {}
        for result in sorted((r for by_rank in results for r in by_rank), key=lambda r: (r.index.fqn, r.index.offset)):
            place: _Place = result.storage_data
            name, dtype = result.index.fqn, place.dtype
            tensors.setdefault(name, {"dtype": dtype, "shape": list(self.shapes[name]), "parts": []})
            assert result.index.offset is not None
            length = result.size_in_bytes // DTYPES[dtype].itemsize
            tensors[name]["parts"].append([result.index.offset[0], length, place.file])
            files[place.file] = dict(place.file_facts)
        for name, shape in self.shapes.items():
            if not shape.numel():
                tensors[name] = {"dtype": "F32", "shape": list(shape), "parts": []}
        self.on_finish(tensors, files)

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
        places = {
            MetadataIndex(name, torch.Size([start])): file
            for name, entry in self.manifest["tensors"].items()
            for start, _, file in entry["parts"]
        }
        return Metadata(state_dict_metadata=tensors, storage_data=places)  # type: ignore[arg-type]

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.places[item.storage_index], []).append(item)
        with torch.no_grad():
            for name, items in by_file.items():
                with safe_open(self.directory / name, framework="pt") as file:
                    for item in items:
                        start, length = item.storage_offsets[0], item.lengths[0]
                        part = file.get_slice(item.storage_index.fqn)[start : start + length]
                        planner.resolve_tensor(item).copy_(part)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes a safetensors file and flushes it to disk; its `num_bytes` and `xxh3_128`.

    Not by the library's `save_file`: that copies all bytes once more, and the sum would need to read them again.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    pieces: list[Any] = [len(header).to_bytes(8, "little"), header]
    pieces += [t.contiguous().flatten().view(torch.uint8).numpy().data for t in tensors.values() if t.numel()]
    # Both let go of the interpreter's lock, so that the sum costs a core and little time.
    with ThreadPoolExecutor(1) as other:
        summing = other.submit(_sum_of, pieces)
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return {"num_bytes": 8 + len(header) + end, "xxh3_128": summing.result()}


def _sum_of(pieces: Sequence[Any]) -> str:
    total = xxhash.xxh3_128()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: torch.distributed.checkpoint tells it with a traceback for each rank."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = min(error.failures.items())
        return f"rank {rank}: {first}"
    return str(error)
