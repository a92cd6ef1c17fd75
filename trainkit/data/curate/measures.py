"""Measures: what is counted of each document, many at a time, in any process."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.curate.languages import not_installed
from trainkit.data.curate.lines import line_keys
from trainkit.data.minhash import WIDTH, signatures
from trainkit.data.shingles import Shingles, shingles
from trainkit.data.split import content_key

DAMAGES = ("U+FFFD", "NUL and other control characters", "mojibake", "HTML")
"""What a bit of `Measured.damage` stands for, from the lowest."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_HTML = re.compile(
    r"</?(?:a|b|body|br|div|em|font|h[1-6]|head|html|i|img|li|ol|p|pre|script|span|strong|style|table|td|th|tr|ul)"
    r"(?:\s+[\w-]+\s*=[^<>]{0,300})?\s*/?>|&(?:amp|lt|gt|quot|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,6});"
)


@dataclass(frozen=True)
class Measured:
    """What is known of a batch of documents.

    Args:
        keys: uint64 [n], of their content without white space.
        chars: int64 [n].
        num_bytes: int64 [n], as UTF-8.
        words: int64 [n], between white space.
        damage: uint8 [n], a bit for each of `DAMAGES`.
        lines: uint64, keys of the lines of the first document, of the second and so on, each once a document.
        num_lines: int64 [n].
        made: shingles; None: not asked for.
        signatures: uint32 [n, 128]; None: not asked for.
    """

    keys: NDArray[np.uint64]
    chars: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    words: NDArray[np.int64]
    damage: NDArray[np.uint8]
    lines: NDArray[np.uint64]
    num_lines: NDArray[np.int64]
    made: Shingles | None
    signatures: NDArray[np.uint32] | None


@dataclass(frozen=True)
class Measure:
    """A function of texts that returns what is measured of them; processes can be given it.

    Args:
        lines: whether their lines are needed.
        signatures: whether their shingles and signatures are.
    """

    lines: bool
    signatures: bool

    def __call__(self, texts: Sequence[str]) -> Measured:
        """Measures a batch."""
        num = len(texts)
        of_lines = [np.unique(line_keys(text)[0]) for text in texts] if self.lines else []
        made = shingles(texts, WIDTH) if self.signatures else None
        return Measured(
            keys=np.fromiter(map(content_key, texts), np.uint64, num),
            chars=np.fromiter(map(len, texts), np.int64, num),
            num_bytes=np.fromiter((len(text.encode(errors="surrogatepass")) for text in texts), np.int64, num),
            words=np.fromiter((len(text.split()) for text in texts), np.int64, num),
            damage=np.fromiter(map(damage_of, texts), np.uint8, num),
            lines=np.concatenate([np.empty(0, np.uint64), *of_lines]),
            num_lines=np.fromiter(map(len, of_lines), np.int64, len(of_lines)),
            made=made,
            signatures=None if made is None else signatures(made),
        )


def damage_of(text: str) -> int:
    r"""Looks for characters that show that a text was decoded, or taken out of its page, wrongly.

    Mojibake is what ftfy takes for it: UTF-8 that was read as another encoding.

    Args:
        text: of a document.

    Returns:
        A bit for each of `DAMAGES`.

    Example:
        >>> [damage_of(text) for text in ("fine", "a\ufffdb", "a\0b", "caf\u00c3\u00a9", "a<br>b")]
        [0, 1, 2, 4, 8]
    """
    is_mojibake = not text.isascii() and _badness().is_bad(text)
    is_page = ("<" in text or "&" in text) and _HTML.search(text) is not None
    return ("\ufffd" in text) | (_CONTROL.search(text) is not None) << 1 | is_mojibake << 2 | is_page << 3


@cache
def _badness() -> Any:
    try:
        import ftfy.badness
    except ImportError as error:
        raise not_installed("ftfy") from error
    return ftfy.badness
