"""Grouping: which files of a folder belong together, and what stands for their content."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from trainkit.data.folder_scan import Sorting


class Grouping(ABC):
    """Says which files of a folder belong together; `name`, `sorting`, `groups` and `beside` belong to the class.

    An object is used for one scan, in its order.
    """

    name: ClassVar[str]
    sorting: ClassVar[Sorting]
    groups: ClassVar[Sequence[str]]
    unread: ClassVar[str]
    """The group of the files that are not read."""
    beside: ClassVar[Sequence[str]] = ()
    """Files in the folder itself that are in that group, though what they hold matters."""

    @abstractmethod
    def group_of(self, directory: Path, name: str) -> str | None:
        """Returns the group of a file; None: it belongs to none."""

    @abstractmethod
    def content(self, path: Path) -> bytes:
        """Reads a file, and returns what stands for it in the digest of all."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Returns what is kept beside the files, JSON-serializable; called once all are grouped."""
