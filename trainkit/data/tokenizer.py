"""WordPiece, as BERT has it: trained on a corpus or read from a vocab.txt."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SWITCH = "TOKENIZERS_PARALLELISM"
_MAX_ALPHABET = 1000
_RARE = 1e-5  # characters that together are a smaller share of the text than this get no token


class WordPiece:
    """Text to token numbers and back.

    >>> tokenizer.decode(tokenizer.encode("Returns the sum."))
    'returns the sum.'

    vocab_size: number of tokens, the special ones included.
    pad, unknown, start, end, mask: numbers of [PAD], [UNK], [CLS], [SEP] and [MASK].
    """

    def __init__(self, backend: "Tokenizer") -> None:
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        numbers: list[int] = [backend.get_vocab()[token] for token in SPECIAL_TOKENS]
        self.pad, self.unknown, self.start, self.end, self.mask = numbers
        self.special_tokens = (self.pad, self.unknown, self.start, self.end, self.mask)

    def encode(self, text: str) -> list[int]:
        """Token numbers of `text`, without [CLS] and [SEP]; special tokens written in it, such as [MASK], count."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts, on all threads that `rust_threads` allows."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Readable text; special tokens stay in it."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    def token(self, number: int) -> str:
        """The piece with that number, `##` before it when it continues a word."""
        token = self._backend.id_to_token(number)
        if token is None:
            raise IndexError(f"token {number} of {self.vocab_size}")
        return token

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text becomes numbers."""
        return hashlib.blake2b(self._backend.to_str().encode(), digest_size=16).hexdigest()

    def save(self, path: Path) -> None:
        """Writes the tokenizers library's own JSON."""
        self._backend.save(str(path))

    @classmethod
    def load(cls, path: Path) -> "WordPiece":
        """What `save` wrote."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)))

    @classmethod
    def from_vocabulary(cls, vocabulary: dict[str, int], lowercase: bool) -> "WordPiece":
        """BERT's normalisation and splitting around a given vocabulary."""
        backend = _untrained(lowercase, vocabulary)
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        return cls(backend)


def read_vocabulary(path: Path) -> dict[str, int]:
    """A vocab.txt: one token a line, numbered from 0. Raises DataError when BERT's special tokens are not in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"data.vocab_file={path} is not UTF-8 text (offset {error.start}); give a vocab.txt") from None
    vocabulary = {token: number for number, token in enumerate(lines)}
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise DataError(f"data.vocab_file={path} lacks {', '.join(missing)}; give the vocab.txt of a BERT model")
    if len(vocabulary) != len(lines):
        raise DataError(f"data.vocab_file={path} has a token twice; give a vocab.txt with one token a line")
    return vocabulary


def train_vocabulary(documents: Iterable[str], vocab_size: int, lowercase: bool) -> dict[str, int]:
    """Learns WordPiece's pieces; the same documents in the same order give the same numbers on every machine.

    The trainer numbers characters in the order of a hash map that differs from process to process, and breaks ties
    between pairs by those numbers. Given the characters up front, in our order, it has nothing left to choose.
    """
    from tokenizers import trainers

    texts = list(documents)
    normalizer = _untrained(lowercase).normalizer
    alphabet = _alphabet((normalizer.normalize_str(text) for text in texts), min(_MAX_ALPHABET, vocab_size // 4))
    known = [*SPECIAL_TOKENS, *alphabet, *(f"##{char}" for char in alphabet)]
    backend = _untrained(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=known,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend.get_vocab(with_added_tokens=False)


@contextmanager
def rust_threads(num_threads: int | None) -> Iterator[None]:
    """Lets the tokenizers library use threads of its own; off again at the end, unless the environment asks for them.

    They must be off when a process forks, as loader workers do: the child has none of the threads and would wait.
    """
    asked = os.environ.get(_SWITCH)
    if num_threads is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # read once, when the threads are made
    os.environ[_SWITCH] = asked or "true"
    try:
        yield
    finally:
        os.environ[_SWITCH] = asked or "false"


def _untrained(lowercase: bool, vocabulary: dict[str, int] | None = None) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordPiece(vocabulary or {}, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend


def _alphabet(texts: Iterable[str], largest: int) -> list[str]:
    """The commonest characters; words with any other one become [UNK]."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts = Counter({char: count for char, count in counts.items() if not char.isspace()})
    allowance = _RARE * counts.total()
    ordered = sorted(counts, key=lambda char: (-counts[char], char))[:largest]
    while ordered and counts[ordered[-1]] <= allowance:
        allowance -= counts[ordered.pop()]
    return ordered
