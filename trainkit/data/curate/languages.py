"""Languages of documents, as py3langid takes them for, by batches and in any process."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from trainkit.errors import ConfigError, DataError, nearest

UNKNOWN = "unknown"
"""Of a text with too few letters to tell."""

_MOST_CHARS = 1000  # of a document that are looked at
_FEWEST_LETTERS = 15


def languages_of(texts: Sequence[str]) -> list[str]:
    """Returns the language of each text, by its ISO 639-1 code; `UNKNOWN` for one with fewer than 15 letters.

    Args:
        texts: of which the first 1,000 characters count.

    Raises:
        DataError: without py3langid.

    Example:
        >>> languages_of(["The cat sat on the mat and looked at us.", "Die Katze sitzt nicht auf der Matte.", "123"])
        ['en', 'de', 'unknown']
    """
    identifier = _identifier()
    beginnings = [text[:_MOST_CHARS] for text in texts]
    return [
        identifier.classify(text)[0] if sum(map(str.isalpha, text)) >= _FEWEST_LETTERS else UNKNOWN
        for text in beginnings
    ]


def require_known(languages: Iterable[str]) -> None:
    """Raises ConfigError for a language that has no such code, or that is not known."""
    known = [*_identifier().labels, UNKNOWN]
    for language in languages:
        if language not in known:
            raise ConfigError(
                f"--languages={language}: must be of {', '.join(sorted(known))}.{nearest(language, known)}"
            )


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise not_installed("py3langid") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def not_installed(name: str) -> DataError:
    """The error for a package that is not there."""
    return DataError(f"{name} is not installed; type: pip install 'trainkit[curate]'")
