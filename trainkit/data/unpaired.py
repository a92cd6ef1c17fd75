"""UnpairedImages: two sets of images, of which no image belongs to another, for translation between them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trainkit.data.datasets import Datasets
from trainkit.data.fingerprint import fingerprint
from trainkit.data.glyphs import Glyphs, Style
from trainkit.data.image_sources import ImageSource
from trainkit.data.images import FEW, REMARKS, Images
from trainkit.data.order import Order
from trainkit.data.progress import remark
from trainkit.data.sides import Entry, LeftOut, Sides
from trainkit.errors import ConfigError, DataError
from trainkit.random import key_of

Side = Literal["first", "second"]
SIDES: tuple[Side, ...] = ("first", "second")
T = TypeVar("T")

_KEYS = re.compile(rf"\bdata\.({'|'.join(key.name for key in fields(Images))})\b")


class Unpaired(Dataset[dict[str, Any]]):
    """All pairs of a sample of one data set with a sample of another: `len` is the product of their lengths.

    Sample i * len(second) + j is {"first": first[i], "second": second[j]}. `order` passes through both sets, each in
    epochs of its own: `runtime.batches(data, order=data.order)`.

    Args:
        first: a map-style data set.
        second: another.

    Raises:
        DataError: where one is empty.
    """

    def __init__(self, first: Any, second: Any) -> None:
        for name, side in (("first", first), ("second", second)):
            if not len(side):
                raise DataError(f"the {name} of two data sets is empty: nothing to train on; check data.{name}")
        self.first, self.second = first, second
        self._orders: dict[int, tuple[Order, Order]] = {}

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    @property
    def epoch_length(self) -> int:
        """Pairs in which every sample of the larger set occurs once."""
        return max(len(self.first), len(self.second))

    @property
    def fingerprint(self) -> str:
        """Hash of both sets."""
        return f"unpaired {fingerprint(self.first)} {fingerprint(self.second)}"

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Computes the pairs of an epoch, of `epoch_length` pairs.

        Both sets are shuffled apart, also where they have the same length: otherwise the same samples would meet in
        each epoch, and in sets that are sorted alike these would be pairs.

        Args:
            seed: of the run.
            epoch: its number, from 0.

        Returns:
            int64 [epoch_length], indices of this data set.
        """
        if seed not in self._orders:
            seeds = (key_of(seed, "order of", name) for name in ("first", "second"))
            self._orders[seed] = (Order(len(self.first), next(seeds)), Order(len(self.second), next(seeds)))
        positions = np.arange(epoch * self.epoch_length, (epoch + 1) * self.epoch_length)
        of_first, of_second = (order.indices(positions) for order in self._orders[seed])
        return of_first * len(self.second) + of_second

    def __getitem__(self, index: int) -> dict[str, Any]:
        first, second = divmod(index, len(self.second))
        return {"first": self.first[first], "second": self.second[second]}


class SideBySide(Dataset[dict[str, Any]]):
    """Sample i of one data set with sample i of another, as many as the smaller one has.

    Args:
        first: a map-style data set.
        second: another.
    """

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return min(len(self.first), len(self.second))

    @property
    def fingerprint(self) -> str:
        """Hash of both sets."""
        return f"side by side {fingerprint(self.first)} {fingerprint(self.second)}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"first": self.first[index], "second": self.second[index]}


@dataclass(frozen=True, kw_only=True)
class _Letters(Images):
    """The built-in letters and digits, in one style."""

    style: Style = "filled"

    def source(self) -> ImageSource:
        """Returns what draws them."""
        return Glyphs(self.resolution, self.style)


