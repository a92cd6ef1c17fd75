"""Text to shards: read twice by all processes, split by the hashes of all documents, and tokenized in parts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cache_root
from trainkit.data.corpus import Corpus, find_corpus
from trainkit.data.files import counted, state_of
from trainkit.data.packing import dtype_for
from trainkit.data.readers import documents_of
from trainkit.data.shards.index import TOKENIZER
from trainkit.data.shards.layout import Layout, items_per_shard
from trainkit.data.shards.work import Crew, Work
from trainkit.data.shards.writer import Parts, finish, write_shard
from trainkit.data.split import DROPPED, HELD_OUT, TRAIN, content_key, split_keys
from trainkit.data.text import VOCABULARY_SAMPLE_CHARS, Text
from trainkit.data.tokenizer import WordPiece
from trainkit.errors import DataError

CHUNK_CHARS = 1 << 22
"""Of the text that is tokenized at a time: what a process that is killed loses at most."""
GROUP_BYTES = 1 << 24
"""Of the files that are scanned at a time; a larger file is scanned as a whole."""
_ENCODED_AT_ONCE = 1024  # documents
_SIDES = {TRAIN: "train", HELD_OUT: "held_out"}
_SAMPLE = 4  # beside the side of a document: whether the vocabulary is trained on it
_ARRAYS = ("train", "held_out", "train.ends", "held_out.ends")
_NUM_NAMED = 100  # rows left out that the index names
FILES, SCAN, SIDE, CHUNKS, SAMPLES, VOCABULARY, TOKENS, COUNTS = (
    "files",
    "scan",
    "side",
    "chunks",
    "samples",
    "vocabulary",
    "tokens",
    "counts",
)


@dataclass(frozen=True)
class TextBuild:
    """A build of shards of text; every process that takes part has its own.

    Args:
        text: what is read, and how.
        folder: of the shards.
        work: of the build.
        shard_bytes: about how large a shard is.
        shard_mb: the same as it was given, for the index.
        skip: whether rows that cannot be read are left out and counted.
        chunk_chars: of text that is tokenized at a time.
        group_bytes: of files that are scanned at a time.
    """

    text: Text
    folder: Path
    work: Work
    shard_bytes: int
    shard_mb: int
    skip: bool
    chunk_chars: int = CHUNK_CHARS
    group_bytes: int = GROUP_BYTES

    def corpus(self) -> Corpus:
        """Finds the files, once for all processes."""

        def write(path: Path) -> None:
            found = self._find()
            names = {side: [str(file) for file in getattr(found, side)] for side in ("train", "held_out", "unread")}
            path.write_text(json.dumps(names))

        self.work.make(FILES, 0, write, force=True)
        return _corpus(*_stamped(self.work.result(FILES)), self.text.field)

    def _find(self) -> Corpus:
        assert self.text.path is not None
        return find_corpus(self.text.path, self.text.field)

    def state(self) -> str:
        """A hash of names, sizes and times of the files."""
        corpus = self.corpus()
        return state_of((*corpus.held_out, *corpus.train))

    def fingerprint(self) -> str:
        """A hash of the content of the files."""
        return self._find().fingerprint(cache_root(self.text.cache_dir))

    def run(self, crew: Crew) -> None:
        """Makes the shards."""
        groups = range(len(self._groups()))
        crew.run(groups, self.scan, "reading text")
        crew.run([0], self.settle, "splitting")
        crew.run([0], self.divide, "dividing")
        chunks = range(len(self._table(CHUNKS)["bounds"]) - 1)
        if self.text.vocab_file is None:
            crew.run(chunks, self.sample, "reading text for the vocabulary")
        crew.run([0], partial(self.learn, num=len(chunks), progress=crew.progress), "making the vocabulary")
        crew.run(chunks, self.tokenize, "tokenizing")
        crew.run([0], partial(self.count, num=len(chunks)), "counting")
        for parts in self._parts():
            crew.run(range(parts.layout.num_shards), partial(self.assemble, name=parts.layout.name), "writing shards")
        crew.run([0], partial(self.finish, progress=crew.progress), "writing the index")

    # -- the first reading: hashes -----------------------------------------------------------------------------------

    def scan(self, number: int, force: bool = False) -> bool:
        """Hashes the documents of a group of files."""

        def write(path: Path) -> None:
            keys, chars, counts, left_out = list[int](), list[int](), list[int](), list[str]()
            corpus = self.corpus()
            files = corpus.held_out + corpus.train
            for file in files[slice(*self._groups()[number])]:
                before = len(keys)
                for text in documents_of(file, self.text.field, partial(_note, left_out) if self.skip else None):
                    keys.append(content_key(text))
                    chars.append(len(text))
                counts.append(len(keys) - before)
            named = np.array(json.dumps({"num": len(left_out), "first": left_out[:_NUM_NAMED]}))
            hashes, sizes = np.array(keys, np.uint64), np.array(chars, np.uint32)
            _save(path, keys=hashes, chars=sizes, counts=np.array(counts, np.int64), left_out=named)

        try:
            return self.work.make(SCAN, number, write, force=force)
        except DataError as error:
            raise DataError(f"{error} (or set on_unreadable=skip, which leaves it out and counts it)") from None

    def settle(self, _: int, force: bool = False) -> bool:
        """Decides the side of every document."""

        def write(path: Path) -> None:
            scans = [self._table(SCAN, number) for number in range(len(self._groups()))]
            keys = np.concatenate([scan["keys"] for scan in scans])
            counts = np.concatenate([scan["counts"] for scan in scans])
            num_own = int(counts[: len(self.corpus().held_out)].sum())
            num_chars = sum(int(scan["chars"].sum(dtype=np.int64)) for scan in scans)
            own = np.arange(len(keys)) < num_own
            split = split_keys(keys, own, num_chars, self.text.held_out, VOCABULARY_SAMPLE_CHARS)
            with path.open("wb") as file:
                np.save(file, split.side | (split.samples * np.uint8(_SAMPLE)))

        return self.work.make(SIDE, 0, write, force=force)

    def divide(self, _: int, force: bool = False) -> bool:
        """Divides the documents into chunks of about as much text."""

        def write(path: Path) -> None:
            counts, bounds, first, chars = [], [0], 0, 0
            for number in range(len(self._groups())):
                scan = self._table(SCAN, number)
                counts.append(scan["counts"])
                through = np.cumsum(scan["chars"], dtype=np.int64) + chars
                places = np.flatnonzero(np.diff(through // self.chunk_chars, prepend=chars // self.chunk_chars)) + 1
                bounds += (places + first).tolist()
                first += len(through)
                chars = int(through[-1]) if len(through) else chars
            starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
            _save(path, bounds=np.unique([*bounds, first]), file_starts=starts)

        return self.work.make(CHUNKS, 0, write, force=force)

    # -- the second: tokens ------------------------------------------------------------------------------------------

    def sample(self, number: int, force: bool = False) -> bool:
        """Collects the documents of a chunk that the vocabulary is trained on."""

        def write(path: Path) -> None:
            first, stop = self._chunk(number)
            marks = self._sides()[first:stop] & _SAMPLE
            texts = self._documents(first, stop) if marks.any() else iter(())
            path.write_text(json.dumps([text for text, mark in zip(texts, marks, strict=False) if mark]))

        return self.work.make(SAMPLES, number, write, force=force)

    def learn(self, _: int, num: int, progress: bool, force: bool = False) -> bool:
        """Makes the tokenizer."""

        def texts() -> Iterator[str]:
            for number in range(num):
                yield from json.loads(self.work.result(SAMPLES, number).read_bytes())

        def write(path: Path) -> None:
            path.write_text(self.text.make_tokenizer(texts(), progress).to_json(), encoding="utf-8")

        return self.work.make(VOCABULARY, 0, write, force=force)

    def tokenizer(self) -> WordPiece:
        """Returns the tokenizer of the build."""
        return _tokenizer(*_stamped(self.work.result(VOCABULARY)))

    def tokenize(self, number: int, force: bool = False) -> bool:
        """Makes the tokens of a chunk, and the places in it at which documents end."""
        return self.work.make(TOKENS, number, partial(self._write_tokens, number), force=force)

    def _write_tokens(self, number: int, path: Path) -> None:
        tokenizer, (first, stop) = self.tokenizer(), self._chunk(number)
        sides = self._sides()[first:stop] & ~np.uint8(_SAMPLE)
        tokens: dict[int, list[int]] = {TRAIN: [], HELD_OUT: []}
        ends: dict[int, list[int]] = {TRAIN: [], HELD_OUT: []}
        done = {side: list[NDArray[Any]]() for side in _SIDES}
        before = dict.fromkeys(_SIDES, 0)
        dtype = dtype_for(tokenizer.vocab_size).newbyteorder("<")
        kept = ((side, text) for side, text in zip(sides.tolist(), self._documents(first, stop), strict=True) if side)
        while group := list(islice(kept, _ENCODED_AT_ONCE)):
            for (side, _), encoded in zip(group, tokenizer.encode_batch([text for _, text in group]), strict=True):
                own = tokens[side]
                own += encoded
                ends[side].append(before[side] + len(own))
                own.append(tokenizer.end)
            for side, own in tokens.items():
                done[side].append(np.array(own, dtype))
                before[side] += len(own)
                own.clear()
        arrays: dict[str, NDArray[Any]] = {}
        for side, name in _SIDES.items():
            arrays[name] = np.concatenate([np.empty(0, dtype), *done[side]])
            arrays[f"{name}.ends"] = np.array(ends[side], np.int64)
        _save(path, **arrays, counts=np.array([len(arrays[name]) for name in _ARRAYS], np.int64))

    def count(self, _: int, num: int, force: bool = False) -> bool:
        """Gathers how much every chunk holds of each array."""

        def write(path: Path) -> None:
            counts = [self._table(TOKENS, number)["counts"] for number in range(num)]
            _save(path, counts=np.array(counts, np.int64))

        return self.work.make(COUNTS, 0, write, force=force)

    # -- the shards --------------------------------------------------------------------------------------------------

    def assemble(self, number: int, name: str, force: bool = False) -> bool:
        """Writes a shard."""
        parts = next(parts for parts in self._parts() if parts.layout.name == name)
        return write_shard(self.folder, self.work, parts, number, force=force)

    def _parts(self) -> list[Parts]:
        counts = dict(zip(_ARRAYS, self._table(COUNTS)["counts"].T, strict=True))
        token = dtype_for(self.tokenizer().vocab_size).newbyteorder("<").str
        found = []
        for name in _ARRAYS:
            dtype = "<i8" if name.endswith(".ends") else token
            per_shard = items_per_shard(np.dtype(dtype).itemsize, self.shard_bytes)
            side = name.removesuffix(".ends")
            offsets = np.cumsum(counts[side]) - counts[side] if side != name else None
            read = partial(_items, self.work, name, offsets)
            found.append(Parts(Layout(name, dtype, (), int(counts[name].sum()), per_shard), counts[name], read))
        return found

    def finish(self, _: int, progress: bool, force: bool = False) -> bool:
        """Writes the index."""

        def write(path: Path) -> None:
            self._finish(progress)
            path.touch()

        return self.work.make("finished", 0, write, force=force)

    def _finish(self, progress: bool) -> None:
        corpus, tokenizer = self.corpus(), self.tokenizer()
        source = corpus.fingerprint(cache_root(self.text.cache_dir), progress)
        layouts = {parts.layout.name: parts.layout for parts in self._parts()}
        sides = self._sides() & ~np.uint8(_SAMPLE)
        facts: dict[str, int | str] = {
            "documents": layouts["train.ends"].num_items,
            "tokens": layouts["train"].num_items,
            "held-out documents": layouts["held_out.ends"].num_items,
            "held-out tokens": layouts["held_out"].num_items,
            "duplicates dropped": int((sides == DROPPED).sum()),
        }
        if corpus.unread:
            facts["files not read"] = counted(corpus.unread)
        left_out = [json.loads(str(self._table(SCAN, n)["left_out"])) for n in range(len(self._groups()))]
        if num := sum(one["num"] for one in left_out):
            facts["rows left out"] = num
        named = [line for one in left_out for line in one["first"]][:_NUM_NAMED]
        finish(
            self.folder,
            self.work,
            [*layouts.values()],
            {
                "kind": "text",
                "content": self.text.content_of(source, tokenizer),
                "settings": {**settings_of(self.text, self.skip), "shard_mb": self.shard_mb},
                "facts": facts,
                "more": {"tokenizer": tokenizer.meaning, "vocab_size": tokenizer.vocab_size, "left_out": named},
                "source": {"fingerprint": source, "files": len(corpus.train) + len(corpus.held_out)},
            },
            {TOKENIZER: tokenizer.to_json()},
        )

    # -- what the parts share ----------------------------------------------------------------------------------------

    def _groups(self) -> list[tuple[int, int]]:
        return _groups(*_stamped(self.work.result(FILES)), self.text.field, self.group_bytes)

    def _chunk(self, number: int) -> tuple[int, int]:
        bounds = self._table(CHUNKS)["bounds"]
        return int(bounds[number]), int(bounds[number + 1])

    def _documents(self, first: int, stop: int) -> Iterator[str]:
        corpus = self.corpus()
        reader = _reader(*_stamped(self.work.result(CHUNKS)), corpus, self.text.field, self.skip)
        return reader.documents(first, stop)

    def _sides(self) -> NDArray[np.uint8]:
        return _mapped(*_stamped(self.work.result(SIDE)))

    def _table(self, phase: str, number: int = 0) -> Mapping[str, NDArray[Any]]:
        return _load(*_stamped(self.work.result(phase, number)))


def settings_of(text: Text, skip: bool) -> dict[str, Any]:
    """The settings that decide the shards, as JSON can hold them."""
    names = ("field", "vocab_size", "lowercase", "strip_accents", "tokenize_chinese_chars", "held_out")
    found: dict[str, Any] = {name: getattr(text, name) for name in names}
    given = None if text.vocab_file is None else WordPiece.read(Path(text.vocab_file), lowercase=text.lowercase).meaning
    return {**found, "vocab_file": given, "on_unreadable": "skip" if skip else "error"}


class _Reader:
    """Reads documents by number, and goes on in an open file where it can."""

    def __init__(self, corpus: Corpus, starts: NDArray[np.int64], field: str, skip: bool) -> None:
        self._files, self._starts, self._field, self._skip = corpus.held_out + corpus.train, starts, field, skip
        self._open, self._next = -1, 0
        self._texts: Iterator[str] = iter(())

    def documents(self, first: int, stop: int) -> Iterator[str]:
        """Yields the documents from `first` to before `stop`, in the order of the corpus."""
        for number in range(first, stop):
            file = int(np.searchsorted(self._starts, number, side="right")) - 1
            if file != self._open or number < self._next:
                skip = partial(_note, list[str]()) if self._skip else None
                self._texts = documents_of(self._files[file], self._field, skip)
                self._open, self._next = file, int(self._starts[file])
            text = next(islice(self._texts, number - self._next, None), None)
            if text is None:
                raise DataError(f"{self._files[file]} has changed since it was first read: remove DEST and begin again")
            self._next = number + 1
            yield text


def _stamped(path: Path) -> tuple[Path, int]:
    """A path and when its file was made: another build in this process may have one there."""
    return path, path.stat().st_mtime_ns


@lru_cache(maxsize=2)
def _corpus(path: Path, stamp: int, field: str) -> Corpus:
    names = json.loads(path.read_text())
    files = {side: tuple(map(Path, found)) for side, found in names.items()}
    return Corpus(files["train"], files["held_out"], field, files["unread"])


@lru_cache(maxsize=2)
def _groups(path: Path, stamp: int, field: str, most: int) -> list[tuple[int, int]]:
    """Runs of files, in their order, of about as many bytes."""
    corpus, groups, first, num_bytes = _corpus(path, stamp, field), [], 0, 0
    files = corpus.held_out + corpus.train
    for number, file in enumerate(files, start=1):
        num_bytes += file.stat().st_size
        if num_bytes >= most or number == len(files):
            groups.append((first, number))
            first, num_bytes = number, 0
    return groups


@lru_cache(maxsize=2)
def _reader(chunks: Path, stamp: int, corpus: Corpus, field: str, skip: bool) -> _Reader:
    return _Reader(corpus, _load(chunks, stamp)["file_starts"], field, skip)


@lru_cache(maxsize=2)
def _tokenizer(path: Path, stamp: int) -> WordPiece:
    return WordPiece.load(path)


@lru_cache(maxsize=2)
def _mapped(path: Path, stamp: int) -> NDArray[np.uint8]:
    sides: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return sides


@lru_cache(maxsize=4)
def _load(path: Path, stamp: int) -> Mapping[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _items(work: Work, name: str, offsets: NDArray[np.int64] | None, number: int) -> NDArray[Any]:
    found = _load(*_stamped(work.result(TOKENS, number)))[name]
    return found if offsets is None else found + offsets[number]


def _note(left_out: list[str], error: DataError) -> None:
    left_out.append(str(error))
