"""Storage: files and folders, on this machine or behind a URL."""

from trainkit.public_url import is_url
from trainkit.storage.copies import copying
from trainkit.storage.local import LocalLocation
from trainkit.storage.locate import locate
from trainkit.storage.location import Check, Location
from trainkit.storage.remote import RemoteLocation
from trainkit.storage.seekable import Seekable
from trainkit.storage.settings import StorageSettings

__all__ = [
    "Check",
    "LocalLocation",
    "Location",
    "RemoteLocation",
    "Seekable",
    "StorageSettings",
    "copying",
    "is_url",
    "locate",
]
