"""Variations: values of one key that a sweep tries, as a user types them, read by Hydra's grammar."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from trainkit.errors import ConfigError

FORMS = "0.1,0.2 | choice(a,b) | range(1,9) | interval(0.1,0.5) | log(1e-4,1e-2)"


@dataclass(frozen=True)
class Variation:
    """The values that a key may take: some of them, or all of a range.

    Args:
        key: the dotted key of the configuration.
        text: what was typed for it.
        choices: the values as they are typed; empty: a range.
        low: the smallest value of a range.
        high: the largest one.
        step: between two values of a range; None: any between the ends.
        log: whether a range is drawn from evenly by the logarithm.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether its numbers are integers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    def of(self, value: Any) -> str:
        """The override that gives the key a value.

        Args:
            value: a choice, or a number of the range.

        Example:
            >>> Variation("optimizer.lr", "log(1e-4,1e-2)", low=1e-4, high=1e-2, log=True).of(0.001)
            'optimizer.lr=0.001'
        """
        return f"{self.key}={value if isinstance(value, str) else repr(value)}"

    def extremes(self) -> Sequence[str]:
        """Overrides that are to be allowed if all are: those of each choice, or of both ends of a range."""
        return [self.of(value) for value in self.choices or dict.fromkeys((self.low, self.high))]


def variation_of(key: str, values: Any) -> Variation | None:
    """Reads what is given for a key.

    Args:
        key: the dotted key of the configuration.
        values: text in Hydra's grammar for sweeps, with `log(low,high)` in addition, or a list of values.

    Returns:
        The variation; None: it is one value.

    Raises:
        ConfigError: for a range without values.

    Example:
        >>> variation_of("recipe.mask_share", "0.15,0.3").choices
        ('0.15', '0.3')
        >>> variation_of("optimizer.lr", "log(1e-4,1e-2)")
        Variation(key='optimizer.lr', text='log(1e-4,1e-2)', choices=(), low=0.0001, high=0.01, step=None, log=True)
        >>> variation_of("seed", "0") is None
        True
    """
    if isinstance(values, list):
        values = ", ".join(map(_as_typed, values))
    text = re.sub(r"\s+", "" if "(" in str(values) and "'" not in str(values) else " ", str(values)).strip()
    log = re.fullmatch(r"log\s*\((.*)\)", text)
    parsed = _parsed(f"{key}=interval({log[1]})" if log else f"{key}={text}")
    if parsed is None or not parsed.is_sweep_override():
        if log or re.match(r"(choice|range|interval|tag|sort|shuffle)\s*\(", text):
            raise ConfigError(f"{key}={text}: cannot be read; values to try are written {FORMS}")
        return None
    swept = parsed.value()
    if isinstance(swept, ChoiceSweep):
        return _of_choices(key, text, swept)
    if isinstance(swept, IntervalSweep):
        return _of_interval(key, text, swept, is_log=bool(log) or "log" in swept.tags)
    assert isinstance(swept, RangeSweep)
    return _of_range(key, text, swept)


def _of_choices(key: str, text: str, swept: ChoiceSweep) -> Variation:
    choices = [Override._get_value_element_as_str(value) for value in swept.list]
    twice = next((choice for i, choice in enumerate(choices) if choice in choices[:i]), None)
    if twice is not None:
        raise ConfigError(f"{key}={text}: {twice} is there twice")
    return Variation(key, text, tuple(choices))


def _of_interval(key: str, text: str, swept: IntervalSweep, *, is_log: bool) -> Variation:
    low, high = swept.start, swept.end
    assert low is not None and high is not None
    is_integer = re.search(r"\(([+-]?\d+),([+-]?\d+)\)", text) is not None  # Hydra makes floats of all
    low, high = (int(low), int(high)) if is_integer else (low, high)
    _require_order(key, text, low, high)
    if is_log and low <= 0:
        raise ConfigError(f"{key}={text}: a range by the logarithm must begin above 0")
    return Variation(key, text, low=low, high=high, step=1 if is_integer and not is_log else None, log=is_log)


def _of_range(key: str, text: str, swept: RangeSweep) -> Variation:
    start, stop, step = swept.start or 0, swept.stop, swept.step
    if stop is None or step <= 0:
        raise ConfigError(f"{key}={text}: must be range(start,stop) or range(start,stop,step) with a step above 0")
    _require_order(key, text, start, stop)
    last = start + step * (-((start - stop) // step) - 1)  # the stop is left out, as in Python
    return Variation(key, text, low=start, high=max(start, last), step=step)


def _require_order(key: str, text: str, low: float, high: float) -> None:
    if low >= high:
        name = text.partition("(")[0]
        turned = f"; type {name}({high},{low})" if low > high else ""
        raise ConfigError(f"{key}={text}: the range must end above where it begins{turned}")


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _as_typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
