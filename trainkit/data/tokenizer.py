"""WordPiece: BERT's tokenizer, trained on a corpus or read from a vocab.txt."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.data.vocabulary import SPECIAL_TOKENS, Normalizer, read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SWITCH = "TOKENIZERS_PARALLELISM"
_MAX_ALPHABET = 1000
_RARE = 1e-5  # characters that together make up a smaller fraction of the text get no token


class WordPiece:
    """Converts text to token numbers and back.

    Attributes: `vocab_size`, the largest token number plus one, as the size of an embedding; `pad`, `unknown`, `start`,
    `end`, `mask`, the numbers of [PAD], [UNK], [CLS], [SEP] and [MASK].

    Args:
        backend: a tokenizer of the tokenizers library.

    Example:
        >>> numbers = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "re": 5, "##turns": 6}
        >>> tokenizer = WordPiece.from_vocabulary(numbers, Normalizer())
        >>> tokenizer.encode("Returns"), tokenizer.decode([5, 6])
        ([5, 6], 'returns')
    """

    def __init__(self, backend: "Tokenizer") -> None:
        self._backend = backend
        numbers: dict[str, int] = backend.get_vocab()
        self.vocab_size: int = max(numbers.values()) + 1
        self.pad, self.unknown, self.start, self.end, self.mask = (numbers[token] for token in SPECIAL_TOKENS)
        self.special_tokens = (self.pad, self.unknown, self.start, self.end, self.mask)

    def encode(self, text: str) -> list[int]:
        """Returns the token numbers of a text, without [CLS] and [SEP]; special tokens in it, such as [MASK], count."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Encodes many texts, with the threads that `rust_threads` allows."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_spans(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Encodes many texts; with the tokens of each, the characters [start, end) that they stand for."""
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns readable text, including special tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    def token(self, number: int) -> str:
        """Returns the token with that number, beginning with `##` if it continues a word; `[unused]` for none."""
        if not 0 <= number < self.vocab_size:
            raise IndexError(f"token {number} of {self.vocab_size}")
        return self._backend.id_to_token(number) or "[unused]"

    def lines(self) -> list[str]:
        """Returns the lines of a vocab.txt; of a number without a token, such as the first of two equal lines, one."""
        token_of = {number: token for token, number in self.numbers.items()}
        return [token_of.get(number, f"[unused_{number}]") for number in range(self.vocab_size)]

    @property
    def numbers(self) -> dict[str, int]:
        """Token -> number, special tokens included."""
        return self._backend.get_vocab()

    @property
    def continuations(self) -> list[int]:
        """The numbers of the tokens that continue a word, `##` in a vocab.txt, ascending."""
        return sorted(number for token, number in self.numbers.items() if token.startswith("##"))

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides how text becomes numbers."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def meaning(self) -> str:
        """Hash of the meaning of each number; unlike `fingerprint`, independent of the version of the library."""
        numbers = sorted(self._backend.get_vocab().items())
        return hashlib.blake2b(repr((numbers, self.normalizer)).encode(), digest_size=16).hexdigest()

    @property
    def normalizer(self) -> Normalizer:
        """How text is normalized before it is split."""
        own: Any = self._backend.normalizer
        return Normalizer(
            lowercase=own.lowercase,
            strip_accents=own.strip_accents,
            tokenize_chinese_chars=own.handle_chinese_chars,
        )

    def to_json(self) -> str:
        """Returns the tokenizers library's own JSON."""
        return self._backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> "WordPiece":
        """Restores a tokenizer from the JSON that `to_json` returned."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def save(self, path: Path) -> None:
        """Writes the JSON to a file."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "WordPiece":
        """Reads the file that `save` wrote."""
        return cls.from_json(path.read_text(encoding="utf-8"))

    @classmethod
    def from_vocabulary(cls, numbers: dict[str, int], normalizer: Normalizer) -> "WordPiece":
        """Makes a tokenizer with BERT's normalization and splitting.

        Args:
            numbers: token -> number, with the special tokens.
            normalizer: how text is normalized before it is split.

        Returns:
            The tokenizer.
        """
        backend = _untrained(normalizer, numbers)
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        return cls(backend)

    @classmethod
    def read(cls, path: Path, *, lowercase: bool | None = None) -> "WordPiece":
        """Reads a vocab.txt or tokenizer.json of another program, and the tokenizer_config.json beside it.

        Args:
            path: the file.
            lowercase: whether text is normalized to lower case; None: as the files say, else True.

        Returns:
            The tokenizer.

        Raises:
            DataError: for a vocabulary that this class cannot represent.
        """
        vocabulary = read_vocabulary(path)
        return cls.from_vocabulary(vocabulary.numbers, vocabulary.normalizer(path, lowercase=lowercase))

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, *, lowercase: bool | None = None) -> "WordPiece":
        """Learns a vocabulary from texts; the same texts in the same order give the same one.

        Args:
            texts: to learn from.
            vocab_size: the maximum number of tokens.
            lowercase: whether text is normalized to lower case; None: True.

        Returns:
            The tokenizer.
        """
        normalizer = Normalizer(lowercase=lowercase is not False)
        return cls.from_vocabulary(train_vocabulary(texts, vocab_size, normalizer), normalizer)


def train_vocabulary(documents: Iterable[str], vocab_size: int, normalizer: Normalizer) -> dict[str, int]:
    """Trains a WordPiece vocabulary; the same documents in the same order give the same numbers on every machine.

    The trainer numbers characters in the order of a hash map that differs between processes, and breaks ties between
    pairs by those numbers. The characters are therefore given to it in a fixed order, which makes it deterministic.

    Args:
        documents: texts.
        vocab_size: the maximum number of tokens.
        normalizer: how text is normalized before it is split.

    Returns:
        Token -> number.
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
    """Context manager that lets the tokenizers library use threads; off on exit, unless the environment enables them.

    They must be off when a process forks, as loader workers do: the child has none of the threads and would hang.

    Args:
        num_threads: None: one per core.
    """
    asked = os.environ.get(_SWITCH)  # empty, which means off: from a former call, perhaps of the parent process
    if num_threads is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # read once, when the threads are started
    os.environ[_SWITCH] = asked or "true"
    try:
        yield
    finally:
        os.environ[_SWITCH] = asked or ""


def _untrained(normalizer: Normalizer, numbers: dict[str, int] | None = None) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordPiece(numbers or {}, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizer.backend()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend


def _alphabet(texts: Iterable[str], largest: int) -> list[str]:
    """Returns the most frequent characters; words with any other become [UNK]."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts = Counter({char: count for char, count in counts.items() if not char.isspace()})
    allowance = _RARE * counts.total()
    ordered = sorted(counts, key=lambda char: (-counts[char], char))[:largest]
    while ordered and counts[ordered[-1]] <= allowance:
        allowance -= counts[ordered.pop()]
    return ordered
