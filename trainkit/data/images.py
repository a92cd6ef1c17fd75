"""Images: any source of images, decoded once into every resolution from 4x4 up, for a generative model."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

from trainkit.cache import CacheError, cache_root, cached
from trainkit.data.chosen_images import choose
from trainkit.data.datasets import Datasets
from trainkit.data.decoding import Decoder, Frames, Unreadable
from trainkit.data.file_look import VERIFY, Verify
from trainkit.data.files import listed_counts
from trainkit.data.glyphs import Glyphs
from trainkit.data.image_rows import Rows
from trainkit.data.image_sources import ImageSource, find_source
from trainkit.data.labels import From, Labels, LabelSummary, find_labels, summary_of
from trainkit.data.parallel import in_order
from trainkit.data.progress import remark, track
from trainkit.data.pyramid import (
    COMPARED,
    LARGEST,
    SMALLEST,
    Pyramid,
    PyramidWriter,
    read_summary,
    resolutions,
    write_summary,
)
from trainkit.data.remote_images import find_remote_source, require_source
from trainkit.data.shards.checks import verify
from trainkit.data.shards.index import ShardIndex, find_shards, require_sizes
from trainkit.data.shards.pyramid import ShardedPyramid, image_sides
from trainkit.data.shuffle import OPEN_BLOCKS, Shuffle, ShuffleBy, require_shuffle
from trainkit.data.sides import NOTHING, Entry, LeftOut, Sides
from trainkit.data.square import Fit
from trainkit.distributed.cluster import Cluster
from trainkit.errors import DataError
from trainkit.logger import logger
from trainkit.storage import is_url

_FORMAT = 6  # of the cache: increase it whenever the same images and settings would give other files
_PILLOW_LIMIT = 178_956_970  # pixels: Pillow opens no larger image
_MIN_HELD_OUT = 200  # images: with fewer, a distance depends more on the choice than on the generator
MIN_TRAIN = 2_000  # images: a few thousand are learnt by heart, without augmentation (arXiv 2006.06676)
FEW = "few training images"
UPSCALED = "upscaled images"
TWO_LABELS = "duplicates under another label"
EMPTY = "classes without a training image"
PROFILES = "colour profiles ignored"
OTHERS = "labels of images that are not there"
REMARKS = ("files not read", PROFILES, UPSCALED, FEW, TWO_LABELS, EMPTY, OTHERS, "note")
_NUM_NAMED = 3  # unreadable files in a message


@dataclass(frozen=True, kw_only=True)
class Images:
    """A specification of images to train on; `load()` makes data sets of them at every resolution.

    Args:
        path: a folder, searched recursively, or a zip file, of images in any format that Pillow reads, or the URL of
            one; shards that `trainkit data prepare` wrote, of which it takes all but the resolution as it is; or those
            of other tools, see `open_dataset`; None: the built-in letters and digits, which need no download.
        field: of shards of other tools, the column of the pictures; None: the only one there is.
        label_field: of these, the column of the classes; None: the only one of a usual name, such as `label` or `cls`.
        resolution: the largest, in pixels: a power of two from 4 to 1024, to which images are scaled.
        channels: 3 for RGB, 1 for grey.
        held_out: the fraction of the images that is held out, chosen by a hash of their pixels. Images with the same
            pixels at `resolution` count as one, so none is on both sides.
        held_out_samples: the maximum number of held-out images to evaluate on, chosen by a hash of their pixels; None:
            all.
        max_pixels: images with more pixels count as unreadable: a file of 20 kB may expand to gigabytes.
        max_file_mb: larger files, in MB, count as unreadable.
        on_unreadable: whether an image that cannot be decoded is an `error`, or is left out and counted (`skip`).
        fit: how an image becomes a square: `crop`: its central square; `smart`: the square with most detail (the
            largest differences between neighbouring pixels); `pad`: all of it, on `background`; `stretch`: distorted.
        background: the colour behind transparent and padded images: a name or "#rrggbb".
        frames: of animated GIF, PNG and WebP, and of TIFF files with several pages: the `first`, or `all`, as images.
        labels: where the class of an image comes from: `json`: `dataset.json` in the folder or zip file, as StyleGAN's
            tools write it; `folders`: the first folder below `path` (of the built-in letters: the character); `auto`:
            `dataset.json` if it holds labels, otherwise none; `column`: that of a data set in shards; `none`.
        augment: how a recipe that trains on the images augments them: `none`, `ada` or `fixed`. The data sets do not.
        horizontal_flips: whether it mirrors half of the training images.
        cache_dir: where pixels are stored; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        num_workers: threads that decode; None: one per core.
        shuffle: how the images of an epoch are put into random order: `global`, or `blocks`, of which `open_blocks`
            are read at a time: for images that are read from far away. See `Shuffle`.
        open_blocks: see `shuffle`.
        left_out: training images that are not trained on, such as those that an audit found.
        verify: which files of a folder are read again, to see whether they changed since the last start: `state`: those
            with another size, time of change or inode; `full`: all, and those are named whose state shows no
            change. Of shards, `state` compares sizes, and `full` all checksums, once.

    Raises:
        DataError: for a value out of range, and where a listing of the path shows that it cannot be read.
    """

    path: str | Path | None = None
    field: str | None = None
    label_field: str | None = None
    resolution: int = 32
    channels: Literal[1, 3] = 3
    held_out: float = 0.05
    held_out_samples: int | None = 16_384
    max_pixels: int = 89_478_485
    max_file_mb: int = 256
    on_unreadable: Literal["error", "skip"] = "error"
    fit: Fit = "crop"
    background: str = "white"
    frames: Frames = "first"
    labels: From = "auto"
    augment: Literal["none", "ada", "fixed"] = "none"
    horizontal_flips: bool = False
    cache_dir: Path | None = None
    num_workers: int | None = None
    shuffle: ShuffleBy = "global"
    open_blocks: int = OPEN_BLOCKS
    left_out: LeftOut = NOTHING
    verify: Verify = "state"

    def __post_init__(self) -> None:
        sizes = resolutions(LARGEST)
        _check(self.resolution in sizes, "resolution", self.resolution, f"one of {', '.join(map(str, sizes))}")
        _check(self.channels in (1, 3), "channels", self.channels, "1 (grey) or 3 (RGB)")
        _check(0 < self.held_out <= 0.5, "held_out", self.held_out, "above 0 and at most 0.5")
        _check(self.on_unreadable in ("error", "skip"), "on_unreadable", self.on_unreadable, "error or skip")
        _check(self.labels in get_args(From), "labels", self.labels, "auto, none, folders, json or column")
        _check(self.fit in get_args(Fit), "fit", self.fit, "crop, smart, pad or stretch")
        _check(self.frames in get_args(Frames), "frames", self.frames, "first or all")
        _check(_is_colour(self.background), "background", self.background, 'a colour: a name or "#rrggbb"')
        _check(self.augment in ("none", "ada", "fixed"), "augment", self.augment, "none, ada or fixed")
        most = self.held_out_samples
        _check(most is None or most > 0, "held_out_samples", most, "at least 1, or null for all")
        _check(0 < self.max_pixels <= _PILLOW_LIMIT, "max_pixels", self.max_pixels, f"1 to {_PILLOW_LIMIT}")
        _check(self.max_file_mb > 0, "max_file_mb", self.max_file_mb, "at least 1")
        _check(self.verify in VERIFY, "verify", self.verify, " or ".join(VERIFY))
        _check(self.num_workers is None or self.num_workers > 0, "num_workers", self.num_workers, "at least 1, or null")
        require_shuffle(self.shuffle, self.open_blocks, "data.")
        if self.path is not None and self._shards() is None:
            if is_url(self.path):  # its folder is listed when it is loaded
                require_source(str(self.path))
            else:
                self.source()

    def load(self, progress: bool = True) -> Datasets:
        """Loads the training and held-out `Pyramid`s, and builds them into the cache if they are not there yet.

        Args:
            progress: whether to show progress bars.

        Returns:
            The data sets.

        Raises:
            DataError: for images that cannot be read, where there are too few to hold one out, and for labels that
                are missing.
        """
        datasets = self.loaded(progress)
        if progress:
            remark(datasets.facts, *REMARKS)
        return datasets

    def loaded(self, progress: bool) -> Datasets:
        """Does what `load` does, and makes no remarks on the facts."""
        if (shards := self._shards()) is not None:
            return self._load_shards(shards, progress)
        root, source = cache_root(self.cache_dir), self.source()
        try:
            source.look(root, self.verify, progress)
        except CacheError as error:  # what was built there can be read
            if progress:
                logger(__name__).warning(f"every file of {self.path} is read at every start: {error}")
        find = cache(lambda: find_labels(source, self.labels))
        found = source.remembered(f"labels {self.labels}", lambda: summary_of(find()))
        labels = None if found is None else LabelSummary(**found)
        directory = cached(
            root,
            f"images-{self.key(source, labels, progress)}",
            lambda aside: self._build(source, find(), aside, progress),
            resumes=True,
        )
        summary = read_summary(directory)
        unreadable = [Unreadable(**entry) for entry in summary["unreadable"]]
        if unreadable and self.on_unreadable == "error":
            raise self.cannot_read(unreadable[0])
        if unreadable and progress and Cluster.from_environment().rank == 0:
            logger(__name__).warning(_skipped(unreadable, summary["images"]))
        chosen = choose(root, directory, self.held_out, self.held_out_samples, self.left_out)
        facts = facts_of(summary, source, chosen.num_held_out) | self.upscaled(summary)
        facts |= self._few(len(chosen.train))
        if chosen.num_left_out:
            facts["leaking images dropped"] = chosen.num_left_out
        if labels is not None:
            facts |= facts_of_labels(labels, chosen.num_by_class, summary)
        train, held_out = self._side(directory, chosen.train), self._side(directory, chosen.held_out)
        classes = () if labels is None else tuple(labels.classes)
        shuffle = Shuffle(self.shuffle, self.open_blocks)
        return Datasets(train=train, held_out=held_out, facts=facts, classes=classes, shuffle=shuffle)

    def sides(self, progress: bool = True) -> Sides | None:
        """Returns the images of both sides, for an audit; decodes them where no run has done so yet.

        None for shards that are not on this machine: an audit would download all of them.

        Args:
            progress: whether to show progress bars.
        """
        loaded = replace(self, left_out=NOTHING).loaded(progress)
        train, held_out = loaded.train, loaded.held_out
        if isinstance(train, ShardedPyramid):
            return image_sides(train, held_out)
        names = self.source().names()
        return Sides(
            train=lambda: _entries(train, names),
            held_out=lambda: _entries(held_out, names),
            fingerprint=f"{train.fingerprint} {held_out.fingerprint}",
            num_train=len(train),
            num_held_out=len(held_out),
        )

    def without(self, left_out: LeftOut) -> "Images":
        """Returns the specification without these training images, too."""
        return replace(self, left_out=self.left_out | left_out)

    def upscaled(self, summary: Mapping[str, Any]) -> dict[str, int | str]:
        """Returns the fact that images were smaller than the resolution, where some were."""
        num = summary["upscaled"]
        if not num:
            return {}
        smaller = f"; set data.resolution={self.resolution // 2}" if self.resolution > SMALLEST else ""
        said = (
            f"{num:,} of {summary['images']:,}, from fewer than {self.resolution} pixels, so they are blurred{smaller}"
        )
        return {UPSCALED: said}

    def _few(self, num_train: int) -> dict[str, int | str]:
        if num_train >= MIN_TRAIN or self.augment != "none":
            return {}
        said = (
            f"{num_train:,}, below {MIN_TRAIN:,}: a discriminator learns so few by heart; set data.augment=ada, "
            f"data.horizontal_flips=true where mirrored images are as likely, or weights=RUN of a run on similar images"
        )
        return {FEW: said}

    def _side(self, directory: Path, rows: Rows) -> Pyramid:
        return Pyramid(directory, rows, resolution=self.resolution, channels=self.channels, largest=self.resolution)

    def _shards(self) -> ShardIndex | None:
        return None if self.path is None else find_shards(self.path, "images")

    def _load_shards(self, shards: ShardIndex, progress: bool) -> Datasets:
        made_with = shards.settings
        if self.resolution > made_with["resolution"]:
            raise shards.contradicts("resolution", self.resolution, made_with["resolution"])
        if self.channels != made_with["channels"]:
            raise shards.contradicts("channels", self.channels, made_with["channels"])
        for name in ("held_out", "fit", "background", "frames", "labels"):
            if (given := getattr(self, name)) not in (getattr(Images, name), made_with[name]):
                raise shards.contradicts(name, given, made_with[name])
        require_sizes(shards)
        if self.verify == "full":
            verify(shards, cache_root(self.cache_dir), progress)
        train = ShardedPyramid(shards, "train", resolution=self.resolution).without(self.left_out)
        if not len(train):
            raise DataError("on_leak=drop leaves no image to train on: set on_leak=warn, or give other images")
        held_out = ShardedPyramid(shards, "held_out", resolution=self.resolution).most(self.held_out_samples)
        facts = {**shards.facts, **self._few(len(train))}
        if dropped := shards.layouts["train.keys"].num_items - len(train):
            facts["leaking images dropped"] = dropped
        classes = tuple(shards.more["classes"])
        shuffle = Shuffle(self.shuffle, self.open_blocks)
        return Datasets(train=train, held_out=held_out, facts=facts, classes=classes, shuffle=shuffle)

    def source(self) -> ImageSource:
        """Returns where the files come from."""
        if self.path is None:
            return Glyphs(self.resolution)
        if is_url(self.path):
            return find_remote_source(str(self.path), self.field, self.label_field)
        return find_source(Path(self.path).expanduser(), self.field, self.label_field)

    def key(self, source: ImageSource, labels: Labels | LabelSummary | None, progress: bool) -> str:
        """Returns a hash of everything that decides the pixels and the labels."""
        content = source.fingerprint(cache_root(self.cache_dir), progress)
        settings: tuple[Any, ...] = (_FORMAT, content, self.resolution, self.channels)
        settings += (self.max_pixels, self.max_file_mb, self.fit, self.background, self.frames)
        if labels is not None:
            settings += (labels.digest,)
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def decoder(self, resolution: int | None = None) -> Decoder:
        """Returns what decodes the files as these settings say.

        Args:
            resolution: pixels; None: that of the data.
        """
        return Decoder(
            resolution=resolution or self.resolution,
            channels=self.channels,
            fit=self.fit,
            background=self.background,
            frames=self.frames,
            max_pixels=self.max_pixels,
            max_file_mb=self.max_file_mb,
        )

    def _build(self, source: ImageSource, labels: Labels | None, directory: Path, progress: bool) -> None:
        decode, names = partial(self.decoder().decode, source), source.names()
        of = None if labels is None else labels.of
        with PyramidWriter(directory, self.resolution, self.channels, names, of) as pyramid:
            if pyramid.left_out and self.on_unreadable == "error":
                raise self.cannot_read(Unreadable(**pyramid.left_out[0]))
            left = names[pyramid.num_taken :]
            for result in track(in_order(decode, left, self.num_workers), "reading images", len(left), progress):
                if not isinstance(result, Unreadable):
                    pyramid.append(
                        *result.frames, is_upscaled=result.is_upscaled, is_profile_ignored=result.is_profile_ignored
                    )
                elif self.on_unreadable == "error":
                    raise self.cannot_read(result)
                else:
                    pyramid.leave_out(vars(result))
            unreadable = [Unreadable(**file) for file in pyramid.left_out]
            if len(pyramid) < 2:
                raise DataError(
                    f"data.path={self.path} holds {len(pyramid)} different images that can be read, too few to hold "
                    f"one out; add more" + (f" (unreadable: {_listed(unreadable)})" if unreadable else "")
                )
            summary = {"images": len(pyramid), "duplicates": pyramid.num_duplicates, "unreadable": pyramid.left_out}
            summary |= {"upscaled": pyramid.num_upscaled, "profiles_ignored": pyramid.num_profiles_ignored}
            if labels is not None:
                summary["contradictions"] = pyramid.num_contradictions
            write_summary(directory, summary)

    def cannot_read(self, file: Unreadable) -> DataError:
        """Returns the error for a file that cannot be decoded."""
        return DataError(
            f"data.path={self.path}: {file.name} cannot be read as an image ({file.reason}); "
            f"repair or remove it, or set data.on_unreadable=skip"
        )


def _entries(pyramid: Pyramid, names: Sequence[str]) -> Iterator[Entry]:
    small = pyramid.at(min(COMPARED, pyramid.largest))
    keyed = zip(pyramid.keys.tolist(), pyramid.files.tolist(), strict=True)
    for number, (key, file) in enumerate(keyed):
        yield Entry(key, names[file], pixels=small[number]["images"].numpy())


def facts_of(summary: Mapping[str, Any], source: ImageSource, num_held_out: int) -> dict[str, int | str]:
    """Returns what is worth knowing of a build, by the names of a summary."""
    facts: dict[str, int | str] = {
        "images": summary["images"],
        "held-out images": num_held_out,
        "duplicates dropped": summary["duplicates"],
    }
    if summary["unreadable"]:
        facts["unreadable images"] = len(summary["unreadable"])
    if num := summary["profiles_ignored"]:
        facts[PROFILES] = f"{num:,}, which do not fit the pixels of their files: the colours are taken for sRGB"
    if unread := listed_counts(source.not_read()):
        facts["files not read"] = unread
    if num_held_out < _MIN_HELD_OUT:
        images = f"{num_held_out} held-out image{'s are' if num_held_out > 1 else ' is'}"
        facts["note"] = f"{images} too few to measure well: raise data.held_out"
    return facts


def facts_of_labels(
    labels: Labels | LabelSummary, num_by_class: Sequence[int], summary: Mapping[str, Any]
) -> dict[str, int | str]:
    """Returns what is worth knowing of labels; `num_by_class` are the training images of each."""
    num_by_class = [*num_by_class, *[0] * (len(labels.classes) - len(num_by_class))]
    facts: dict[str, int | str] = {
        "classes": len(labels.classes),
        "training images of a class": f"{min(num_by_class):,} to {max(num_by_class):,}",
    }
    if num := summary["contradictions"]:
        facts[TWO_LABELS] = f"{num:,}: the first label in the order of the names is used"
    if empty := [name for name, num in zip(labels.classes, num_by_class, strict=True) if not num]:
        facts[EMPTY] = ", ".join(empty[:_NUM_NAMED]) + (" ..." if len(empty) > _NUM_NAMED else "")
    if labels.num_others:
        facts[OTHERS] = f"{labels.num_others:,}"
    return facts


def _skipped(unreadable: list[Unreadable], num_read: int) -> str:
    return f"{len(unreadable)} unreadable images skipped, {num_read} read; skipped: {_listed(unreadable)}"


def _listed(unreadable: list[Unreadable]) -> str:
    named = ", ".join(f"{file.name} ({file.reason})" for file in unreadable[:_NUM_NAMED])
    return named + (f" and {len(unreadable) - _NUM_NAMED} more" if len(unreadable) > _NUM_NAMED else "")


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise DataError(f"data.{name}={value}: must be {allowed}; set data.{name}")


def _is_colour(text: str) -> bool:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(text)
    except (AttributeError, ValueError):
        return False
    return True
