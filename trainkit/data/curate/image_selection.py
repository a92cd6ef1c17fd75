"""The selection of images: rule after rule, and the files that are kept."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trainkit.data.curate.destination import Destination
from trainkit.data.curate.diversity import lowest_share, similarities
from trainkit.data.curate.functions import Judge
from trainkit.data.curate.image_features import SIDE as FEATURE_SIDE
from trainkit.data.curate.image_features import ImageFeatures
from trainkit.data.curate.image_files import require_inside, write_images
from trainkit.data.curate.rules import ImageRules
from trainkit.data.curate.selection import Choice, Selection, between
from trainkit.data.decoding import Decoded, Unreadable
from trainkit.data.formats.pictures import Pictures
from trainkit.data.image_sources import find_source
from trainkit.data.images import Images
from trainkit.data.inspection import SIDE
from trainkit.data.near_duplicates import groups, perceptual_hash, require_imagehash
from trainkit.data.parallel import in_order
from trainkit.data.progress import announced, track
from trainkit.errors import ConfigError, DataError, nearest

Form = Literal["copies", "links", "list"]

_EMBEDDED_AT_ONCE = 32


def select_images(
    path: Path,
    rules: ImageRules,
    to: Path | None,
    *,
    form: str = "copies",
    num_workers: int | None = None,
    progress: bool = True,
) -> Selection:
    """Decodes every image, drops what the rules say, and writes the files of the rest under their own names.

    Images are decoded once to measure them, and those that are left once more for a user's function and for diversity.

    Args:
        path: a folder or a zip file, which is not changed.
        rules: which images are kept; those that cannot be decoded never are.
        to: a folder that is written whole or not at all; None: only counts.
        form: `copies` of the files; `links`: hard links to those of a folder on the same file system; or `list`:
            `kept.txt` with their names.
        num_workers: threads that decode; None: one per core.
        progress: whether to show bars.

    Returns:
        What was kept and dropped.

    Raises:
        ConfigError: for a folder that cannot be written to, or a function that is not there.
        DataError: without the packages that a rule needs, and where nothing is left.
    """
    if form not in get_args(Form):
        raise ConfigError(f"--form={form}: must be one of {', '.join(get_args(Form))}.{nearest(form, get_args(Form))}")
    if rules.drop_near:
        require_imagehash()
    judge = None if rules.function is None else Judge(rules.function, rules.score_between is not None)
    features = None if rules.diverse is None else ImageFeatures()
    destination = None if to is None else Destination(to, path)
    chooser = _Chooser(path, rules, num_workers, progress)
    require_inside(chooser.names)
    chooser.measure()
    if judge is not None:
        chooser.judge(judge)
    if features is not None:
        chooser.spread(features)
    selection = chooser.result(form)
    kept = [name for name, is_left in zip(chooser.names, chooser.choice.left.tolist(), strict=True) if is_left]
    if not kept:
        last = next(step for step in chooser.choice.steps if step.before == step.dropped)
        raise DataError(f"no image is left: {last.rule} dropped the last {last.dropped:,}; loosen that rule")
    if destination is None:
        return selection
    with destination as directory:
        files = write_images(chooser.source, path, kept, directory, form, progress)
        written = replace(selection, files=files)
        written.write(directory)
    return written


class _Chooser:
    """What is kept of each image: some 100 bytes."""

    def __init__(self, path: Path, rules: ImageRules, num_workers: int | None, progress: bool) -> None:
        self._path, self._rules, self._num_workers, self._progress = path, rules, num_workers, progress
        self._images = Images(path=path, labels="none", on_unreadable="skip")
        source = find_source(path)
        if isinstance(source, Pictures):
            raise DataError(f"{path} holds shards: images are selected of a folder or a zip file; give that")
        self.source = source
        self.names = [*self.source.names()]
        self.choice = Choice(len(self.names))
        self._unreadable: list[Unreadable] = []
        self._keys, self._bytes = np.zeros(len(self.names), np.uint64), np.zeros(len(self.names), np.int64)

    def measure(self) -> None:
        """Applies the rules that a look at each image decides."""
        rules, num = self._rules, len(self.names)
        sides, looks = np.zeros(num, np.int64), np.zeros(num, np.uint64)
        is_broken = np.zeros(num, np.bool_)
        decode = partial(self._images.decoder(SIDE).decode, self.source)

        def look(name: str) -> tuple[Decoded | Unreadable, int, int, int]:
            found = decode(name)
            if isinstance(found, Unreadable):
                return found, 0, 0, 0
            pixels = found.frames[0]
            key = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
            return found, key, perceptual_hash(pixels) if rules.drop_near else 0, self.source.num_bytes(name)

        results = in_order(look, self.names, self._num_workers)
        for number, (found, key, of_look, size) in enumerate(track(results, "reading images", num, self._progress)):
            if isinstance(found, Unreadable):
                self._unreadable.append(found)
                is_broken[number] = True
                continue
            self._keys[number], looks[number], self._bytes[number] = key, of_look, size
            sides[number] = min(found.size)
        self.choice.drop("broken", is_broken)
        if rules.min_side is not None:
            self.choice.drop(f"below {rules.min_side:,} pixels", sides < rules.min_side)
        if rules.drop_exact:
            left = np.flatnonzero(self.choice.left)
            is_repeated = self.choice.left
            is_repeated[left[np.unique(self._keys[left], return_index=True)[1]]] = False
            self.choice.drop("exact duplicates", is_repeated)
        if rules.drop_near:
            left = np.flatnonzero(self.choice.left)
            is_near = np.zeros(num, np.bool_)
            for group in groups(looks[left]):
                is_near[left[group[1:]]] = True
            self.choice.drop("near-duplicates", is_near)

    def judge(self, judge: Judge) -> None:
        """Applies a user's function."""
        rules, scores = self._rules, np.full(len(self.names), np.nan)
        left = np.flatnonzero(self.choice.left)
        for number in track(left.tolist(), "calling the function", len(left), self._progress):
            with self.source.open(self.names[number]) as image:
                scores[number] = judge(image, self.names[number])
        if rules.score_between is None:
            self.choice.drop(f"by {rules.function}", scores == 0.0)
            return
        is_kept, low, high = between(scores, rules.score_between)
        self.choice.drop(f"score of {rules.function}", ~is_kept, low=low, high=high)

    def spread(self, features: ImageFeatures) -> None:
        """Applies the rule on what is like another image."""
        share = self._rules.diverse
        numbers = np.flatnonzero(self.choice.left)
        if share is None or not len(numbers):
            return
        with tempfile.TemporaryFile(prefix="trainkit-features-") as file:
            for pixels in self._squares(numbers):
                features(pixels).tofile(file)
            file.flush()
            embeddings = np.memmap(file, np.float32, "r").reshape(len(numbers), -1)
            with announced("comparing features", self._progress):
                similarity = similarities(embeddings)
        is_kept = lowest_share(similarity, share)
        is_dropped = np.zeros(len(self.names), np.bool_)
        is_dropped[numbers[~is_kept]] = True
        cut = round(float(similarity[is_kept].max()), 4)
        self.choice.drop(f"diversity, keeping {share:g}", is_dropped, similarity=cut)

    def _squares(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        names: Sequence[str] = [self.names[number] for number in numbers]
        decode = partial(self._images.decoder(FEATURE_SIDE).decode, self.source)
        decoded = track(in_order(decode, names, self._num_workers), "comparing images", len(names), self._progress)
        while batch := [*islice(decoded, _EMBEDDED_AT_ONCE)]:
            for one in batch:
                if isinstance(one, Unreadable):
                    raise DataError(f"{one.name} was changed while it was read: type the same command again")
            yield np.stack(
                [
                    np.broadcast_to(one.frames[0], (3, FEATURE_SIDE, FEATURE_SIDE))
                    for one in batch
                    if isinstance(one, Decoded)
                ]
            )

    def result(self, form: str) -> Selection:
        """Returns what was decided."""
        left = self.choice.left
        names = "\0".join(name for name, is_left in zip(self.names, left.tolist(), strict=True) if is_left)
        content = hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16)
        content.update(self._keys[left].astype("<u8").tobytes())
        return Selection(
            kind="images",
            source=str(self._path),
            rules=self._rules.facts(),
            steps=tuple(self.choice.steps),
            before={"images": len(left), "bytes of readable files": int(self._bytes.sum())},
            after={"images": int(left.sum()), "bytes of readable files": int(self._bytes[left].sum())},
            unread=tuple({"file": one.name, "reason": one.reason} for one in self._unreadable),
            content=content.hexdigest(),
            facts={"form": form},
        )
