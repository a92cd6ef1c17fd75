"""What a path or a URL stands for."""

from pathlib import Path

from trainkit.errors import StorageError
from trainkit.public_url import carries_credentials, is_url, redacted, where_credentials_belong
from trainkit.storage.fsspec_store import require_installed
from trainkit.storage.local import LocalLocation
from trainkit.storage.location import Location
from trainkit.storage.remote import RemoteLocation
from trainkit.storage.settings import StorageSettings


def locate(path: str | Path) -> Location:
    """Returns the location that a path or a URL names; nothing is read.

    Args:
        path: of a file or a folder; ~ is the home directory.

    Raises:
        StorageError: for a URL of a kind that is not known or not installed, or with credentials in it, which would
            be written into run directories and logs.
        ConfigError: for a setting of the storage that is no number.
    """
    if not is_url(path):
        return LocalLocation(Path(path).expanduser())
    url = str(path)
    if carries_credentials(url):
        raise StorageError(
            f"{redacted(url)}: a URL must not carry credentials, which would be written into run directories and logs; "
            f"{where_credentials_belong(url)}"
        )
    if url.startswith("file://"):
        return LocalLocation(Path(url.removeprefix("file://")))
    require_installed(url)
    return RemoteLocation(url, StorageSettings.from_environment())
