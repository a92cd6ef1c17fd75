"""Text: any source of text, tokenized once and packed into windows of one length, for a language model."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainkit.cache import PART, CacheError, cache_root, cached
from trainkit.data.corpus import Corpus, find_corpus, known_corpus, require_text
from trainkit.data.datasets import Datasets
from trainkit.data.documents import PackedDocuments
from trainkit.data.file_look import VERIFY, Verify
from trainkit.data.files import listed_counts
from trainkit.data.left_out_rows import LeftOutRows
from trainkit.data.packing import PackedTokens, dtype_for
from trainkit.data.pairs import SentencePairs
from trainkit.data.partial_build import PartialBuild
from trainkit.data.progress import announced, remark, track
from trainkit.data.remote_corpus import find_remote_corpus, require_found
from trainkit.data.shards.checks import verify
from trainkit.data.shards.index import TOKENIZER, ShardIndex, find_shards, require_sizes
from trainkit.data.shards.tokens import ShardedTokens, text_sides
from trainkit.data.shuffle import OPEN_BLOCKS, Shuffle, ShuffleBy, require_shuffle
from trainkit.data.sides import NOTHING, Entry, LeftOut, Sides
from trainkit.data.split import DROPPED, HELD_OUT, TRAIN, Split, content_key, split_documents
from trainkit.data.token_build import write_documents, write_tokens
from trainkit.data.token_file import TokenFile, Tokens
from trainkit.data.tokenizer import WordPiece, rust_threads, train_vocabulary
from trainkit.data.vocabulary import Normalizer, Vocabulary, read_vocabulary
from trainkit.errors import DataError
from trainkit.logger import logger
from trainkit.storage import is_url

_FORMAT = 2  # of the cache: increase it whenever the same text and settings would give other files
_DOCUMENTATION, _SPLIT, _COUNTS = "documentation.txt", f"{PART}split.npz", "counts.json"
_ROWS = f"{PART}rows.json"
ROWS_LEFT_OUT = "rows left out"
"""In the facts of a data set."""
VOCABULARY_SAMPLE_CHARS = 1 << 25
_SMALL_BYTES = 1 << 26  # of a corpus that is read once more to know both sides exactly before an audit
_MIN_HELD_OUT = 64  # windows: with fewer, the random error of an accuracy is above 2 %


@dataclass(frozen=True, kw_only=True)
class Text:
    """A specification of text to train on; `load()` makes data sets of it.

    Args:
        path: a .txt, .md, .html, .jsonl, .csv, .tsv or .parquet file, a .gz or .zst of one, a directory that Hugging
            Face datasets saved, shards of MDS, litdata or webdataset, a folder of any of these, or the URL of a file or
            folder of text; or shards that `trainkit data prepare` wrote, whose vocabulary and split it takes; None: the
            built-in documentation of Python, NumPy and PyTorch, which needs no download.
        field: the key or column that contains the text, in formats with several.
        vocab_file: a vocab.txt of WordPiece, or a tokenizer.json; None: one of `vocab_size` tokens is trained on the
            training split.
        vocab_size: tokens of a vocabulary that is trained here.
        lowercase: whether text is normalized to lower case; None: as the tokenizer_config.json beside `vocab_file` or
            the tokenizer.json says, else True.
        strip_accents: whether accents are removed; None: as those files say, else as `lowercase`.
        tokenize_chinese_chars: whether each Chinese character is a word; None: as those files say, else True.
        sequence_length: tokens in a sample, including the leading [CLS].
        documents: `joined`: windows over the documents one after the other; `apart`: windows of whole documents with
            their numbers, for a model that keeps them apart; `padded`: one document in a window, with padding. A
            document that is longer than a window is divided; `pairs`: two segments each, for next-sentence prediction.
        held_out: the fraction of the documents that is held out, chosen by a hash of their text; a data set of
            Hugging Face datasets, or shards in subfolders, with a `train` and a validation or test split keeps its own.
        held_out_samples: the maximum number of windows to evaluate on, an even choice by a hash; None: all.
        cache_dir: where tokens are stored; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        num_workers: threads that tokenize; None: one per core.
        tokenizer: an existing one, such as a checkpoint's, in place of a vocabulary from here; the other settings must
            agree with it.
        shuffle: how the windows of an epoch are put into random order: `global`, or `blocks`, of which `open_blocks`
            are read at a time: for text that is read from far away. See `Shuffle`.
        open_blocks: see `shuffle`.
        on_unreadable: whether a row that cannot be read (of a file without rows, its rest) is an `error`, or is left
            out and counted (`skip`).
        left_out: training documents that are not trained on, such as those that an audit found.
        verify: which files are read again, to see whether they changed since the last start: `state`: those with
            another size, time of change or inode; `full`: all, and those are named whose state does not show a change.
            Of shards, `state` compares sizes, and `full` all checksums, once.

    Raises:
        DataError: for a value out of range, and where a listing of the path shows that it cannot be read.
    """

    path: str | Path | None = None
    field: str = "text"
    vocab_file: Path | None = None
    vocab_size: int = 4096
    lowercase: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None
    sequence_length: int = 64
    documents: Literal["joined", "apart", "padded", "pairs"] = "joined"
    held_out: float = 0.02
    held_out_samples: int | None = 4096
    cache_dir: Path | None = None
    num_workers: int | None = None
    tokenizer: WordPiece | None = None
    shuffle: ShuffleBy = "global"
    open_blocks: int = OPEN_BLOCKS
    on_unreadable: Literal["error", "skip"] = "error"
    left_out: LeftOut = NOTHING
    verify: Verify = "state"

    def __post_init__(self) -> None:
        _check_length(self.sequence_length)
        forms = ("joined", "apart", "padded", "pairs")
        _check(self.documents in forms, "documents", self.documents, f"one of {', '.join(forms)}")
        _check(self.vocab_size >= 100, "vocab_size", self.vocab_size, "at least 100")
        _check(0 < self.held_out <= 0.5, "held_out", self.held_out, "above 0 and at most 0.5")
        most = self.held_out_samples
        _check(most is None or most > 0, "held_out_samples", most, "at least 1, or null for all")
        _check(self.num_workers is None or self.num_workers > 0, "num_workers", self.num_workers, "at least 1, or null")
        _check(self.on_unreadable in ("error", "skip"), "on_unreadable", self.on_unreadable, "error or skip")
        if self.vocab_file is not None:
            _check(Path(self.vocab_file).is_file(), "vocab_file", self.vocab_file, "a vocab.txt that exists, or null")
        require_shuffle(self.shuffle, self.open_blocks, "data.")
        _check(self.verify in VERIFY, "verify", self.verify, " or ".join(VERIFY))
        if self.path is not None and self._shards() is None:
            path = Path(self.path).expanduser()
            if is_url(self.path):
                require_found(str(self.path))
            elif path.is_dir():
                require_text(path)
            else:
                find_corpus(path, self.field)

    def load(self, progress: bool = True) -> Datasets:
        """Loads training and held-out windows and their tokenizer, and builds what is not in the cache.

        Args:
            progress: whether to show progress bars.

        Returns:
            The data sets.

        Raises:
            DataError: for text that cannot be read: not UTF-8, without the field, or too little of it.
        """
        return self.load_lengths([self.sequence_length], progress)[0]

    def load_lengths(self, lengths: Sequence[int], progress: bool = True) -> list[Datasets]:
        """Loads the same text in windows of several lengths; see `load`.

        Args:
            lengths: in place of `sequence_length`.
            progress: whether to show progress bars.

        Returns:
            The data sets of each length.
        """
        for length in lengths:
            _check_length(length)
        if (shards := self._shards()) is not None:
            return self._load_shards(shards, lengths, progress)
        corpus = self._corpus(progress)
        text = corpus.fingerprint(cache_root(self.cache_dir), progress, self.verify)
        directory = self._directory(corpus, text, progress)
        tokenizer = WordPiece.load(directory / TOKENIZER)
        content = self.content_of(text, tokenizer)
        facts = _facts(json.loads((directory / "summary.json").read_text()), corpus)
        if progress:
            remark(facts, "files not read", ROWS_LEFT_OUT)
        dtype = dtype_for(tokenizer.vocab_size)
        streams = {side: TokenFile(directory / f"{side}.bin", dtype) for side in ("train", "held_out")}
        return [self._datasets(length, streams, tokenizer, content, dict(facts), progress) for length in lengths]

    def _load_shards(self, shards: ShardIndex, lengths: Sequence[int], progress: bool) -> list[Datasets]:
        tokenizer = WordPiece.from_json(shards.read_text(TOKENIZER))
        self._require_shards(shards, tokenizer)
        require_sizes(shards)
        if self.verify == "full":
            verify(shards, cache_root(self.cache_dir), progress)
        streams = {side: ShardedTokens(shards, side) for side in ("train", "held_out")}
        facts = shards.facts
        return [self._datasets(length, streams, tokenizer, shards.content, dict(facts), progress) for length in lengths]

    def _datasets(
        self,
        length: int,
        streams: Mapping[str, Tokens],
        tokenizer: WordPiece,
        content: str,
        facts: dict[str, int | str],
        progress: bool,
    ) -> Datasets:
        held_out = self._windows(length, streams["held_out"], tokenizer, content, most=self.held_out_samples)
        if len(held_out) < _MIN_HELD_OUT:
            key = "held_out_samples" if len(held_out) == self.held_out_samples else "held_out"
            facts["note"] = f"{len(held_out)} held-out samples are too few to measure well: raise data.{key}"
        if progress:
            remark(facts, "note")
        train = self._windows(length, streams["train"], tokenizer, content, drop_last=True)
        cache = cache_root(self.cache_dir)
        shuffle = Shuffle(self.shuffle, self.open_blocks)
        return Datasets(train=train, held_out=held_out, tokenizer=tokenizer, facts=facts, shuffle=shuffle, cache=cache)

    def sides(self, progress: bool = True) -> Sides | None:
        """Returns the documents of both sides, for an audit; those of shards as their tokens say them.

        None for shards that are not on this machine: an audit would download all of them.

        Args:
            progress: whether to show progress bars.
        """
        if (shards := self._shards()) is not None:
            return text_sides(shards, WordPiece.from_json(shards.read_text(TOKENIZER)))
        corpus = self._corpus(progress)
        fingerprint = corpus.fingerprint(cache_root(self.cache_dir), progress, self.verify)
        if self.path is None:
            corpus = self._collected(corpus, progress)
        if corpus.num_bytes > _SMALL_BYTES:
            split, num_train, num_held_out = None, None, None
        else:
            split = cache(lambda: split_documents(corpus.documents(), self.held_out, 1))
            num_train, num_held_out = self._counts(fingerprint, split)
        return Sides(
            train=lambda: self._entries(corpus, None if split is None else split().side, TRAIN),
            held_out=lambda: self._entries(corpus, None if split is None else split().side, HELD_OUT),
            fingerprint=_hash("text", fingerprint, self.held_out),
            num_train=num_train,
            num_held_out=num_held_out,
        )

    def _counts(self, fingerprint: str, split: Callable[[], Split]) -> tuple[int, int]:
        """The numbers of documents of both sides; they are kept, since an audit that is known reads no document."""

        def write(directory: Path) -> None:
            counts = split().count(TRAIN), split().count(HELD_OUT)
            (directory / _COUNTS).write_text(json.dumps(counts))

        name = f"sides-{_hash(_FORMAT, fingerprint, self.held_out)}"
        try:
            train, held_out = json.loads((cached(cache_root(self.cache_dir), name, write) / _COUNTS).read_text())
        except CacheError:  # nothing can be kept
            return split().count(TRAIN), split().count(HELD_OUT)
        return train, held_out

    def sample(self, num_chars: int, progress: bool = True) -> Iterator[str]:
        """Yields documents of the training side, an even choice by a hash of their text.

        Args:
            num_chars: of all of them, about.
            progress: whether to show progress bars.
        """
        below = num_chars / max(1, self._corpus(progress).num_bytes) * 2.0**32
        sides = self.sides(progress)
        assert sides is not None, "text, and no shards"
        entries = track(sides.train(), "reading text for the vocabulary", enabled=progress)
        chosen = (entry for entry in entries if (entry.key & 0xFFFFFFFF) < below)
        for entry in chosen:
            if entry.text and not self.left_out.covers(np.array([entry.key], np.uint64)).any():
                yield entry.text

    def learn_tokenizer(self, texts: Iterable[str], progress: bool = True) -> WordPiece:
        """Returns a tokenizer of `vocab_size` that is learnt from texts.

        Args:
            texts: in place of those of `path`.
            progress: whether to show a progress bar.
        """
        normalizer, sample = self._vocabulary()[1], list(texts)
        with announced("learning the vocabulary", progress), rust_threads(self.num_workers):
            learnt = train_vocabulary(sample, self.vocab_size, normalizer)
        return WordPiece.from_vocabulary(learnt, normalizer)

    def vocabulary_key(self) -> str:
        """Returns a hash of what decides the tokenizer that is learnt from the training side."""
        text = self._corpus(False).fingerprint(cache_root(self.cache_dir), False)
        return _hash(_FORMAT, text, self.vocab_size, self._vocabulary()[1], self.held_out, *self._left_out())

    def without(self, left_out: LeftOut) -> "Text":
        """Returns the specification without these training documents, too.

        Raises:
            DataError: for shards, whose documents are in them for good.
        """
        if len(left_out) and self._shards() is not None:
            raise DataError(
                f"on_leak=drop: {len(left_out)} documents of data.path={self.path} leak, and shards keep theirs: "
                f"remove them from the text and run trainkit data prepare again, or set on_leak=warn"
            )
        return replace(self, left_out=self.left_out | left_out)

    def _entries(self, corpus: Corpus, sides: Any, side: int) -> Iterator[Entry]:
        for number, (is_own, name, text) in enumerate(corpus.named()):
            if corpus.held_out and not is_own and side == HELD_OUT:
                return  # the source's own held-out documents come first
            if sides is not None and sides[number] != side:
                continue
            key = content_key(text)
            if sides is None:  # of many documents the choice of each is its own; see `lowest_fraction`
                is_held_out = is_own if corpus.held_out else (key >> 32) < self.held_out * 2.0**32
                if is_held_out != (side == HELD_OUT):
                    continue
            yield Entry(key, name, text=text)

    def _collected(self, corpus: Corpus, progress: bool) -> Corpus:
        """The built-in corpus as one file: parsing Python is slow, and it is read several times."""
        root = cache_root(self.cache_dir)
        name = f"documentation-{corpus.fingerprint(root, progress)}"
        directory = cached(root, name, lambda aside: write_documents(corpus, aside / _DOCUMENTATION, progress))
        return Corpus((directory / _DOCUMENTATION,))

    def _shards(self) -> ShardIndex | None:
        return None if self.path is None else find_shards(self.path, "text")

    def _require_shards(self, shards: ShardIndex, tokenizer: WordPiece) -> None:
        """Raises DataError for settings that the shards were not made with; those at their defaults are as theirs."""
        made_with = shards.settings
        for name in ("vocab_size", "held_out", "field"):
            if (given := getattr(self, name)) not in (getattr(Text, name), made_with[name]):
                raise shards.contradicts(name, given, made_with[name])
        with_own = replace(self, vocab_size=max(self.vocab_size, tokenizer.vocab_size))
        if self.tokenizer is not None and self.tokenizer.meaning != tokenizer.meaning:
            raise shards.contradicts("path", self.path, "another vocabulary than that of the checkpoint")
        with_own._require_agreement(tokenizer)

    def _corpus(self, progress: bool) -> Corpus:
        skip = LeftOutRows() if self.on_unreadable == "skip" else None
        return replace(self._found(progress), skip=skip)

    def _found(self, progress: bool) -> Corpus:
        if is_url(self.path):
            return find_remote_corpus(str(self.path), self.field, self.cache_dir)
        path = Path(self.path).expanduser() if self.path is not None else None
        if path is None or not path.is_dir():
            return find_corpus(path, self.field)
        try:
            return known_corpus(path, self.field, cache_root(self.cache_dir), verify=self.verify, progress=progress)
        except CacheError as error:  # what was built there can be read
            if progress:
                logger(__name__).warning(f"every file of {path} is read at every start: {error}")
            return find_corpus(path, self.field)

    def _windows(
        self,
        length: int,
        stream: Tokens,
        tokenizer: WordPiece,
        content: str,
        drop_last: bool = False,
        most: int | None = None,
    ) -> PackedTokens | PackedDocuments | SentencePairs:
        start = tokenizer.start
        if self.documents == "joined":
            shape: dict[str, Any] = {"drop_last": drop_last, "most": most, "content": content, "end": tokenizer.end}
            return PackedTokens(stream, length, start=start, pad=tokenizer.pad, **shape)
        settings: dict[str, Any] = {"start": start, "end": tokenizer.end, "pad": tokenizer.pad, "most": most}
        settings |= {"content": content, "cache": cache_root(self.cache_dir)}
        if self.documents == "pairs":
            return SentencePairs(stream, length, **settings)
        return PackedDocuments(stream, length, form=self.documents, **settings)

    # -- the cache ---------------------------------------------------------------------------------------------------

    def _directory(self, corpus: Corpus, text: str, progress: bool) -> Path:
        """Returns the cache directory of these settings, which is built if it does not exist."""
        root = cache_root(self.cache_dir)
        if self.tokenizer is not None:
            self._require_agreement(self.tokenizer)
            usual = root / replace(self, tokenizer=None)._name(text)  # written by the run that trained the vocabulary
            if usual.is_dir() and WordPiece.load(usual / TOKENIZER).fingerprint == self.tokenizer.fingerprint:
                return usual
        return cached(root, self._name(text), lambda aside: self._build(corpus, aside, progress), resumes=True)

    def content_of(self, text: str, tokenizer: WordPiece) -> str:
        """Returns a hash of everything that decides the tokens, the same for files and for shards made of them.

        Args:
            text: the fingerprint of the corpus.
            tokenizer: not the settings it came from: the same may be trained here or be a checkpoint's.
        """
        return _hash(_FORMAT, text, tokenizer.meaning, self.held_out, *self._left_out())

    def _name(self, text: str) -> str:
        if self.tokenizer is not None:
            vocabulary: tuple[object, ...] = ("tokenizer", self.tokenizer.fingerprint)
        else:
            given = Path(self.vocab_file).read_bytes().hex() if self.vocab_file else self.vocab_size
            vocabulary = (given, self._vocabulary()[1])
        skips = ("skip",) if self.on_unreadable == "skip" else ()  # what is an error otherwise is not found there
        return f"text-{_hash(_FORMAT, text, vocabulary, self.held_out, *self._left_out(), *skips)}"

    def _left_out(self) -> tuple[str, ...]:
        return (self.left_out.digest,) if len(self.left_out) else ()

    def _vocabulary(self) -> tuple[Vocabulary | None, Normalizer]:
        """Reads `vocab_file`, and how text is normalized for it."""
        path = Path(self.vocab_file) if self.vocab_file is not None else Path()
        vocabulary = read_vocabulary(path) if self.vocab_file is not None else None
        return vocabulary, (vocabulary or Vocabulary({})).normalizer(path, **self._asked())

    def _asked(self) -> dict[str, bool | None]:
        return {name: getattr(self, name) for name in ("lowercase", "strip_accents", "tokenize_chinese_chars")}

    def _require_agreement(self, tokenizer: WordPiece) -> None:
        vocabulary, normalizer = self._vocabulary()
        wrong = [
            f"data.{name}={value}"
            for name, value in self._asked().items()
            if value is not None and value != getattr(tokenizer.normalizer, name)
        ]
        if vocabulary is not None:
            given = WordPiece.from_vocabulary(vocabulary.numbers, normalizer)
            wrong += [f"data.vocab_file={self.vocab_file}"] if given.fingerprint != tokenizer.fingerprint else []
        elif self.vocab_size < tokenizer.vocab_size:
            wrong.append(f"data.vocab_size={self.vocab_size}")
        if wrong:
            raise DataError(
                f"{wrong[0]} is not what the given tokenizer was made with ({tokenizer.vocab_size} tokens, "
                f"{tokenizer.normalizer}); leave it as it was in the run that made it, or null"
            )

    def _tokenizer(self, corpus: Corpus, split: Split, progress: bool) -> WordPiece:
        texts = compress((text for _, text in corpus.documents()), split.samples)
        return self.make_tokenizer(
            track(texts, "reading text for the vocabulary", int(split.samples.sum()), progress), progress
        )

    def make_tokenizer(self, texts: Iterable[str], progress: bool = True) -> WordPiece:
        """Returns `tokenizer`, or that of `vocab_file`; else trains one.

        Args:
            texts: to train on; else none is read.
            progress: whether to say what takes long.
        """
        if self.tokenizer is not None:
            return self.tokenizer
        vocabulary, normalizer = self._vocabulary()
        if vocabulary is not None:
            return WordPiece.from_vocabulary(vocabulary.numbers, normalizer)
        return self.learn_tokenizer(texts, progress)

    def _build(self, corpus: Corpus, directory: Path, progress: bool) -> None:
        partial = PartialBuild(directory)
        if self.path is None:
            corpus = self._collected(corpus, progress)
        split = Split.load(partial.made(_SPLIT, lambda path: self._split(corpus, partial, progress).save(path)))
        with rust_threads(self.num_workers):
            made = partial.made(TOKENIZER, lambda path: self._tokenizer(corpus, split, progress).save(path))
            tokenizer = WordPiece.load(made)
            streams = write_tokens(corpus, split, tokenizer, directory, partial, progress)
        summary = {
            name: {"documents": stream.num_documents, "tokens": stream.num_tokens} for name, stream in streams.items()
        }
        summary["duplicates"] = {"documents": split.count(DROPPED)}
        summary["left_out"] = json.loads((directory / _ROWS).read_text())
        (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _split(self, corpus: Corpus, partial: PartialBuild, progress: bool) -> Split:
        """Reads all documents once, and counts the rows that are left out: each later reading leaves out the same."""
        rows = LeftOutRows()
        if corpus.skip is not None:
            corpus = replace(corpus, skip=rows)
        documents = track(corpus.documents(), "reading text", enabled=progress)
        try:
            split = split_documents(documents, self.held_out, VOCABULARY_SAMPLE_CHARS, self.left_out)
        except DataError as error:
            if rows.num:
                raise DataError(f"{error}; {rows.num:,} rows were left out, the first: {rows.first[0]}") from error
            raise
        partial.write(_ROWS, lambda path: path.write_text(json.dumps({"rows": rows.num, "first": rows.first})))
        return split


def _hash(*settings: object) -> str:
    return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()


def _facts(summary: Mapping[str, Mapping[str, int]], corpus: Corpus) -> dict[str, int | str]:
    facts: dict[str, int | str] = {
        "documents": summary["train"]["documents"],
        "tokens": summary["train"]["tokens"],
        "held-out documents": summary["held_out"]["documents"],
        "held-out tokens": summary["held_out"]["tokens"],
        "duplicates dropped": summary["duplicates"]["documents"],
    }
    if (left_out := summary.get("left_out", {})).get("rows"):
        facts[ROWS_LEFT_OUT] = left_out["rows"]
    if not_read := corpus.suffixes_not_read:
        facts["files not read"] = listed_counts(not_read)
    return facts


def _check_length(length: int) -> None:
    _check(length >= 8, "sequence_length", length, "at least 8")


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise DataError(f"data.{name}={value}: must be {allowed}; set data.{name}")