@dataclass(frozen=True, kw_only=True)
class UnpairedImages:
    """A specification of two sets of images; `load()` makes data sets of pairs of them.

    Args:
        first: a folder or zip file of images, as `Images.path`; None for both: the built-in letters and digits, filled
            and outlined, which need no download.
        second: the other one.
        images: what else decides how both are read; its `path` is not used.

    Raises:
        DataError: as `Images` does, and where only one of the two is given.
    """

    first: Path | None = None
    second: Path | None = None
    images: Images = field(default_factory=Images)

    def __post_init__(self) -> None:
        if self.images.path is not None:
            raise ConfigError(
                f"data.images.path={self.images.path}: there are two sets; set data.first and data.second"
            )
        for name, value in (("augment", self.images.augment), ("horizontal_flips", self.images.horizontal_flips)):
            if value not in ("none", False):
                raise ConfigError(f"data.images.{name}={value}: pairs of sets are not augmented; remove it")
        if self.images.shuffle != "global":
            raise ConfigError(
                f"data.images.shuffle={self.images.shuffle}: each set has an order of its own; set "
                f"data.images.shuffle=global"
            )
        given: dict[Side, Path | None] = {"first": self.first, "second": self.second}
        if len([path for path in given.values() if path is None]) == 1:
            shown = ", ".join(f"data.{side}={path or 'null'}" for side, path in given.items())
            raise DataError(f"{shown}: give both, or neither for the built-in letters")
        for side in given:
            self._of(side)

    def load(self, progress: bool = True) -> Datasets:
        """Loads both sets: `Unpaired` to train on, and the held-out images `SideBySide`.

        Args:
            progress: whether to show progress bars.

        Returns:
            The data sets.

        Raises:
            DataError: as `Images.load`.
        """
        first, second = (self._load(side, progress) for side in ("first", "second"))
        train, held_out = Unpaired(first.train, second.train), SideBySide(first.held_out, second.held_out)
        facts: dict[str, int | str] = {
            "training samples": f"{len(first.train):,} of first, {len(second.train):,} of second",
            "held-out samples": len(held_out),
        }
        for side, datasets in (("first", first), ("second", second)):
            facts |= {f"{name} of {side}": fact for name, fact in datasets.facts.items()}
        if progress:
            remark(facts, *(f"{name} of {side}" for side in ("first", "second") for name in REMARKS))
        return Datasets(train=train, held_out=held_out, facts=facts)

    def sides(self, progress: bool = True) -> Sides | None:
        """Returns the images of both sets on both sides, for an audit: a generator is measured on either set.

        None where a set is in shards that are not on this machine.

        Args:
            progress: whether to show progress bars.
        """
        found = {side: _naming(side, partial(self._of(side).sides, progress)) for side in SIDES}
        sets = {side: of_side for side, of_side in found.items() if of_side is not None}
        if len(sets) < len(found):
            return None

        def both(name: Literal["train", "held_out"]) -> Iterator[Entry]:
            for side, of_side in sets.items():
                for entry in getattr(of_side, name)():
                    yield replace(entry, name=f"{side}: {entry.name}")

        return Sides(
            train=lambda: both("train"),
            held_out=lambda: both("held_out"),
            fingerprint=" ".join(str(of_side.fingerprint) for of_side in sets.values()),
            num_train=sum(of_side.num_train or 0 for of_side in sets.values()),
            num_held_out=sum(of_side.num_held_out or 0 for of_side in sets.values()),
        )

    def without(self, left_out: LeftOut) -> "UnpairedImages":
        """Returns the specification without these training images, in either set."""
        return replace(self, images=self.images.without(left_out))

    def _of(self, side: Side) -> Images:
        path = self.first if side == "first" else self.second
        if path is not None:
            return _naming(side, lambda: replace(self.images, path=path))
        style: Style = "filled" if side == "first" else "outlined"
        return _Letters(**{**vars(self.images), "style": style})

    def _load(self, side: Side, progress: bool) -> Datasets:
        images = self._of(side)
        found = _naming(side, lambda: images.loaded(progress))
        facts = {
            name: _named(side, fact) if isinstance(fact, str) else fact
            for name, fact in found.facts.items()
            if name != FEW  # pairs of sets are not augmented
        }
        return replace(found, facts=facts)


def _naming(side: Side, function: Callable[[], T]) -> T:
    """Calls a function of `Images`, whose messages name data.path, with those of this specification."""
    try:
        return function()
    except DataError as error:
        raise DataError(_named(side, str(error))) from error


def _named(side: Side, text: str) -> str:
    return _KEYS.sub(r"data.images.\1", re.sub(r"\bdata\.path\b", f"data.{side}", text))
