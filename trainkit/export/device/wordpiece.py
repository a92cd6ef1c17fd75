"""WordPiece: BERT's tokenizer in plain Python, equal to that of the tokenizers library."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Dict

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_WORD = 100  # characters


class WordPiece:
    """Converts text to token numbers.

    Args:
        tokens: in the order of their numbers.
        characters: as in characters.json, whose kinds do not depend on the version of Python.
        lowercase: whether text is converted to lower case.
        strip_accents: whether accents are removed; None: as `lowercase`.
        tokenize_chinese_chars: whether each Chinese character is a word.
    """

    def __init__(
        self,
        tokens: list[str],
        characters: dict[str, Any],
        *,
        lowercase: bool,
        strip_accents: bool | None,
        tokenize_chinese_chars: bool,
    ) -> None:
        self.tokens = tokens
        self.numbers = {token: number for number, token in enumerate(tokens)}
        self._special = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
        chinese = [(characters["chinese"], " {} ")] if tokenize_chinese_chars else []
        self._clean = _Characters((characters["removed"], ""), (characters["spaces"], " "), *chinese)
        self._accents = _Characters((characters["accents"], ""))
        self._strip = lowercase if strip_accents is None else strip_accents
        self._lower = str.maketrans(characters["lower"]) if lowercase else {}
        self._apart = _Characters((characters["punctuation"], " {} "))

    def encode(self, text: str) -> list[int]:
        """Returns the numbers of a text's tokens, without [CLS] and [SEP]; [MASK] in it is that token."""
        found = []
        for part in self._special.split(text):
            if part in SPECIAL_TOKENS:
                found.append(self.numbers[part])
            else:
                found += [number for word in self._words(part) for number in self._pieces(word)]
        return found

    def _words(self, text: str) -> list[str]:
        text = text.translate(self._clean)
        if self._strip:
            text = unicodedata.normalize("NFD", text).translate(self._accents)
        return [word for word in text.translate(self._lower).translate(self._apart).split(" ") if word]

    def _pieces(self, word: str) -> list[int]:
        """The longest tokens that make up a word, from its beginning on; [UNK] where none do."""
        start, found = 0, []
        while start < len(word) <= _LONGEST_WORD:
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.numbers)
            end = next(ends, None)
            if end is None:
                return [self.numbers["[UNK]"]]
            found.append(self.numbers[prefix + word[start:end]])
            start = end
        return found or [self.numbers["[UNK]"]]


class _Characters(Dict[int, str]):
    """What each character becomes, for str.translate; found when it is first met."""

    def __init__(self, *kinds: tuple[list[list[int]], str]) -> None:
        self._kinds = kinds

    def __missing__(self, code: int) -> str:
        found = (text for ranges, text in self._kinds if any(first <= code <= last for first, last in ranges))
        self[code] = next(found, "{}").format(chr(code))
        return self[code]
