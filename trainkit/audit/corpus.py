"""Corpora: the text that a model was pre-trained on, found by the path of a folder, a file or a run."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from trainkit.data.corpus import Corpus, find_corpus
from trainkit.data.shards.index import FILE as SHARDS
from trainkit.errors import DataError

_TEXT = "trainkit.data.Text"


def corpus_of(path: Path) -> Corpus:
    """Finds the text at a path.

    Args:
        path: text as of data.path, a run directory, or a checkpoint in one: its `config.yaml` says what it was trained
            on.

    Returns:
        The corpus.

    Raises:
        DataError: where there is none, and for a run that was trained on something else than text.
    """
    config = run_config(path)
    if config is None:
        if not path.exists():
            raise DataError(f"audit_corpus={path} does not exist; set it to text, to a run directory, or to null")
        return _without_shards(path, "text")
    data = (yaml.safe_load(config.read_text()) or {}).get("data") or {}
    if data.get("_target_") != _TEXT:
        raise DataError(
            f"audit_corpus={path}: this run was not trained on data=text; set it to a run of recipe=bert or to text"
        )
    given = data.get("path")
    return _without_shards(None if given is None else Path(given).expanduser(), data.get("field", "text"))


def _without_shards(path: Path | None, field: str) -> Corpus:
    if path is not None and (path / SHARDS).is_file():
        raise DataError(f"audit_corpus: {path} holds shards; set it to the text that they were made of")
    return find_corpus(path, field)


def run_config(path: Path) -> Path | None:
    """Returns the `config.yaml` of a run directory, or of the one that a checkpoint is in; None where there is none."""
    for directory in (path, path.parent.parent):
        if (directory / "config.yaml").is_file() and (directory / "checkpoints").is_dir():
            return directory / "config.yaml"
    return None


def texts_of(corpus: Corpus) -> Iterator[str]:
    """Yields the texts of a corpus, held out from its pre-training or not."""
    return (text for _, text in corpus.documents())
