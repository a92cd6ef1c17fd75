"""RemoteFiles: which files of a folder behind a URL are text, and the data sets of other tools among them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from trainkit.data.files import suffix_of
from trainkit.data.formats.arrow import STATE, files_named
from trainkit.data.formats.index_file import INDEX, read_index
from trainkit.data.formats.opening import is_shard, open_folder, shards_in
from trainkit.data.formats.shard_files import inside
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.data.formats.splits import HELD_OUT_SPLITS, side_of
from trainkit.data.formats.tars import Tars
from trainkit.data.readers import reader_of
from trainkit.errors import DataError
from trainkit.storage import Location

_DICT = "dataset_dict.json"
_NOT_READ = (".py", ".arrow", "")


class RemoteFiles:
    """What is found below a folder, by names relative to it; see `TextFiles`, which does so on a disk.

    Args:
        field: the column of the text, in data sets with several.
        cache_dir: for shards that are compressed as a whole, and for the index of tars.
    """

    def __init__(self, field: str, cache_dir: Path | None) -> None:
        self._field, self._cache_dir = field, cache_dir
        self.train: dict[str, Location] = {}
        self.held_out: dict[str, Location] = {}
        self.shards: dict[str, tuple[ShardedDataset, int]] = {}
        self.unread: list[str] = []

    def add_tar(self, folder: Location, name: str) -> None:
        """Adds a tar."""
        self._add_dataset("", partial(Tars, folder, [name], cache_dir=self._cache_dir, progress=True), "train")

    def add_folder(self, root: Location) -> None:
        """Adds what is below a folder, in the order of the parts of the names.

        Raises:
            DataError: for data sets that are not complete, or whose column cannot be read.
        """
        files = root.files()
        folders: dict[str, list[str]] = {}
        for name in sorted(files, key=lambda name: PurePosixPath(name).parts):
            folder, _, last = name.rpartition("/")
            folders.setdefault(folder, []).append(last)
        taken = list[str]()
        for folder in sorted(folders, key=lambda name: PurePosixPath(name).parts):
            if any(folder == one or folder.startswith(f"{one}/") for one in taken):
                continue
            where, names = root.child(folder) if folder else root, folders[folder]
            if _DICT in names:
                self._add_dict(where, folder, files)
            elif (kind := shards_in(where, names)) == "arrow":
                self._add_arrow(where, folder, files, self.train)
            elif kind is not None:
                side = side_of(PurePosixPath(folder).name, _beside(folder, folders)) if folder else "train"
                if side is not None:
                    self._add_dataset(folder, self._opening(where, kind, names), side)
            else:
                self._add_files(folder, names, files)
                continue
            taken.append(folder)
            if not folder:
                break
        self.train, self.held_out = _in_order(self.train), _in_order(self.held_out)

    def _add_files(self, folder: str, names: Sequence[str], files: Mapping[str, Location]) -> None:
        for last in names:
            name = f"{folder}/{last}" if folder else last
            if is_readable_name(name):
                self.train[name] = files[name]
            else:
                self.unread.append(name)

    def _opening(self, where: Location, kind: str, names: Sequence[str]) -> Callable[..., ShardedDataset]:
        if kind == "tar":
            tars = [name for name in names if name.lower().endswith(".tar")]
            return partial(Tars, where, tars, cache_dir=self._cache_dir, progress=True)
        return partial(open_folder, where, cache_dir=self._cache_dir)

    def _add_dataset(self, folder: str, opened: Callable[..., ShardedDataset], side: str) -> None:
        opened(columns=[]).require(self._field, "set data.field=NAME")
        dataset = opened(columns=[self._field])
        found = self.train if side == "train" else self.held_out
        for number in range(dataset.num_shards):
            name = f"{folder}/{dataset.names()[number]}" if folder else dataset.names()[number]
            found[name], self.shards[name] = dataset.location(number), (dataset, number)

    def _add_arrow(
        self, where: Location, folder: str, files: Mapping[str, Location], found: dict[str, Location]
    ) -> bool:
        state = where.child(STATE).shown
        listed = files_named(read_index(where, STATE)[0], "_data_files", state)
        for last in listed:
            name = f"{folder}/{last}" if folder else last
            if name not in files:
                raise DataError(f"data.path: {state} names {last}, which is not there; copy the data set again")
            found[name] = files[name]
        return bool(listed)

    def _add_dict(self, where: Location, folder: str, files: Mapping[str, Location]) -> None:
        shown = where.child(_DICT).shown
        splits = read_index(where, _DICT)[0].get("splits")
        if not isinstance(splits, list):
            raise DataError(f"data.path: {shown} is damaged (no list of splits); save the data set again")
        names = [inside(split, shown) for split in splits]
        if "train" not in names:
            raise DataError(
                f"data.path={where.shown} has the splits {', '.join(names)} and no 'train'; set data.path to one"
            )
        below = f"{folder}/" if folder else ""
        self._add_arrow(where.child("train"), f"{below}train", files, self.train)
        for split in HELD_OUT_SPLITS:
            if split in names and self._add_arrow(where.child(split), f"{below}{split}", files, self.held_out):
                break


def _in_order(files: Mapping[str, Location]) -> dict[str, Location]:
    return dict(sorted(files.items(), key=lambda entry: PurePosixPath(entry[0]).parts))


def is_readable_name(name: str) -> bool:
    """Whether a file behind a URL is text that a folder of text contains."""
    path = Path(PurePosixPath(name).name)
    return suffix_of(name) not in _NOT_READ and not is_shard(path.name) and reader_of(path) is not None


def _beside(folder: str, folders: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the splits with a data set that lie where a folder does, itself among them."""
    parent = PurePosixPath(folder).parent
    splits = ("train", *HELD_OUT_SPLITS)
    return [split for split in splits if INDEX in folders.get(str(parent / split), ())]
