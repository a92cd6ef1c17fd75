"""The vocabulary of a Hugging Face directory."""

from dataclasses import replace
from pathlib import Path

from trainkit.data import Normalizer, WordPiece, read_vocabulary
from trainkit.errors import DataError

_FILES = ("vocab.txt", "tokenizer.json")


def has_vocabulary(directory: Path) -> bool:
    """Whether a directory has a file with tokens."""
    return any((directory / name).is_file() for name in _FILES)


def vocabulary_file(directory: Path) -> Path:
    """Returns the file with the tokens of a directory.

    Raises:
        DataError: where there is none.
    """
    for name in _FILES:
        if (directory / name).is_file():
            return directory / name
    raise DataError(
        f"weights={directory} has neither {' nor '.join(_FILES)}: save its tokenizer there with save_pretrained, or "
        f"give data.vocab_file"
    )


def require_vocabulary(tokenizer: WordPiece, directory: Path) -> None:
    """Requires that text becomes numbers as for the weights of a directory; one without a vocabulary is not checked.

    Raises:
        DataError: naming what differs.
    """
    if not has_vocabulary(directory):
        return
    path = vocabulary_file(directory)
    stored = read_vocabulary(path)
    own = tokenizer.numbers
    if own != stored.numbers:
        wrong = next(token for token in {**stored.numbers, **own} if own.get(token) != stored.numbers.get(token))
        raise DataError(
            f"recipe.weights={directory} was trained with {len(stored.numbers)} tokens and the data have {len(own)}: "
            f"{wrong!r} is {stored.numbers.get(wrong, 'missing')} there and {own.get(wrong, 'missing')} here; give "
            f"data.vocab_file={path}"
        )
    theirs = replace(Normalizer(), **stored.stored)
    for name in stored.stored:
        if getattr(theirs, name) != getattr(tokenizer.normalizer, name):
            raise DataError(
                f"data.{name}={getattr(tokenizer.normalizer, name)}, and recipe.weights={directory} was trained with "
                f"{name}={getattr(theirs, name)}: leave data.{name} out"
            )
