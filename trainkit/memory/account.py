"""MemoryAccount: the bytes of the tensors that are alive, counted as operations make them."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from trainkit.memory.memory import in_words


class OverBudgetError(MemoryError):
    """More bytes are alive than a limit allows."""


class MemoryAccount(TorchDispatchMode):
    """Counts the memory of tensors that operations make within it, of a forward pass, a backward pass or an optimizer.

    It goes on counting what is freed when it is left, and can be entered again. Each storage counts once, as long as
    any tensor, saved one or gradient uses it. What an operation needs inside itself alone is not seen.

    Attributes: `alive`, bytes now, and `peak`, the most so far.

    Args:
        limit: the most bytes that may be alive; None: any number.

    Raises:
        OverBudgetError: within it, by the operation after which more are.

    Example:
        >>> with MemoryAccount() as account:
        ...     x = torch.zeros(1000)
        ...     y = x.view(10, 100) + 1
        ...     del x
        >>> account.alive, account.peak
        (4000, 8000)
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak, self._limit = 0, 0, limit
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._resize: list[Any] = []

    def __enter__(self) -> "MemoryAccount":
        # FSDP frees and fills gathered parameters so, which is no operation.
        resize = torch.UntypedStorage.resize_
        self._resize.append(resize)

        def resized(storage: Any, size: int) -> Any:
            found = resize(storage, size)
            self._count(storage)
            return found

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize.pop()  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return found

    def _add(self, tensor: Tensor) -> None:
        if is_traceable_wrapper_subclass(tensor):  # a sharded one, which holds its part
            parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            for part in parts:
                if isinstance(part, Tensor):
                    self._add(part)
        elif tensor.device.type != "meta":
            self._count(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.alive += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.alive)
        if self._limit is not None and self.alive > self._limit:
            raise OverBudgetError(f"{in_words(self.alive)} of tensors are alive, of {in_words(self._limit)}")

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)
        del self._references[key]
