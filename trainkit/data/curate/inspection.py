"""TextInspection: what a corpus of text holds, before anything trains on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.curate.documents import Document, SourceDocuments, UnreadFile
from trainkit.data.curate.languages import languages_of
from trainkit.data.curate.lines import LineCounts, line_key, line_keys, lines_of
from trainkit.data.curate.measures import DAMAGES, Measure, Measured
from trainkit.data.curate.near import NearTexts
from trainkit.data.curate.processes import in_processes
from trainkit.data.curate.sample import Sample
from trainkit.data.curate.seen import SeenKeys
from trainkit.data.curate.tokens import Line, read_tokenizer, token_statistics, tokens_of_all, vocabulary_for
from trainkit.data.files import counted
from trainkit.data.minhash import WIDTH
from trainkit.data.progress import announced, track
from trainkit.data.shingles import jaccard, shingles

SAMPLE_CHARS = 1 << 23
MOST_LANGUAGES = 20_000
"""Documents whose language is looked at."""
SHORT_WORDS, LONG_CHARS = 5, 100_000
NUM_SHOWN = 20
SHOWN_CHARS = 300

_QUANTILES = (0, 0.05, 0.5, 0.95, 1)


@dataclass(frozen=True)
class RepeatedLine:
    """A line that several documents have in common.

    Args:
        documents: in how many it is.
        text: of it.
    """

    documents: int
    text: str


@dataclass(frozen=True)
class NearPair:
    """Two documents that are nearly the same.

    Args:
        first: file and number of the earlier one.
        second: of the later one.
        similarity: Jaccard's, of their pairs of words.
        first_text: its beginning.
        second_text: its beginning.
    """

    first: str
    second: str
    similarity: float
    first_text: str
    second_text: str


@dataclass(frozen=True, kw_only=True)
class TextInspection:
    """What was found.

    Args:
        path: data.path.
        field: data.field.
        files: that were read.
        files_not_read: files that are no text, by suffix.
        held_out_files: of the source's own held-out split, which are not looked at.
        unreadable: files that could not be read to their end.
        documents: that are not blank.
        blank: the others.
        num_bytes: of the documents as UTF-8.
        chars: characters of them.
        words: of them, between white space.
        short: documents of fewer than `SHORT_WORDS` words.
        long: documents of more than `LONG_CHARS` characters.
        lengths: quantiles 0, 0.05, 0.5, 0.95, 1 of their characters.
        histogram: documents by their characters, `"64-127"`.
        duplicates: documents with the same words as an earlier one.
        near_duplicates: other documents that are nearly the same as an earlier one.
        near_pairs: some of these.
        damage: documents by what is wrong with their characters.
        sampled: documents in the sample, which all that follows is about.
        sampled_chars: of them.
        tokens: of all documents; an estimate, unless the sample is all.
        vocabulary: which tokens were counted.
        token_lengths: quantiles of the tokens of a document.
        unknown: the share of [UNK] among the tokens.
        lacking: characters without a token, and their number.
        worst_lines: those with the most tokens for each word.
        languages: documents by language.
        repeated_in: documents that a line must be in to count as boilerplate.
        boilerplate: the share of the characters that such lines take.
        repeated_lines: of all documents that are no exact duplicates, those in most documents.
        counts_missed: documents by which these counts may be too low.
    """

    path: str
    field: str
    files: int
    files_not_read: str
    held_out_files: int
    unreadable: list[UnreadFile]
    documents: int
    blank: int
    num_bytes: int
    chars: int
    words: int
    short: int
    long: int
    lengths: list[float]
    histogram: dict[str, int]
    duplicates: int
    near_duplicates: int
    near_pairs: list[NearPair]
    damage: dict[str, int]
    sampled: int
    sampled_chars: int
    tokens: int
    vocabulary: str
    token_lengths: list[float]
    unknown: float
    lacking: dict[str, int]
    worst_lines: list[Line]
    languages: dict[str, int]
    repeated_in: int
    boilerplate: float
    repeated_lines: list[RepeatedLine]
    counts_missed: int

    def facts(self) -> dict[str, Any]:
        """Returns all of it, JSON-serializable."""
        return asdict(self)

    @property
    def is_sample_all(self) -> bool:
        """Whether every document is in the sample."""
        return self.sampled == self.documents


def inspect_text(
    path: Path | None,
    *,
    field: str = "text",
    vocab_file: Path | None = None,
    vocab_size: int = 4096,
    repeated_in: int = 10,
    num_workers: int | None = None,
    progress: bool = True,
) -> TextInspection:
    """Reads every document once, and a part of them again, in bounded memory.

    Args:
        path: as of data.path; None: the built-in corpus.
        field: the key or column with the text.
        vocab_file: of the tokens that are counted; None: a vocabulary is learnt from a sample, as a run does.
        vocab_size: tokens of that one.
        repeated_in: documents that a line must be in to count as boilerplate.
        num_workers: processes; None: one per core.
        progress: whether to show bars.

    Returns:
        What was found.

    Raises:
        DataError: where nothing can be read, and without the packages of the extra `curate`.
    """
    languages_of([])  # says what to install before anything is read
    tokenizer = None if vocab_file is None else read_tokenizer(vocab_file)
    source = SourceDocuments(path, field, "skip")
    scan, repeats = _scanned(source, num_workers, progress)
    blank, unread = source.num_blank, source.unread  # of the first reading
    sample = scan.sample.documents
    with announced("tokenizing a sample", progress):
        name = f"{vocab_size:,} tokens learnt from a sample" if tokenizer is None else str(vocab_file)
        tokenizer = tokenizer or vocabulary_for(sample, vocab_size)
        of_tokens = token_statistics(sample, tokenizer, name)
    chars, pairs = np.concatenate(scan.chars), np.flatnonzero(repeats >= 0)
    frequent = scan.lines.most_frequent(NUM_SHOWN, repeated_in)
    shown = _Shown(source, pairs[:NUM_SHOWN], repeats, [key for key, _ in frequent], progress)
    return TextInspection(
        path="" if path is None else str(path),
        field=field,
        files=source.num_files,
        files_not_read=counted(source.unread_names),
        held_out_files=source.num_held_out_files,
        unreadable=unread,
        documents=len(chars),
        blank=blank,
        num_bytes=scan.num_bytes,
        chars=int(chars.sum()),
        words=scan.words,
        short=scan.short,
        long=int((chars > LONG_CHARS).sum()),
        lengths=_quantiles(chars),
        histogram=_histogram(chars),
        duplicates=int(sum((~first).sum() for first in scan.is_first)),
        near_duplicates=len(pairs),
        near_pairs=shown.pairs,
        damage={name: int(num) for name, num in zip(DAMAGES, scan.damage, strict=True)},
        sampled=len(sample),
        sampled_chars=scan.sample.num_chars,
        tokens=tokens_of_all(of_tokens.lengths, scan.sample.num_chars, int(chars.sum())),
        vocabulary=name,
        token_lengths=_quantiles(np.array(of_tokens.lengths)),
        unknown=of_tokens.unknown / max(1, sum(of_tokens.lengths)),
        lacking=of_tokens.lacking,
        worst_lines=of_tokens.worst,
        languages=_languages(sample, num_workers, progress),
        repeated_in=repeated_in,
        boilerplate=_boilerplate(sample, scan.lines, repeated_in),
        repeated_lines=[RepeatedLine(num, shown.lines.get(key, "")) for key, num in frequent],
        counts_missed=scan.lines.most_missed,
    )


def _scanned(source: SourceDocuments, num_workers: int | None, progress: bool) -> tuple["_Scan", NDArray[np.int64]]:
    """Reads every document; returns also, of each, the one that it nearly repeats, or -1."""
    scan = _Scan()
    with NearTexts() as near:
        measure = Measure(lines=True, signatures=True)
        for batch, measured in _measured(source, measure, num_workers, progress):
            scan.add(batch, measured)
            assert measured.made is not None and measured.signatures is not None
            near.add(measured.made, measured.signatures)
        with announced("comparing near-duplicates", progress):
            return scan, near.repeats(np.concatenate(scan.is_first))


class _Scan:
    """What is kept of the documents: some 30 bytes of each, the counts of lines, and a sample."""

    def __init__(self) -> None:
        self.chars: list[NDArray[np.int64]] = []
        self.is_first: list[NDArray[np.bool_]] = []
        self.num_bytes = self.words = self.short = 0
        self.damage = np.zeros(len(DAMAGES), np.int64)
        self.lines, self.sample, self._seen = LineCounts(), Sample(SAMPLE_CHARS), SeenKeys()

    def add(self, batch: Sequence[Document], measured: Measured) -> None:
        is_first = self._seen.add(measured.keys)
        self.is_first.append(is_first)
        self.chars.append(measured.chars)
        self.num_bytes += int(measured.num_bytes.sum())
        self.words += int(measured.words.sum())
        self.short += int((measured.words < SHORT_WORDS).sum())
        self.damage += np.array([int((measured.damage >> bit & 1).sum()) for bit in range(len(DAMAGES))])
        self.lines.add(measured.lines[np.repeat(is_first, measured.num_lines)])
        self.sample.add(batch, measured.keys)


class _Shown:
    """The texts of what the report shows, found by reading the source as far as is needed."""

    def __init__(
        self,
        source: SourceDocuments,
        later: NDArray[np.int64],
        repeats: NDArray[np.int64],
        keys: Sequence[int],
        progress: bool,
    ) -> None:
        self.lines: dict[int, str] = {}
        wanted, missing = {*later.tolist(), *repeats[later].tolist()}, {*keys}
        found: dict[int, Document] = {}
        for document in track(source, "collecting examples", len(repeats), progress):
            if document.number in wanted:
                found[document.number] = document
            if missing:
                for line in lines_of(document.text):
                    if (key := line_key(line)) in missing:
                        self.lines[key] = line[:SHOWN_CHARS]
                        missing.discard(key)
            if not missing and len(found) == len(wanted):
                break
        self.pairs = [_pair(found[int(repeats[one])], found[one]) for one in later.tolist()]


def _measured(source: SourceDocuments, measure: Measure, num_workers: int | None, progress: bool) -> Any:
    """Yields batches of documents and what is measured of them."""
    waiting: list[list[Document]] = []

    def texts() -> Any:
        for batch in source.batches():
            waiting.append(batch)
            yield [document.text for document in batch]

    for measured in track(in_processes(measure, texts(), num_workers), "reading text", enabled=progress):
        yield waiting.pop(0), measured


def _pair(first: Document, second: Document) -> NearPair:
    made = shingles([first.text, second.text], WIDTH)
    similarity = round(jaccard(made.of(0), made.of(1)), 3)
    return NearPair(first.where, second.where, similarity, first.text[:SHOWN_CHARS], second.text[:SHOWN_CHARS])


def _languages(sample: Sequence[Document], num_workers: int | None, progress: bool) -> dict[str, int]:
    texts = iter([document.text[:1000] for document in islice(sample, MOST_LANGUAGES)])
    batches = iter(lambda: [*islice(texts, 512)], [])
    found = Counter[str]()
    num = -(-min(len(sample), MOST_LANGUAGES) // 512)
    for languages in track(in_processes(languages_of, batches, num_workers), "telling languages", num, progress):
        found.update(languages)
    return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))


def _boilerplate(sample: Sequence[Document], counts: LineCounts, repeated_in: int) -> float:
    repeated = 0
    for document in sample:
        keys, chars = line_keys(document.text)
        repeated += int(chars[counts.of(keys) >= repeated_in].sum())
    return repeated / max(1, sum(len(document.text) for document in sample))


def _histogram(chars: NDArray[np.int64]) -> dict[str, int]:
    """Documents by the power of two below their length."""
    powers = np.bincount(np.log2(chars).astype(np.int64))
    first = int(np.flatnonzero(powers)[0])
    return {f"{2**power:,}-{2 ** (power + 1) - 1:,}": int(powers[power]) for power in range(first, len(powers))}


def _quantiles(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 1) for value in np.quantile(values, _QUANTILES)]
