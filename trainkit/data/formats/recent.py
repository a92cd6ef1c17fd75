"""Recent: values that are slow to make, of which the last ones are kept."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_MISSING = object()


class Recent(Generic[Key, Value]):
    """A bounded memory, for several threads. A copy in another process is empty.

    Args:
        most: values that are kept; of more, the ones that were made first are dropped.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: dict[Key, Value] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def get(self, key: Key, make: Callable[[Key], Value]) -> Value:
        """Returns the value of `key`, which `make(key)` makes where it is not kept."""
        kept = self._values.get(key, _MISSING)  # once: another thread may drop it
        if kept is not _MISSING:
            return cast(Value, kept)
        value = self._values[key] = make(key)
        for oldest in list(self._values)[: len(self._values) - self.most]:
            self._values.pop(oldest, None)
        return value

    def __reduce__(self) -> tuple[type["Recent[Key, Value]"], tuple[int]]:
        return type(self), (self.most,)
