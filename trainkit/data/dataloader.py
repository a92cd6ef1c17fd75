"""BatchSource: a data set with its collate function, order and number of workers, also as taken from a DataLoader."""

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

_SUPPORTED_CLASSES = ("DataLoader", "StatefulDataLoader")


@dataclass(frozen=True)
class BatchSource:
    """The data set that batches are taken from, and how.

    Args:
        dataset: columns, a map-style or an iterable data set.
        collate: makes a batch of a list of samples; None: torch's default_collate.
        order: the order of each epoch; None: every sample once per epoch, shuffled by the seed.
        num_workers: processes that fetch data; None: not given.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None
    order: Any = None
    num_workers: int | None = None

    def require_all_in_order(self) -> None:
        """Checks that no sampler chooses among the samples, as an evaluation needs.

        Raises:
            ConfigError: naming the sampler.
        """
        if self.order is not None and not isinstance(self.order, range | SequentialSampler):
            raise ConfigError(
                f"an evaluation measures every sample once, and this DataLoader's {type(self.order).__name__} chooses "
                f"among them: give torch.utils.data.Subset(loader.dataset, indices)"
            )


def batch_source(source: Any, *, collate: Any = None, order: Any = None, num_workers: int | None = None) -> BatchSource:
    """Makes a BatchSource; a DataLoader provides what is not given otherwise.

    A RandomSampler and a DistributedSampler only determine that every sample comes once, shuffled or not: trainkit does
    that itself, for all ranks.

    Args:
        source: columns, a data set or a DataLoader.
        collate: makes a batch of a list of samples.
        order: a torch Sampler, a BatchSampler or a function (seed, epoch) -> indices.
        num_workers: processes that fetch data.

    Returns:
        The data set and its settings.

    Raises:
        ConfigError: for a DataLoader with a setting that cannot be taken over.
    """
    if not isinstance(source, DataLoader):
        return BatchSource(source, collate, _plain(order, source), num_workers)
    _require_plain(source)
    dataset = source.dataset
    if order is None and not isinstance(dataset, IterableDataset):
        batches = source.batch_sampler
        order = batches.sampler if type(batches) is BatchSampler else batches
    return BatchSource(
        dataset,
        collate or (source.collate_fn if source.collate_fn is not default_collate else None),
        _plain(order, dataset),
        source.num_workers if num_workers is None else num_workers,
    )


def _require_plain(loader: "DataLoader[Any]") -> None:
    lost = None
    if type(loader).__name__ not in _SUPPORTED_CLASSES:
        lost = f"its class {type(loader).__name__} may change the batches"
    elif loader.worker_init_fn is not None:
        lost = "its worker_init_fn is not called: samples are seeded by their positions"
    elif loader.batch_sampler is None:
        lost = "with batch_size=None, its data set makes the batches"
    if lost is not None:
        raise ConfigError(
            f"this DataLoader cannot be taken over: {lost}; use runtime.batches(loader.dataset, batch_size=..., "
            f"collate=..., order=...) with the settings that should be kept"
        )


def _plain(order: Any, dataset: Any) -> Any:
    if type(order) is RandomSampler and not order.replacement and len(order) == len(dataset):
        return None
    if type(order) is DistributedSampler and len(order.dataset) == len(dataset):  # type: ignore[arg-type]
        return None if order.shuffle else range(len(dataset))
    return order
