"""Storage: files and folders, on this machine or behind a URL."""

from trainkit.storage.local import LocalLocation
from trainkit.storage.locate import is_url, locate
from trainkit.storage.location import Location

__all__ = ["LocalLocation", "Location", "is_url", "locate"]
