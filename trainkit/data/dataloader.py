"""A DataLoader that is there already: what of it `runtime.batches` takes over, and what it refuses to lose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from trainkit.errors import ConfigError

_READ_AS_THEY_ARE = ("DataLoader", "StatefulDataLoader")


@dataclass(frozen=True)
class Parts:
    """order: None for every sample once an epoch, shuffled by the seed.  num_workers: None where nothing says."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    order: Any = None
    num_workers: int | None = None

    def require_all_in_order(self) -> None:
        """Raises ConfigError where a sampler chooses among the samples, as for an evaluation."""
        if self.order is not None and not isinstance(self.order, range | SequentialSampler):
            raise ConfigError(
                f"an evaluation measures every sample once, and this DataLoader's {type(self.order).__name__} chooses "
                f"among them: give torch.utils.data.Subset(loader.dataset, indices)"
            )


def parts_of(source: Any, *, collate: Any = None, order: Any = None, num_workers: int | None = None) -> Parts:
    """What batches are made of; of a DataLoader its own, where nothing else is given.

    A RandomSampler and a DistributedSampler say only that every sample comes once, shuffled or not: that is done here,
    for all ranks. Raises ConfigError for a DataLoader of which something would be lost.
    """
    if not isinstance(source, DataLoader):
        return Parts(source, collate, _plain(order, source), num_workers)
    _require_plain(source)
    dataset = source.dataset
    if order is None and not isinstance(dataset, IterableDataset):
        batches = source.batch_sampler
        order = batches.sampler if type(batches) is BatchSampler else batches
    return Parts(
        dataset,
        collate or (source.collate_fn if source.collate_fn is not default_collate else None),
        _plain(order, dataset),
        source.num_workers if num_workers is None else num_workers,
    )


def _require_plain(loader: "DataLoader[Any]") -> None:
    lost = None
    if type(loader).__name__ not in _READ_AS_THEY_ARE:
        lost = f"its class {type(loader).__name__} may change the batches"
    elif loader.worker_init_fn is not None:
        lost = "its worker_init_fn is not called: samples are seeded by their positions"
    elif loader.batch_sampler is None:
        lost = "with batch_size=None, its data set makes the batches"
    if lost is not None:
        raise ConfigError(
            f"this DataLoader cannot be taken over: {lost}; give runtime.batches(loader.dataset, batch_size=..., "
            f"collate=..., order=...) what it should have of it"
        )


def _plain(order: Any, dataset: Any) -> Any:
    if type(order) is RandomSampler and not order.replacement and len(order) == len(dataset):
        return None
    if type(order) is DistributedSampler and len(order.dataset) == len(dataset):  # type: ignore[arg-type]
        return None if order.shuffle else range(len(dataset))
    return order
