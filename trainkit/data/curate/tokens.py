"""TokenStatistics: how a vocabulary fits a corpus: tokens, characters that it lacks, lines that it divides most."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainkit.data.curate.documents import Document
from trainkit.data.curate.lines import lines_of
from trainkit.data.tokenizer import WordPiece, rust_threads

_LEARNT_FROM_CHARS = 1 << 22
_ENCODED_AT_ONCE = 1024  # documents
_FEWEST_WORDS = 4  # of a line that can be among the worst
NUM_WORST, NUM_LACKING = 10, 40


@dataclass(frozen=True)
class Line:
    """A line of a document that many tokens are needed for.

    Args:
        where: file and number of the document.
        text: the first characters.
        tokens_per_word: words are what is between white space.
    """

    where: str
    text: str
    tokens_per_word: float


@dataclass(frozen=True)
class TokenStatistics:
    """What a tokenizer makes of documents.

    Args:
        vocabulary: which one.
        lengths: tokens of each document.
        unknown: [UNK] among them.
        lacking: characters that have no token, with their number; the most frequent ones.
        worst: the lines with the most tokens for each word.
    """

    vocabulary: str
    lengths: list[int]
    unknown: int
    lacking: dict[str, int]
    worst: list[Line]


def vocabulary_for(documents: Iterable[Document], vocab_size: int) -> WordPiece:
    """Learns a vocabulary, as a run would, from the first 4 million characters.

    Args:
        documents: an even choice.
        vocab_size: tokens at most.
    """
    texts, num_chars = [], 0
    for document in documents:
        texts.append(document.text)
        num_chars += len(document.text)
        if num_chars >= _LEARNT_FROM_CHARS:
            break
    return WordPiece.learn(texts, vocab_size)


def read_tokenizer(path: Path) -> WordPiece:
    """Reads a vocab.txt or tokenizer.json.

    Raises:
        DataError: for one that cannot be read.
    """
    return WordPiece.read(path)


def token_statistics(documents: Sequence[Document], tokenizer: WordPiece, vocabulary: str) -> TokenStatistics:
    """Tokenizes documents.

    Args:
        documents: of any number.
        tokenizer: to count with.
        vocabulary: its name.

    Returns:
        What was counted.
    """
    lengths: list[int] = []
    unknown, lacking = 0, Counter[str]()
    worst: list[tuple[float, int, str]] = []
    known = {token.removeprefix("##") for token in tokenizer.numbers}
    normalize = tokenizer.normalizer.backend().normalize_str
    with rust_threads(None):
        for start in range(0, len(documents), _ENCODED_AT_ONCE):
            part = documents[start : start + _ENCODED_AT_ONCE]
            for document, tokens in zip(part, tokenizer.encode_batch([one.text for one in part]), strict=True):
                lengths.append(len(tokens))
                num_unknown = tokens.count(tokenizer.unknown)
                unknown += num_unknown
                if num_unknown:
                    lacking.update(c for c in normalize(document.text) if c not in known and not c.isspace())
            _add_worst(worst, part, start, tokenizer)
    lines = [
        Line(documents[-behind].where, text[:200], round(ratio, 2))
        for ratio, behind, text in sorted(worst, reverse=True)
    ]
    return TokenStatistics(vocabulary, lengths, unknown, dict(lacking.most_common(NUM_LACKING)), lines)


def _add_worst(
    worst: list[tuple[float, int, str]], documents: Sequence[Document], first: int, tokenizer: WordPiece
) -> None:
    """Adds to a heap of the worst lines, which holds each text once."""
    texts = {line: place for place, one in enumerate(documents) for line in lines_of(one.text)}
    lines = [line for line in texts if line.count(" ") >= _FEWEST_WORDS - 1]
    for line, tokens in zip(lines, tokenizer.encode_batch(lines), strict=True):
        entry = (len(tokens) / (line.count(" ") + 1), -(first + texts[line]), line)
        if any(line == other for _, _, other in worst):
            continue
        if len(worst) < NUM_WORST:
            heapq.heappush(worst, entry)
        elif entry > worst[0]:
            heapq.heapreplace(worst, entry)


def tokens_of_all(lengths: Sequence[int], sample_chars: int, all_chars: int) -> int:
    """Estimates the tokens of a corpus by those of a sample.

    Args:
        lengths: tokens of each document of the sample.
        sample_chars: of these documents.
        all_chars: of the corpus.
    """
    return round(int(np.sum(lengths, dtype=np.int64)) * all_chars / max(1, sample_chars))
