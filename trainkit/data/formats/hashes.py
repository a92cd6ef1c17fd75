"""Hashes: those that an index gives of the files of its shards, checked once for each state of a file."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from trainkit.cache import CacheError, cache_root, cached
from trainkit.errors import DataError
from trainkit.storage import Location

_BLOCK_BYTES = 1 << 24
_KNOWN: dict[str, Callable[[], Any]] = {
    "xxh3_128": xxhash.xxh3_128,  # the fast ones first: of several, the first is checked
    "xxh128": xxhash.xxh3_128,
    "xxh3_64": xxhash.xxh3_64,
    "xxh64": xxhash.xxh64,
    "xxh32": xxhash.xxh32,
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha224": hashlib.sha224,
    "blake2b": hashlib.blake2b,
    "blake2s": hashlib.blake2s,
    "sha512": hashlib.sha512,
    "sha384": hashlib.sha384,
    "md5": hashlib.md5,
    "sha3_256": hashlib.sha3_256,
    "sha3_224": hashlib.sha3_224,
    "sha3_384": hashlib.sha3_384,
    "sha3_512": hashlib.sha3_512,
}


@dataclass(frozen=True)
class Hash:
    """A hash of a file.

    Args:
        name: of the function, as mosaicml-streaming names it.
        digits: hexadecimal.
    """

    name: str
    digits: str


def hash_in(given: object, shown: str) -> Hash | None:
    """Returns the hash to check of those that an index gives of a file, the fastest one; None where it gives none.

    Args:
        given: hexadecimal digits by the name of the function.
        shown: how the index is named to people.

    Raises:
        DataError: for what are no hashes, or only such as are not known.
    """
    if not given:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(digits, str) for digits in given.values()):
        raise DataError(f"{shown}: hashes that are no text by name; write the data set again")
    name = next((name for name in _KNOWN if name in given), None)
    if name is None:
        raise DataError(
            f"{shown} has the hashes {', '.join(map(str, given))}, and only {', '.join(_KNOWN)} are checked: write it "
            f"with one of these, or take hashes out of it"
        )
    return Hash(name, given[name].lower())


def require_hash(location: Location, expected: Hash, cache_dir: Path | None = None, *, is_read: bool = False) -> None:
    """Checks the hash of a file, once for each state of it; of one that lies elsewhere if it is read as a whole.

    Args:
        location: of the file.
        expected: its hash.
        cache_dir: that remembers what was checked; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        is_read: whether all of a file that lies elsewhere is read now.

    Raises:
        DataError: naming the file, where it has another hash.
    """
    if location.local_path() is None and not is_read:
        return

    def check(directory: Path) -> None:
        _check(location, expected)
        (directory / "checked").write_text(location.shown)

    try:
        cached(cache_root(cache_dir), f"hashed-{state_of_file(location, expected)}", check)
    except CacheError:  # it can be checked, though nothing can be remembered
        _check(location, expected)


def _check(location: Location, expected: Hash) -> None:
    found, size = _KNOWN[expected.name](), location.size()
    for start in range(0, size, _BLOCK_BYTES):
        found.update(location.read(start, min(start + _BLOCK_BYTES, size)))
    if found.hexdigest() != expected.digits:
        raise DataError(
            f"{location.shown} is damaged: its {expected.name} is {found.hexdigest()}, and its index says "
            f"{expected.digits[:128]}; copy the shard again"
        )


def state_of_file(location: Location, *more: object) -> str:
    """Returns a name for a state of a file: where it lies, its size and its version, and what else is given."""
    text = repr((location.shown, location.size(), location.version(), more))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
