"""The selection of documents: rule after rule, in bounded memory, and the text that is kept."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainkit.data.curate.destination import Destination
from trainkit.data.curate.diversity import lowest_share, similarities
from trainkit.data.curate.documents import Document, SourceDocuments
from trainkit.data.curate.embeddings import FITTED_ON, TfidfEmbeddings
from trainkit.data.curate.functions import Judge
from trainkit.data.curate.languages import languages_of, require_known
from trainkit.data.curate.lines import LineCounts, line_keys
from trainkit.data.curate.measures import Measure, damage_of
from trainkit.data.curate.near import NearTexts
from trainkit.data.curate.processes import in_processes
from trainkit.data.curate.rules import TextRules
from trainkit.data.curate.seen import SeenKeys
from trainkit.data.curate.selection import Choice, Selection, between
from trainkit.data.curate.text_files import TextFiles
from trainkit.data.progress import announced, track
from trainkit.data.split import content_key
from trainkit.errors import DataError


class TextModel(Protocol):
    """What rules ask a trained model about texts."""

    def losses(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns the loss of each; NaN of one in which nothing can be predicted."""

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns [n, D], the mean hidden state of each."""


def select_text(
    source: SourceDocuments,
    rules: TextRules,
    to: Path | None,
    *,
    loss_model: TextModel | None = None,
    feature_model: TextModel | None = None,
    compress: bool = False,
    shard_mb: int = 256,
    num_workers: int | None = None,
    progress: bool = True,
) -> Selection:
    """Reads documents, drops what the rules say, and writes the rest in the order of the source.

    The source is read once to measure, once more for the rules on lines, languages and a user's function, once for each
    of the two that need a model or embeddings, and once to write.

    Args:
        source: what to select from, which is not changed.
        rules: which documents are kept.
        to: a folder that is written whole or not at all; None: only counts.
        loss_model: of `rules.loss_of`.
        feature_model: of `rules.features`, unless that is `tfidf`.
        compress: whether files are `.jsonl.zst`.
        shard_mb: size of a file at most, about, before it is compressed.
        num_workers: processes; None: one per core.
        progress: whether to show bars.

    Returns:
        What was kept and dropped.

    Raises:
        ConfigError: for a folder that cannot be written to, or a function that is not there.
        DataError: for text that cannot be read, or where nothing is left.
    """
    if rules.languages:
        require_known(rules.languages)
    if rules.drop_damaged:
        damage_of("é")  # says what to install before anything is read
    judge = None if rules.function is None else Judge(rules.function, rules.score_between is not None)
    destination = None if to is None else Destination(to, source.path)
    with tempfile.TemporaryDirectory(prefix="trainkit-select-") as scratch:
        chooser = _Chooser(source, rules, num_workers, progress, Path(scratch))
        chooser.measure()
        chooser.look(judge)
        chooser.ask(loss_model)
        chooser.spread(feature_model)
    selection = chooser.result()
    if not chooser.choice.left.any():
        last = next(step for step in chooser.choice.steps if step.before == step.dropped)
        raise DataError(f"no document is left: {last.rule} dropped the last {last.dropped:,}; loosen that rule")
    if destination is None:
        return selection
    with destination as directory:
        files = TextFiles(directory, compress=compress, shard_bytes=shard_mb * 1_000_000)
        with files:
            for document in chooser.kept():
                files.add(document)
        written = replace(selection, files=tuple(files.written))
        written.write(directory)
    return written


@dataclass(frozen=True)
class _Look:
    """Returns lines and languages of texts, where they are asked for; processes can be given it."""

    lines: bool
    languages: bool

    def __call__(self, texts: Sequence[str]) -> tuple[list[tuple[NDArray[np.uint64], NDArray[np.int64]]], list[str]]:
        return [line_keys(text) for text in texts] if self.lines else [], languages_of(texts) if self.languages else []


class _Chooser:
    """Passes over the source, and what is kept between them: some 50 bytes of a document."""

    def __init__(
        self, source: SourceDocuments, rules: TextRules, num_workers: int | None, progress: bool, scratch: Path
    ) -> None:
        self._source, self._rules, self._num_workers, self._progress = source, rules, num_workers, progress
        self._scratch = scratch
        self._keys, self._chars = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._lines = LineCounts()
        self.choice = Choice(0)

    def measure(self) -> None:
        """Applies the rules that each document, and its place among its like, decide alone."""
        rules, seen = self._rules, SeenKeys()
        keys, chars, damage = [], [], []
        measure = Measure(lines=rules.max_boilerplate is not None, signatures=rules.drop_near)
        texts = ([document.text for document in batch] for batch in self._source.batches())
        with NearTexts(self._scratch) as near:
            for found in track(in_processes(measure, texts, self._num_workers), "reading text", None, self._progress):
                keys.append(found.keys)
                chars.append(found.chars)
                damage.append(found.damage)
                if measure.lines:
                    self._lines.add(found.lines[np.repeat(seen.add(found.keys), found.num_lines)])
                if found.made is not None and found.signatures is not None:
                    near.add(found.made, found.signatures)
            self._keys, self._chars = np.concatenate(keys), np.concatenate(chars)
            self._unread, self.choice = tuple(self._source.unread), Choice(len(self._keys))
            choice = self.choice
            if rules.drop_damaged:
                choice.drop("damaged", np.concatenate(damage) > 0)
            if rules.min_chars is not None:
                choice.drop(f"below {rules.min_chars:,} characters", self._chars < rules.min_chars)
            if rules.max_chars is not None:
                choice.drop(f"above {rules.max_chars:,} characters", self._chars > rules.max_chars)
            if rules.drop_exact:
                left = np.flatnonzero(choice.left)
                is_repeated = choice.left
                is_repeated[left[np.unique(self._keys[left], return_index=True)[1]]] = False
                choice.drop("exact duplicates", is_repeated)
            if rules.drop_near:
                with announced("comparing near-duplicates", self._progress):
                    choice.drop("near-duplicates", near.repeats(choice.left) >= 0)

    def look(self, judge: Judge | None) -> None:
        """Applies the rules on lines, languages and a user's function, in one pass."""
        rules, num = self._rules, len(self._keys)
        look = _Look(rules.max_boilerplate is not None, bool(rules.languages))
        if not (look.lines or look.languages or judge is not None):
            return
        shares, is_foreign, scores = np.zeros(num), np.zeros(num, np.bool_), np.full(num, np.nan)
        for batch, (lines, languages) in self._mapped(look, "looking at lines and languages"):
            for place, document in enumerate(batch):
                is_kept = True
                if look.lines:
                    keys, chars = lines[place]
                    repeated = int(chars[self._lines.of(keys) >= rules.repeated_in].sum())
                    shares[document.number] = repeated / len(document.text)
                    is_kept &= shares[document.number] <= (rules.max_boilerplate or 0.0)
                if look.languages:
                    is_foreign[document.number] = languages[place] not in rules.languages
                    is_kept &= not is_foreign[document.number]
                if judge is not None and is_kept:
                    scores[document.number] = judge(document.text, document.where)
        if rules.max_boilerplate is not None:
            missed = {"counts_missed": self._lines.most_missed} if self._lines.most_missed else {}
            self.choice.drop(f"boilerplate above {rules.max_boilerplate:g}", shares > rules.max_boilerplate, **missed)
        if rules.languages:
            self.choice.drop(f"not in {', '.join(rules.languages)}", is_foreign)
        if judge is not None:
            self._judged(scores)

    def _judged(self, scores: NDArray[np.float64]) -> None:
        rules, left = self._rules, self.choice.left
        if rules.score_between is None:
            self.choice.drop(f"by {rules.function}", scores == 0.0)
            return
        is_kept, low, high = between(np.where(left, scores, np.nan), rules.score_between)
        self.choice.drop(f"score of {rules.function}", ~is_kept, low=low, high=high)

    def ask(self, model: TextModel | None) -> None:
        """Applies the rule on a model's loss."""
        if self._rules.loss_between is None:
            return
        assert model is not None, "the caller has the model of rules.loss_of"
        losses = np.full(len(self._keys), np.nan)
        for batch in self._batches("computing losses"):
            losses[[document.number for document in batch]] = model.losses([document.text for document in batch])
        is_kept, low, high = between(losses, self._rules.loss_between)
        self.choice.drop("loss", ~is_kept, low=low, high=high)

    def spread(self, model: TextModel | None) -> None:
        """Applies the rule on what is like another document."""
        share = self._rules.diverse
        numbers = np.flatnonzero(self.choice.left)
        if share is None or not len(numbers):
            return
        embed = model.embeddings if model is not None else self._tfidf(numbers)
        path = self._scratch / "embeddings"
        with path.open("wb") as file:
            for batch in self._batches("embedding"):
                embed([document.text for document in batch]).astype(np.float32).tofile(file)
        embeddings = np.memmap(path, np.float32, "r").reshape(len(numbers), -1)
        with announced("comparing embeddings", self._progress):
            similarity = similarities(embeddings)
        is_kept = lowest_share(similarity, share)
        is_dropped = np.zeros(len(self._keys), np.bool_)
        is_dropped[numbers[~is_kept]] = True
        cut = round(float(similarity[is_kept].max()), 4)
        self.choice.drop(f"diversity, keeping {share:g}", is_dropped, similarity=cut)

    def _tfidf(self, numbers: NDArray[np.int64]) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        chosen = {*numbers[np.unique(np.linspace(0, len(numbers) - 1, FITTED_ON).astype(np.int64))].tolist()}
        texts = [document.text[:20_000] for document in self.kept("reading words") if document.number in chosen]
        return TfidfEmbeddings(texts)

    def kept(self, description: str = "writing") -> Iterator[Document]:
        """Yields the documents that are left, in the order of the source.

        Raises:
            DataError: where the source is no longer what was measured.
        """
        left = self.choice.left
        for document in track(self._source, description, len(left), self._progress):
            if document.number >= len(left) or (
                left[document.number] and content_key(document.text) != int(self._keys[document.number])
            ):
                raise DataError(f"{document.file} was changed while it was read: type the same command again")
            if left[document.number]:
                yield document

    def _batches(self, description: str) -> Iterator[list[Document]]:
        batch: list[Document] = []
        num_chars = 0
        for document in self.kept(description):
            batch.append(document)
            num_chars += len(document.text)
            if len(batch) == 512 or num_chars >= 1 << 20:
                yield batch
                batch, num_chars = [], 0
        if batch:
            yield batch

    def _mapped(self, function: Callable[[list[str]], Any], description: str) -> Iterator[tuple[list[Document], Any]]:
        waiting: list[list[Document]] = []

        def texts() -> Iterator[list[str]]:
            for batch in self._batches(description):
                waiting.append(batch)
                yield [document.text for document in batch]

        for found in in_processes(function, texts(), self._num_workers):
            yield waiting.pop(0), found

    def result(self) -> Selection:
        """Returns what was decided."""
        left = self.choice.left
        return Selection(
            kind="text",
            source="" if self._source.path is None else str(self._source.path),
            rules=self._rules.facts(),
            steps=tuple(self.choice.steps),
            before={"documents": len(left), "characters": int(self._chars.sum())},
            after={"documents": int(left.sum()), "characters": int(self._chars[left].sum())},
            unread=tuple(vars(one) for one in self._unread),
            content=hashlib.blake2b(self._keys[left].astype("<u8").tobytes(), digest_size=16).hexdigest(),
            facts={"field": self._source.field},
        )
