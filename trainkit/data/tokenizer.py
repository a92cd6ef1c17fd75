"""WordPiece, as BERT has it: trained on a corpus or read from a vocab.txt."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.data.vocabulary import SPECIAL_TOKENS, Normalizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SWITCH = "TOKENIZERS_PARALLELISM"
_MAX_ALPHABET = 1000
_RARE = 1e-5  # characters that together are a smaller share of the text than this get no token


class WordPiece:
    """Text to token numbers and back.

    >>> tokenizer.decode(tokenizer.encode("Returns the sum."))
    'returns the sum.'

    vocab_size: the largest number of a token, and one: what a table of all tokens needs.
    pad, unknown, start, end, mask: numbers of [PAD], [UNK], [CLS], [SEP] and [MASK].
    """

    def __init__(self, backend: "Tokenizer") -> None:
        self._backend = backend
        numbers: dict[str, int] = backend.get_vocab()
        self.vocab_size: int = max(numbers.values()) + 1
        self.pad, self.unknown, self.start, self.end, self.mask = (numbers[token] for token in SPECIAL_TOKENS)
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
        """The piece with that number, `##` before it when it continues a word; `[unused]` where no text has it."""
        if not 0 <= number < self.vocab_size:
            raise IndexError(f"token {number} of {self.vocab_size}")
        return self._backend.id_to_token(number) or "[unused]"

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text becomes numbers."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def meaning(self) -> str:
        """A hash of what each number stands for; unlike `fingerprint`, it outlives versions of the library."""
        numbers = sorted(self._backend.get_vocab().items())
        return hashlib.blake2b(repr((numbers, self.normalizer)).encode(), digest_size=16).hexdigest()

    @property
    def normalizer(self) -> Normalizer:
        """How text is normalised before it is split."""
        own: Any = self._backend.normalizer
        return Normalizer(
            lowercase=own.lowercase,
            strip_accents=own.strip_accents,
            tokenize_chinese_chars=own.handle_chinese_chars,
        )

    def to_json(self) -> str:
        """The tokenizers library's own JSON."""
        return self._backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> "WordPiece":
        """What `to_json` returned."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def save(self, path: Path) -> None:
        """Writes `to_json`."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "WordPiece":
        """What `save` wrote."""
        return cls.from_json(path.read_text(encoding="utf-8"))

    @classmethod
    def from_vocabulary(cls, numbers: dict[str, int], normalizer: Normalizer) -> "WordPiece":
        """BERT's normalisation and splitting around given pieces."""
        backend = _untrained(normalizer, numbers)
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        return cls(backend)


def train_vocabulary(documents: Iterable[str], vocab_size: int, normalizer: Normalizer) -> dict[str, int]:
    """Learns WordPiece's pieces; the same documents in the same order give the same numbers on every machine.

    The trainer numbers characters in the order of a hash map that differs from process to process, and breaks ties
    between pairs by those numbers. Given the characters up front, in our order, it has nothing left to choose.
    """
    from tokenizers import trainers

    texts = list(documents)
    normalize = normalizer.backend().normalize_str
    alphabet = _alphabet((normalize(text) for text in texts), min(_MAX_ALPHABET, vocab_size // 4))
    known = [*SPECIAL_TOKENS, *alphabet, *(f"##{char}" for char in alphabet)]
    backend = _untrained(normalizer)
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


def _untrained(normalizer: Normalizer, numbers: dict[str, int] | None = None) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordPiece(numbers or {}, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizer.backend()
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
