"""Mixture: a specification of several sources of samples, drawn in proportion to their weights."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainkit.data.datasets import Datasets
from trainkit.data.images import Images
from trainkit.data.mixed_samples import MixedSamples, Weights, require_weights
from trainkit.data.shared_vocabulary import shared_tokenizer
from trainkit.data.sides import Entry, LeftOut, Sides
from trainkit.data.text import Text
from trainkit.errors import ConfigError, DataError, nearest

T = TypeVar("T")
_ARGUMENT = re.compile(r"(?<![\w.])(sources|weights)(?=[.=])")
_KEY = re.compile(r"\bdata\.(\w+)")


@dataclass(frozen=True)
class Mixture:
    """Several sources of samples, of which each has its share of every batch, in epochs of its own.

    The source of each position is a function of the seed and the position alone, as its sample is. Up to any position p
    a source with the share s, of n sources, has given s * p samples, but for 3 + s * n at most.

    `runtime.batches` takes a mixture of data sets, and `load()` makes data sets of one of specifications.

    Args:
        sources: by name: data sets or columns; or specifications with a `load()`, such as `Text`; or, where `base` is
            given, mappings of the settings in which a source differs from it, such as {"wiki": {"path": "~/wiki"}}.
        weights: of the sources, by name or in their order; their sum may be any. None: by the number of samples, so
            that all sources have their epochs at the same time.
        base: a specification; what all sources have in common.

    Raises:
        ConfigError: for weights or settings that cannot be.

    Example:
        >>> mixture = Mixture({"odd": [1, 3, 5], "even": [2, 4]}, weights={"odd": 3, "even": 1})
        >>> mixture.samples().epochs(position=400)
        {'odd': 100.0, 'even': 50.0}
    """

    sources: Mapping[str, Any]
    weights: Weights = None
    base: Text | Images | Any = None  # a stored configuration may name the two, see `training.trust`

    def __post_init__(self) -> None:
        self._keyed(lambda: require_weights(list(self.sources), self.weights))
        assert self._specifications is not None

    @cached_property
    def _specifications(self) -> dict[str, Any]:
        """The sources, with those that are settings made into specifications."""
        return {
            name: self._named(name, partial(self._specification, name, source)) for name, source in self.sources.items()
        }

    def _specification(self, name: str, source: Any) -> Any:
        if self.base is None or not isinstance(source, Mapping):
            return source
        if not is_dataclass(self.base) or isinstance(self.base, type):
            raise ConfigError(f"data.base is a {type(self.base).__name__}: give a specification, such as data=text has")
        known = [key.name for key in fields(self.base) if key.init]
        for key in source:
            if key not in known:
                raise ConfigError(f"data.sources.{name}.{key}: there is no such key.{nearest(key, known)}")
        given = {key: Path(value) if key == "path" and value is not None else value for key, value in source.items()}
        made: Any = replace(self.base, **given)
        return made

    # -- settings of all sources that recipes ask for --------------------------------------------------------------

    @property
    def sequence_length(self) -> int | None:
        """Tokens in a sample; None: the sources have none."""
        length: int | None = self._setting("sequence_length")
        return length

    @property
    def cache_dir(self) -> Path | None:
        """Where the sources keep files."""
        directory: Path | None = self._setting("cache_dir")
        return directory

    def _setting(self, name: str) -> Any:
        return getattr(next(iter(self._specifications.values())), name, None)

    # -- loading ---------------------------------------------------------------------------------------------------

    def samples(self) -> MixedSamples:
        """Returns the samples of sources that are data sets.

        Raises:
            ConfigError: for sources that are specifications, and as `MixedSamples`.
        """
        for name, source in self._specifications.items():
            if callable(getattr(source, "load", None)):
                raise ConfigError(
                    f"source {name} of a mixture is a {type(source).__name__}, which has to be loaded: give "
                    f"mixture.load().train"
                )
        return MixedSamples(self._specifications, self.weights)

    def load(self, progress: bool = True) -> Datasets:
        """Loads all sources; text without a vocabulary gets one that is learnt from all of its sources.

        Args:
            progress: whether to show progress bars.

        Returns:
            Training samples that are mixed, and the held-out ones of all sources, each once.

        Raises:
            DataError: as the sources do.
            ConfigError: as `MixedSamples`, and for data sets that cannot be mixed.
        """
        return self._joined(
            {name: each[0] for name, each in self._each(lambda s: [s.load(progress)], progress).items()}
        )

    def load_lengths(self, lengths: Sequence[int], progress: bool = True) -> list[Datasets]:
        """Loads all sources in samples of several lengths; see `load` and `Text.load_lengths`.

        Args:
            lengths: in tokens.
            progress: whether to show progress bars.
        """
        for name, specification in self._specifications.items():
            if not hasattr(specification, "load_lengths"):
                raise ConfigError(f"source {name} of a mixture has samples of one length: leave sequence_length out")
        found = self._each(lambda specification: specification.load_lengths(lengths, progress), progress)
        return [self._joined({name: each[number] for name, each in found.items()}) for number in range(len(lengths))]

    def _each(self, load: Callable[[Any], list[Datasets]], progress: bool) -> dict[str, list[Datasets]]:
        found: dict[str, list[Datasets]] = {}
        texts = [source for source in self._specifications.values() if isinstance(source, Text)]
        has_none = len(texts) > 1 and all(text.tokenizer is None and text.vocab_file is None for text in texts)
        tokenizer = shared_tokenizer(texts, progress) if has_none else None
        for name, specification in self._specifications.items():
            if not callable(getattr(specification, "load", None)):
                raise ConfigError(
                    f"source {name} of a mixture is a {type(specification).__name__}, which is loaded already: give "
                    f"runtime.batches the mixture itself, or specifications only"
                )
            if tokenizer is not None and hasattr(specification, "tokenizer"):
                specification = replace(specification, tokenizer=tokenizer)
            found[name] = self._named(name, partial(load, specification))
            tokenizer = tokenizer or found[name][0].tokenizer
        return found

    def _joined(self, found: Mapping[str, Datasets]) -> Datasets:
        name, first = next(iter(found.items()))
        for other, datasets in found.items():
            for key in ("collate", "classes", "shuffle"):
                if getattr(datasets, key) != getattr(first, key):
                    raise ConfigError(
                        f"sources {name} and {other} of a mixture differ in {key}: {getattr(first, key)} and "
                        f"{getattr(datasets, key)}; give both the same"
                    )
            if getattr(datasets.tokenizer, "fingerprint", None) != getattr(first.tokenizer, "fingerprint", None):
                raise DataError(f"sources {name} and {other} of a mixture have different tokenizers: give both one")
        train = self._keyed(lambda: MixedSamples({name: each.train for name, each in found.items()}, self.weights))
        facts = train.facts()
        for name, datasets in found.items():
            facts |= {f"{fact} of {name}": value for fact, value in datasets.facts.items()}
        held_out = MixedSamples({name: datasets.held_out for name, datasets in found.items()})
        return replace(first, train=train, held_out=held_out, facts=facts)

    # -- auditing --------------------------------------------------------------------------------------------------

    def sides(self, progress: bool = True) -> Sides | None:
        """Returns the samples of all sources on both sides, for an audit; None where a source cannot tell them.

        Args:
            progress: whether to show progress bars.
        """
        sets: dict[str, Sides] = {}
        for name, specification in self._specifications.items():
            found = self._named(name, partial(specification.sides, progress))
            if found is None:
                return None
            sets[name] = found

        def all_of(side: Literal["train", "held_out"]) -> Iterator[Entry]:
            for name, found in sets.items():
                for entry in getattr(found, side)():
                    yield replace(entry, name=f"{name}: {entry.name}")

        return Sides(
            train=lambda: all_of("train"),
            held_out=lambda: all_of("held_out"),
            fingerprint=_together([found.fingerprint for found in sets.values()], " ".join),
            num_train=_together([found.num_train for found in sets.values()], sum),
            num_held_out=_together([found.num_held_out for found in sets.values()], sum),
        )

    def without(self, left_out: LeftOut) -> "Mixture":
        """Returns the specification without these training samples, in any source."""
        return self._with(lambda specification: specification.without(left_out))

    def with_tokenizer(self, tokenizer: Any) -> "Mixture":
        """Returns the specification with a tokenizer that exists, such as a checkpoint's, for all sources."""
        return self._with(lambda specification: replace(specification, tokenizer=tokenizer))

    def _with(self, change: Callable[[Any], Any]) -> "Mixture":
        changed = {name: change(specification) for name, specification in self._specifications.items()}
        return replace(self, sources=changed)

    def _keyed(self, function: Callable[[], T]) -> T:
        """Calls a function whose messages name arguments of the mixture, with those of a configuration if it is one."""
        try:
            return function()
        except ConfigError as error:
            raise ConfigError(_ARGUMENT.sub(r"data.\1", str(error)) if self.base is not None else str(error)) from error

    def _named(self, name: str, function: Callable[[], T]) -> T:
        """Calls a function of a source, whose messages name keys of `data`, with those of the mixture."""
        try:
            return function()
        except (ConfigError, DataError) as error:
            kind = DataError if isinstance(error, DataError) else ConfigError
            raise kind(self._renamed(name, str(error))) from error

    def _renamed(self, name: str, text: str) -> str:
        if self.base is None:
            return f"source {name} of a mixture: {text}"
        own = self.sources[name] if isinstance(self.sources[name], Mapping) else {}

        def key(match: re.Match[str]) -> str:
            if match[1] in ("sources", "base", "weights"):
                return match[0]
            is_own = match[1] in own or match[1] == "path"
            return f"data.sources.{name}.{match[1]}" if is_own else f"data.base.{match[1]}"

        return _KEY.sub(key, text)


def _together(values: Sequence[T | None], join: Callable[[list[T]], T]) -> T | None:
    known = [value for value in values if value is not None]
    return join(known) if len(known) == len(values) else None
