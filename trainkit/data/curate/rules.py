"""Rules: which documents or images are kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainkit.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """Which documents are kept. They are applied in the order of the arguments; None and False: not applied.

    Args:
        drop_damaged: drops documents with U+FFFD, control characters, mojibake or remains of HTML.
        min_chars: the fewest characters of a document.
        max_chars: the most.
        drop_exact: drops documents with the same words as an earlier one.
        drop_near: drops documents that are nearly the same as an earlier one that no rule before has dropped.
        max_boilerplate: the largest share of a document's characters in lines that are in `repeated_in` different
            documents of the source or more.
        repeated_in: see `max_boilerplate`.
        languages: that are kept, by ISO 639-1 code.
        function: `module:name` of a function of a text that returns whether it is kept, or a score.
        score_between: quantiles of that score between which documents are kept.
        loss_of: a run directory or a checkpoint of a model that predicts masked tokens.
        loss_between: quantiles of its loss between which documents are kept.
        diverse: the share that is kept of the documents that are left, those that are least like another one of their
            cluster (SemDeDup, arXiv 2303.09540).
        features: of `diverse`: `tfidf`, or a run of a model whose hidden states are averaged.

    Raises:
        ConfigError: for values out of range, and without a rule.
    """

    drop_damaged: bool = False
    min_chars: int | None = None
    max_chars: int | None = None
    drop_exact: bool = False
    drop_near: bool = False
    max_boilerplate: float | None = None
    repeated_in: int = 10
    languages: tuple[str, ...] = ()
    function: str | None = None
    score_between: Range | None = None
    loss_of: str | None = None
    loss_between: Range | None = None
    diverse: float | None = None
    features: str = "tfidf"

    def __post_init__(self) -> None:
        for name in ("min_chars", "max_chars"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "1 or more")
        if self.min_chars is not None and self.max_chars is not None:
            _check(
                self.min_chars <= self.max_chars, "min_chars", self.min_chars, f"--max-chars={self.max_chars} or less"
            )
        _check(self.repeated_in >= 2, "repeated_in", self.repeated_in, "2 or more")
        share = self.max_boilerplate
        _check(share is None or 0 <= share < 1, "max_boilerplate", share, "a share from 0, and below 1")
        _check_shared(self)
        if (self.loss_of is None) != (self.loss_between is None):
            raise ConfigError("--loss-of RUN and --loss-between LOW HIGH belong together; give both, or none")
        _check_range("loss_between", self.loss_between)
        if self.features != "tfidf" and self.diverse is None:
            raise ConfigError(f"--features={self.features}: has no effect without --diverse SHARE; leave it out")

    def facts(self) -> dict[str, Any]:
        """Returns what was asked for, JSON-serializable."""
        return _asked(self, {"max_boilerplate": ("repeated_in",), "diverse": ("features",)})


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Which images are kept, in this order; one that cannot be decoded is always dropped.

    Args:
        min_side: the fewest pixels of the shorter side.
        drop_exact: drops images with the same pixels, at 64 x 64, as an earlier one.
        drop_near: drops images whose perceptual hash is near that of the one that stands for their group.
        function: `module:name` of a function of a PIL.Image that returns whether it is kept, or a score.
        score_between: quantiles of that score between which images are kept.
        diverse: the share that is kept of the images that are left; see `TextRules`.

    Raises:
        ConfigError: for values out of range.
    """

    min_side: int | None = None
    drop_exact: bool = False
    drop_near: bool = False
    function: str | None = None
    score_between: Range | None = None
    diverse: float | None = None

    def __post_init__(self) -> None:
        _check(self.min_side is None or self.min_side >= 1, "min_side", self.min_side, "1 or more")
        _check_shared(self)

    def facts(self) -> dict[str, Any]:
        """Returns what was asked for, JSON-serializable."""
        return _asked(self, {})


def _check_shared(rules: TextRules | ImageRules) -> None:
    function = rules.function
    if function is not None:
        module, colon, name = function.partition(":")
        is_named = bool(colon) and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])
        _check(is_named, "function", function, "module:name, such as mine:is_interesting")
    if rules.score_between is not None and function is None:
        raise ConfigError("--score-between LOW HIGH: has no effect without --function; leave it out")
    _check_range("score_between", rules.score_between)
    share = rules.diverse
    _check(share is None or 0 < share < 1, "diverse", share, "a share above 0 and below 1")
    if not rules.facts() and isinstance(rules, TextRules):
        raise ConfigError("no rule is given: add one at least, such as --drop-exact --drop-near")


def _check_range(name: str, value: Range | None) -> None:
    if value is not None:
        low, high = value
        shown = f"{low:g} {high:g}"
        _check(0 <= low < high <= 1, name, shown, "two quantiles, 0 <= LOW < HIGH <= 1")


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')}={value}: must be {allowed}")


def _asked(rules: TextRules | ImageRules, beside: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The rules that act; of those that only say how, the ones whose rule does."""
    values = asdict(rules)
    idle = {name for rule, names in beside.items() if values[rule] is None for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in idle and value not in (None, False, ())
    }
