"""Text to shards: read once by all processes, split by the hashes of all documents, and tokenized in parts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cache_root
from trainkit.data.corpus import Corpus, find_corpus
from trainkit.data.files import counted, state_of
from trainkit.data.left_out_rows import NUM_NAMED
from trainkit.data.parallel import in_order
from trainkit.data.shards.chunk_tokens import ARRAYS, token_dtype, tokens_of
from trainkit.data.shards.index import TOKENIZER
from trainkit.data.shards.layout import Layout, items_per_shard
from trainkit.data.shards.scan import Scan, keys_of, load_arrays, scan, texts_of
from trainkit.data.shards.work import Crew, Work
from trainkit.data.shards.writer import Parts, finish, write_shard
from trainkit.data.split import DROPPED, split_keys
from trainkit.data.text import VOCABULARY_SAMPLE_CHARS, Text
from trainkit.data.tokenizer import WordPiece
from trainkit.errors import DataError
from trainkit.storage import Location

CHUNK_CHARS = 1 << 22
"""Of the text that is tokenized at a time: what a process that is killed loses at most."""
GROUP_BYTES = 1 << 24
"""Of the files that are read at a time; a larger file is read as a whole, by one process."""
FILES, SIDES, BOUNDS, SAMPLES, VOCABULARY = "files", "sides", "bounds", "samples", "vocabulary"
TRAIN, TOKENS, COUNTS, FINISHED = "tokens.train", "tokens", "counts", "finished"
_SIDE, _SAMPLE = 3, 4  # bits of a document: its side; whether the vocabulary is trained on it


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
        group_bytes: of files that are read at a time.
    """

    text: Text
    folder: Location
    work: Work
    shard_bytes: int
    shard_mb: int
    skip: bool
    chunk_chars: int = CHUNK_CHARS
    group_bytes: int = GROUP_BYTES

    def state(self) -> str:
        """A hash of names, sizes and times of the files."""
        corpus = self._find()
        return state_of((*corpus.held_out, *corpus.train))

    def fingerprint(self) -> str:
        """A hash of the content of the files."""
        return self._find().fingerprint(cache_root(self.text.cache_dir))

    def run(self, crew: Crew) -> None:
        """Makes the shards."""
        crew.run([0], self.find, "listing")
        crew.run(range(len(self._groups())), self.scan, "reading text")
        crew.run([0], self.split, "splitting")
        chunks = range(self._num_chunks())
        if self.text.vocab_file is None:
            crew.run(chunks, self.sample, "choosing text for the vocabulary")
        crew.run([0], partial(self.learn, progress=crew.progress), "making the vocabulary")
        crew.run(chunks, self.tokenize, "tokenizing")
        crew.run([0], self.count, "counting")
        for parts in self._parts():
            crew.run(range(parts.layout.num_shards), partial(self.assemble, name=parts.layout.name), "writing shards")
        crew.run([0], partial(self.finish, progress=crew.progress), "writing the index")

    # -- documents ---------------------------------------------------------------------------------------------------

    def find(self, _: int, force: bool = False) -> bool:
        """Finds the files, once for all processes, and divides them into groups, none with files of both splits."""

        def write(to: BinaryIO) -> None:
            found, groups = self._find(), list[dict[str, Any]]()
            for is_own, files in ((True, found.held_out), (False, found.train)):
                num_bytes = self.group_bytes
                for file in files:
                    if num_bytes >= self.group_bytes:
                        groups.append({"is_own": is_own, "files": []})
                        num_bytes = 0
                    groups[-1]["files"].append(str(file))
                    num_bytes += file.stat().st_size
            to.write(json.dumps({"groups": groups, "unread": counted(found.unread)}).encode())

        return self.work.make(FILES, 0, write, force=force)

    def scan(self, number: int, force: bool = False) -> bool:
        """Reads a group of files."""
        files = [Path(name) for name in self._groups()[number]["files"]]
        try:
            return scan(self.work, number, files, self.text.field, self.skip, self.chunk_chars, force=force)
        except DataError as error:
            raise DataError(f"{error} (or set on_unreadable=skip, which leaves it out and counts it)") from None

    def split(self, _: int, force: bool = False) -> bool:
        """Decides the side of every document."""

        def write(file: BinaryIO) -> None:
            scans = Scan.all(self.work, len(self._groups()))
            chunks = [chunk for one in scans for chunk in one.chunks]
            counts = [count for one in scans for count in one.counts]
            own = [np.full(sum(one.counts), group["is_own"]) for one, group in zip(scans, self._groups(), strict=True)]
            split = split_keys(
                np.concatenate([np.empty(0, np.uint64), *in_order(partial(keys_of, self.work), chunks)]),
                np.concatenate([np.empty(0, bool), *own]),
                sum(one.num_chars for one in scans),
                self.text.held_out,
                VOCABULARY_SAMPLE_CHARS,
            )
            arrays = {"chunks": np.array(chunks, np.int64), "firsts": np.cumsum([0, *counts])}
            arrays["dropped"] = np.array((split.side == DROPPED).sum())
            self.work.make(BOUNDS, 0, lambda bounds: np.savez(bounds, **arrays), force=True)  # type: ignore[arg-type]
            file.write((split.side | (split.samples * np.uint8(_SAMPLE))).astype(np.uint8).tobytes())

        return self.work.make(SIDES, 0, write, force=force)

    def sample(self, number: int, force: bool = False) -> bool:
        """Collects the documents of a chunk that the vocabulary is trained on."""

        def write(file: BinaryIO) -> None:
            chunk, marks = self._chunk(number)
            chosen = (marks & _SAMPLE).tolist()
            texts = texts_of(self.work, chunk) if any(chosen) else iter(())
            file.write(json.dumps([text for text, mark in zip(texts, chosen, strict=False) if mark]).encode())

        return self.work.make(SAMPLES, number, write, force=force)

    def learn(self, _: int, progress: bool, force: bool = False) -> bool:
        """Makes the tokenizer."""

        def texts() -> Iterator[str]:
            for content in in_order(partial(self.work.read, SAMPLES), range(self._num_chunks())):
                yield from json.loads(content)

        def write(file: BinaryIO) -> None:
            file.write(self.text.make_tokenizer(texts(), progress).to_json().encode())

        return self.work.make(VOCABULARY, 0, write, force=force)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def tokenize(self, number: int, force: bool = False) -> bool:
        """Makes the tokens of a chunk, and the places in it at which documents end."""
        return self.work.make(TOKENS, number, partial(self._write_tokens, number), force=force)

    def _write_tokens(self, number: int, file: BinaryIO) -> None:
        chunk, marks = self._chunk(number)
        arrays = tokens_of(zip((marks & _SIDE).tolist(), texts_of(self.work, chunk), strict=True), self.tokenizer())
        counts = np.array([len(arrays[name]) for name in ARRAYS], np.int64)
        train = arrays.pop("train").tobytes()  # by itself: shards of the others are made without reading it
        self.work.make(TRAIN, number, lambda tokens: tokens.write(train), force=True)
        np.savez(file, counts=counts, **arrays)  # type: ignore[arg-type]

    def count(self, _: int, force: bool = False) -> bool:
        """Gathers how much every chunk holds of each array."""

        def write(file: BinaryIO) -> None:
            found = in_order(lambda number: load_arrays(self.work, TOKENS, number)["counts"], range(self._num_chunks()))
            np.savez(file, counts=np.array([*found], np.int64).reshape(-1, len(ARRAYS)))

        return self.work.make(COUNTS, 0, write, force=force)

    # -- shards ------------------------------------------------------------------------------------------------------

    def assemble(self, number: int, name: str, force: bool = False) -> bool:
        """Writes a shard."""
        parts = next(parts for parts in self._parts() if parts.layout.name == name)
        return write_shard(self.folder, self.work, parts, number, force=force)

    def _parts(self) -> list[Parts]:
        counts = dict(zip(ARRAYS, load_arrays(self.work, COUNTS)["counts"].T, strict=True))
        token = token_dtype(self.tokenizer()).str
        found = []
        for name in ARRAYS:
            side = name.removesuffix(".ends")
            dtype, offsets = ("<i8", np.cumsum(counts[side]) - counts[side]) if side != name else (token, None)
            per_shard = items_per_shard(np.dtype(dtype).itemsize, self.shard_bytes)
            read = partial(_items, self.work, name, token, offsets)
            found.append(Parts(Layout(name, dtype, (), int(counts[name].sum()), per_shard), counts[name], read))
        return found

    def finish(self, _: int, progress: bool, force: bool = False) -> bool:
        """Writes the index."""
        return self.work.make(FINISHED, 0, lambda _: self._finish(progress), force=force)

    def _finish(self, progress: bool) -> None:
        tokenizer = self.tokenizer()
        source = self._find().fingerprint(cache_root(self.text.cache_dir), progress)
        layouts = {parts.layout.name: parts.layout for parts in self._parts()}
        facts: dict[str, int | str] = {
            "documents": layouts["train.ends"].num_items,
            "tokens": layouts["train"].num_items,
            "held-out documents": layouts["held_out.ends"].num_items,
            "held-out tokens": layouts["held_out"].num_items,
            "duplicates dropped": int(load_arrays(self.work, BOUNDS)["dropped"]),
        }
        files, scans = _files(self.work), Scan.all(self.work, len(self._groups()))
        if files["unread"]:
            facts["files not read"] = files["unread"]
        if num := sum(one.num_left_out for one in scans):
            facts["rows left out"] = num
        left_out = [line for one in scans for line in one.left_out][:NUM_NAMED]
        index = {
            "kind": "text",
            "content": self.text.content_of(source, tokenizer),
            "settings": {**settings_of(self.text, self.skip), "shard_mb": self.shard_mb},
            "facts": facts,
            "more": {"tokenizer": tokenizer.meaning, "vocab_size": tokenizer.vocab_size, "left_out": left_out},
            "source": {"fingerprint": source, "files": sum(len(group["files"]) for group in files["groups"])},
        }
        finish(self.folder, self.work, [*layouts.values()], index, {TOKENIZER: tokenizer.to_json()})

    # -- what the parts share ----------------------------------------------------------------------------------------

    def tokenizer(self) -> WordPiece:
        """Returns the tokenizer of the build."""
        return _tokenizer(self.work)

    def _find(self) -> Corpus:
        assert self.text.path is not None
        return find_corpus(Path(self.text.path), self.text.field)

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = _files(self.work)["groups"]
        return groups

    def _num_chunks(self) -> int:
        return len(load_arrays(self.work, BOUNDS)["chunks"])

    def _chunk(self, number: int) -> tuple[int, NDArray[np.uint8]]:
        """The number of a chunk's documents, and the marks of these."""
        bounds = load_arrays(self.work, BOUNDS)
        first, stop = bounds["firsts"][number : number + 2].tolist()
        marks = self.work.read(SIDES, 0, first, stop) if stop > first else b""
        return int(bounds["chunks"][number]), np.frombuffer(marks, np.uint8)


def settings_of(text: Text, skip: bool) -> dict[str, Any]:
    """The settings that decide the shards, as JSON can hold them."""
    names = ("field", "vocab_size", "lowercase", "strip_accents", "tokenize_chinese_chars", "held_out")
    found: dict[str, Any] = {name: getattr(text, name) for name in names}
    given = None if text.vocab_file is None else text.make_tokenizer(()).meaning
    return {**found, "vocab_file": given, "on_unreadable": "skip" if skip else "error"}


def _items(work: Work, name: str, token: str, offsets: NDArray[np.int64] | None, number: int) -> NDArray[Any]:
    if name == "train":
        return np.frombuffer(work.read(TRAIN, number), token)
    found = load_arrays(work, TOKENS, number)[name]
    return found if offsets is None else found + offsets[number]


@lru_cache(maxsize=2)
def _files(work: Work) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(work.read(FILES))
    return found


@lru_cache(maxsize=2)
def _tokenizer(work: Work) -> WordPiece:
    return WordPiece.from_json(work.read(VOCABULARY).decode())
