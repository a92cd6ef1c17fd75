"""The documents of a corpus, as streams of tokens in files."""

from collections.abc import Iterable, Iterator
from itertools import compress, islice
from pathlib import Path

from trainkit.data.corpus import Corpus
from trainkit.data.packing import TokenStream, dtype_for
from trainkit.data.parallel import in_order
from trainkit.data.partial_build import PartialBuild
from trainkit.data.progress import track
from trainkit.data.split import DROPPED, HELD_OUT, TRAIN, Split
from trainkit.data.tokenizer import WordPiece

_ENCODED_AT_ONCE = 1024  # documents


def write_documents(corpus: Corpus, path: Path, progress: bool) -> None:
    """Writes documents into one text file: a build reads its corpus several times, and parsing Python is slow."""
    with path.open("w", encoding="utf-8") as file:
        for _, text in track(corpus.documents(), "collecting documentation", enabled=progress):
            file.write(text + "\n\n")


def write_tokens(
    corpus: Corpus, split: Split, tokenizer: WordPiece, directory: Path, partial: PartialBuild, progress: bool
) -> dict[str, TokenStream]:
    """Tokenizes the documents of both sides into files, from where an earlier process was killed.

    Args:
        corpus: the documents.
        split: their sides, in the same order.
        tokenizer: makes the tokens.
        directory: of the files, `train.bin` and `held_out.bin`.
        partial: what was done before.
        progress: whether to show a progress bar.

    Returns:
        The streams by side, closed.
    """
    names = {TRAIN: "train", HELD_OUT: "held_out"}
    dtype, before = dtype_for(tokenizer.vocab_size), partial.read()
    streams = {
        side: TokenStream(directory / f"{name}.bin", dtype, tokenizer.end, tuple(before.get(name, (0, 0))))
        for side, name in names.items()
    }
    kept, done = split.side != DROPPED, sum(stream.num_documents for stream in streams.values())
    texts = compress((text for _, text in corpus.documents()), kept)
    sides = iter(split.side[kept][done:].tolist())
    left = islice(texts, done, None)
    groups = _grouped(track(left, "tokenizing", int(kept.sum()) - done, progress))
    for encoded in in_order(tokenizer.encode_batch, groups, num_threads=1):  # beside reading and writing
        for tokens in encoded:
            streams[next(sides)].append(tokens)
        partial.note(
            [stream.file for stream in streams.values()],
            lambda: {name: (streams[side].num_documents, streams[side].num_tokens) for side, name in names.items()},
        )
    for stream in streams.values():
        stream.close()
    return {names[side]: stream for side, stream in streams.items()}


def _grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while group := list(islice(texts, _ENCODED_AT_ONCE)):
        yield group
