"""Images to shards: decoded in parts by all processes, then split by the hashes of all pixels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainkit.data.chosen_images import by_low_bits
from trainkit.data.decoding import Unreadable
from trainkit.data.image_sources import ImageSource
from trainkit.data.images import Images, facts_of, facts_of_labels
from trainkit.data.labels import Labels, find_labels
from trainkit.data.parallel import in_order
from trainkit.data.pyramid import key_of_pixels, levels, resolutions
from trainkit.data.shards.layout import Layout, items_per_shard
from trainkit.data.shards.pyramid import NAMES, level_name
from trainkit.data.shards.scan import load_arrays
from trainkit.data.shards.work import Crew, Work
from trainkit.data.shards.writer import Parts, finish, write_shard
from trainkit.data.split import lowest_fraction
from trainkit.errors import DataError
from trainkit.storage import Location

CHUNK_BYTES = 1 << 24
"""Of the pixels that are decoded at a time: what a process that is killed loses at most."""
_NUM_NAMED = 100  # files left out that the index names
DECODED, SETTLED = "decoded", "settled"
_SIDES = ("train", "held_out")


@dataclass(frozen=True)
class ImageBuild:
    """A build of shards of images; every process that takes part has its own.

    Args:
        images: what is read, and how.
        folder: of the shards.
        work: of the build.
        shard_bytes: about how large a shard is.
        shard_mb: the same as it was given, for the index.
        chunk_bytes: of pixels that are decoded at a time.
        most_files: that are decoded at a time.
    """

    images: Images
    folder: Location
    work: Work
    shard_bytes: int
    shard_mb: int
    chunk_bytes: int = CHUNK_BYTES
    most_files: int = 256

    def state(self) -> str:
        """A hash of the content of the source."""
        return self.fingerprint()

    def fingerprint(self) -> str:
        """A hash of the content of the source and of its labels, once per state of its files."""
        source, labels = _source(self.images, self.work)
        return self.images.key(source, labels, True)

    def run(self, crew: Crew) -> None:
        """Makes the shards."""
        num_names = len(_source(self.images, self.work)[0].names())
        chunks = range(-(-num_names // self._per_chunk))
        crew.run(chunks, self.decode, "reading images")
        crew.run([0], partial(self.settle, num=len(chunks)), "splitting")
        for layout in self._layouts().values():
            crew.run(range(layout.num_shards), partial(self.assemble, name=layout.name), "writing shards")
        crew.run([0], partial(self.finish, num=len(chunks)), "writing the index")

    @property
    def _per_chunk(self) -> int:
        image_bytes = self.images.channels * self.images.resolution**2
        return max(1, min(self.most_files, self.chunk_bytes // image_bytes))

    def decode(self, number: int, force: bool = False) -> bool:
        """Decodes a chunk of files."""
        return self.work.make(DECODED, number, partial(self._write_decoded, number), force=force)

    def _write_decoded(self, number: int, file: BinaryIO) -> None:
        source, _ = _source(self.images, self.work)
        first, decoder = number * self._per_chunk, self.images.decoder()
        of_level: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in resolutions(self.images.resolution)}
        keys, files, upscaled, unreadable, num_ignored = [], [], [], [], 0
        for place, name in enumerate(_names(self.images, self.work)[first : first + self._per_chunk], start=first):
            found = decoder.decode(source, name)
            if isinstance(found, Unreadable):
                if self.images.on_unreadable == "error":
                    raise self.images.cannot_read(found)
                unreadable.append(asdict(found))
                continue
            num_ignored += found.is_profile_ignored
            for frame in found.frames:
                keys.append(key_of_pixels(frame))
                files.append(place)
                upscaled.append(found.is_upscaled)
                for level in levels(frame):
                    of_level[level.shape[-1]].append(level)
        for size, images in of_level.items():  # each by itself: shards of one are made without reading the others
            content = b"".join(image.tobytes() for image in images)
            self.work.make(f"{DECODED}.{size:05}", number, partial(_write_bytes, content), force=True)
        np.savez(
            file,
            keys=np.array(keys, np.uint64),
            files=np.array(files, np.int64),
            upscaled=np.array(upscaled, bool),
            notes=np.array(json.dumps([unreadable, num_ignored])),
        )

    def settle(self, _: int, num: int, force: bool = False) -> bool:
        """Decides the side of every image."""
        return self.work.make(SETTLED, 0, partial(self._write_settled, num), force=force)

    def _write_settled(self, num: int, file: BinaryIO) -> None:
        chunks = [*in_order(partial(load_arrays, self.work, DECODED), range(num))]
        keys, files, upscaled = (
            np.concatenate([one[name] for one in chunks]) for name in ("keys", "files", "upscaled")
        )
        first, which = np.unique(keys, return_index=True, return_inverse=True)[1:]
        kept = np.zeros(len(keys), bool)
        kept[first] = True
        if len(first) < 2:
            raise DataError(
                f"SOURCE holds {len(first)} different images that can be read, too few to hold one out; add more"
            )
        _, labels = _source(self.images, self.work)
        of = np.full(len(keys), -1) if labels is None else np.asarray(labels.of, np.int64)[files]
        summary = {"images": len(first), "duplicates": len(keys) - len(first), "upscaled": int(upscaled[kept].sum())}
        summary["contradictions"] = int((of != of[first][which]).sum())
        keys, files, of = keys[kept], files[kept], of[kept]
        is_held_out = lowest_fraction(keys, self.images.held_out)
        rows = {"train": np.flatnonzero(~is_held_out), "held_out": by_low_bits(keys, is_held_out)}
        counts = np.array([len(chunk["keys"]) for chunk in chunks])
        arrays: dict[str, NDArray[Any]] = {"places": np.flatnonzero(kept), "counts": counts}
        for side, own in rows.items():
            arrays |= {f"{side}.rows": own, f"{side}.keys": keys[own], f"{side}.files": files[own]}
            arrays |= {f"{side}.labels": of[own]} if labels is not None else {}
        np.savez(file, summary=np.array(json.dumps(summary)), **arrays)  # type: ignore[arg-type]

    def assemble(self, number: int, name: str, force: bool = False) -> bool:
        """Writes a shard."""
        layout = self._layouts()[name]
        counts = np.array([layout.items_of(shard) for shard in range(layout.num_shards)], np.int64)
        parts = Parts(layout, counts, partial(self._items, name))
        return write_shard(self.folder, self.work, parts, number, force=force)

    def _items(self, name: str, shard: int) -> NDArray[Any]:
        layout, settled = self._layouts()[name], self._settled()
        start = shard * layout.items_per_shard
        chosen = slice(start, start + layout.items_of(shard))
        if name in settled:
            return settled[name][chosen]
        side, level = name.split(".")
        return self._pixels(settled["places"][settled[f"{side}.rows"][chosen]], int(level))

    def _pixels(self, places: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Images by their places among all that were decoded, duplicates counted."""
        ends = np.cumsum(self._settled()["counts"])
        chunks = np.searchsorted(ends, places, side="right")
        shape = (self.images.channels, size, size)
        found = np.empty((len(places), *shape), np.uint8)
        for chunk in np.unique(chunks).tolist():
            of_chunk = chunks == chunk
            begin = ends[chunk - 1] if chunk else 0
            pixels = np.frombuffer(self.work.read(f"{DECODED}.{size:05}", chunk), np.uint8)
            found[of_chunk] = pixels.reshape(-1, *shape)[places[of_chunk] - begin]
        return found

    def _settled(self) -> Mapping[str, NDArray[Any]]:
        return load_arrays(self.work, SETTLED)

    def _layouts(self) -> dict[str, Layout]:
        settled = self._settled()
        found = {}
        for side in _SIDES:
            num = len(settled[f"{side}.rows"])
            for size in resolutions(self.images.resolution):
                shape = (self.images.channels, size, size)
                per_shard = items_per_shard(self.images.channels * size**2, self.shard_bytes)
                found[level_name(side, size)] = Layout(level_name(side, size), "|u1", shape, num, per_shard)
            for part, dtype in (("keys", "<u8"), ("files", "<i8"), ("labels", "<i8"), ("rows", "<i8")):
                if (name := f"{side}.{part}") in settled:
                    found[name] = Layout(name, dtype, (), num, items_per_shard(8, self.shard_bytes))
        return found

    def finish(self, _: int, num: int, force: bool = False) -> bool:
        """Writes the index."""
        return self.work.make("finished", 0, lambda _: self._finish(num), force=force)

    def _finish(self, num: int) -> None:
        source, labels = _source(self.images, self.work)
        settled = self._settled()
        decoded = in_order(partial(load_arrays, self.work, DECODED), range(num))
        notes = [json.loads(str(one["notes"])) for one in decoded]
        unreadable = [file for found, _ in notes for file in found]
        summary = {**json.loads(str(settled["summary"])), "unreadable": unreadable}
        summary["profiles_ignored"] = sum(ignored for _, ignored in notes)
        facts = facts_of(summary, source, len(settled["held_out.rows"])) | self.images.upscaled(summary)
        if labels is not None:
            facts |= facts_of_labels(labels, np.bincount(settled["train.labels"]).tolist(), summary)
        text = "".join(json.dumps(name) + "\n" for name in source.names())
        self.work.put(self.folder.child(NAMES), partial(_write_bytes, text.encode()))
        key = self.images.key(source, labels, False)
        rows = {side: _digest(settled[f"{side}.rows"]) for side in _SIDES}
        left_out = [f"{file['name']}: {file['reason']}" for file in unreadable]
        classes = list(labels.classes) if labels is not None else []
        finish(
            self.folder,
            self.work,
            [*self._layouts().values()],
            {
                "kind": "images",
                "content": f"images-{key}",
                "settings": {**settings_of(self.images), "shard_mb": self.shard_mb},
                "facts": facts,
                "more": {"classes": classes, "rows": rows, "left_out": left_out[:_NUM_NAMED]},
                "source": {"fingerprint": key, "files": len(source.names())},
            },
            {},
        )


def settings_of(images: Images) -> dict[str, Any]:
    """The settings that decide the shards, as JSON can hold them."""
    names = ("resolution", "channels", "held_out", "max_pixels", "max_file_mb", "on_unreadable")
    return {name: getattr(images, name) for name in (*names, "fit", "background", "frames", "labels")}


# Once for each build: between two, the source may have changed.
@lru_cache(maxsize=2)
def _source(images: Images, work: Work) -> tuple[ImageSource, Labels | None]:
    source = images.source()
    return source, find_labels(source, images.labels)


@lru_cache(maxsize=2)
def _names(images: Images, work: Work) -> list[str]:
    return [*_source(images, work)[0].names()]


def _write_bytes(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=16).hexdigest()
