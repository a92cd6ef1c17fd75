"""Answering: the span of a context that answers a question, as in SQuAD, or that there is none."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.errors import ConfigError, DataError
from trainkit.evaluation import Better, HeldOutSamples, SampleSums
from trainkit_recipes.bert.finetuning import squad
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, Tokens, require_tokens
from trainkit_recipes.bert.finetuning.task import Groups, Prediction, Purpose, Task, outputs_of

_MAX_QUESTION = 64  # tokens, as in BERT's own script
_NUM_BEST = 20  # starts and ends of a window that are combined


@dataclass(frozen=True)
class Window:
    """A part of a context with its question.

    Args:
        question: the number of the example.
        spans: int64 [length, 2], the characters of the context of each token; -1 for tokens that are not of it.
    """

    question: int
    spans: NDArray[np.int64]


@dataclass(frozen=True)
class Notes:
    """The windows of samples, and the questions that they are of."""

    windows: Sequence[Window]
    examples: Sequence[Example]


class Answering(Task):
    """Start and end of the answer; a context that is too long is divided into windows that overlap.

    A window without the answer points at [CLS]. Of an example without an answer, every window does.

    Args:
        train: the training examples.
        stride: tokens that two windows share.
        max_answer_length: tokens of a predicted answer at most.

    Raises:
        DataError: for an example without a context, or an answer that is not in it.
    """

    name = "question_answering"
    hub_name = "question-answering"
    best_metric, score = "-held_out_f1", "held_out_f1"
    better: Mapping[str, Better] = {"held_out_f1": "higher", "held_out_exact_match": "higher"}
    num_outputs, pooling = 2, None

    def __init__(self, train: Sequence[Example], *, stride: int, max_answer_length: int) -> None:
        self._stride, self._max_answer_length = stride, max_answer_length
        self.has_unanswerable = any(not answers_of(example) for example in train)

    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes examples as windows; see `Task`."""
        questions = encoder.pieces(examples, [example.text for example in examples])
        contexts = encoder.tokenizer.encode_with_spans([context_of(example) for example in examples])
        texts: list[Tokens] = []
        windows: list[Window] = []
        targets: list[tuple[int, int]] = []
        for number, (example, question, (pieces, spans)) in enumerate(zip(examples, questions, contexts, strict=True)):
            require_tokens(example, pieces, "context")
            encoder.count(f"questions cut to {_MAX_QUESTION} tokens", len(question) > _MAX_QUESTION)
            question = question[:_MAX_QUESTION]
            room = encoder.max_length - len(question) - 3
            if room <= self._stride:
                raise ConfigError(
                    f"recipe.max_length={encoder.max_length} leaves {room} tokens for the context of {example.where}, "
                    f"and recipe.stride={self._stride} are shared by two windows: raise the one or lower the other"
                )
            answer, is_held = answers_of(example)[:1] if purpose != "predict" else [], False
            for first in range(0, max(1, len(pieces) - self._stride), room - self._stride):
                tokens = encoder.join(question, pieces[first : first + room])
                inside = np.full((len(tokens.numbers), 2), -1, np.int64)
                inside[tokens.first : -1] = spans[first : first + room]
                texts.append(tokens)
                windows.append(Window(number, inside))
                targets.append(_place(inside, answer))
                is_held |= targets[-1] != (0, 0)
            if answer:
                encoder.count("answers that no window holds whole", not is_held)
        columns = {} if purpose == "predict" else {"spans": torch.tensor(targets)}
        return Samples(texts, encoder.tokenizer.pad, columns, is_paired=True, notes=Notes(windows, examples))

    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the mean cross-entropy of start and end; see `Task`."""
        return self._losses(self._outputs(engine, batch), batch).mean(), None

    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Predicts the best spans of each window; see `Task`."""
        outputs_BTC = self._outputs(engine, batch)
        losses = self._losses(outputs_BTC, batch).tolist() if "spans" in batch.data else [0.0] * len(batch)
        rows = zip(batch.indices.tolist(), outputs_BTC.double().cpu().numpy(), losses, strict=True)
        return [
            Prediction(index, self._best(row, samples.notes.windows[index]), loss, 1.0) for index, row, loss in rows
        ]

    def values(self, predictions: Sequence[Prediction], samples: Samples) -> list[str]:
        """Returns the best span over the windows of each question; see `Task`."""
        return self.texts(predictions, samples)

    def measured(self, examples: Sequence[Example], values: Sequence[str]) -> dict[str, float]:
        """Measures answers; see `Task`."""
        return _measured(examples, values)

    def texts(self, predictions: Sequence[Prediction], samples: Samples) -> list[str]:
        """Returns the answer to each question, from the predictions of its windows; empty: there is none."""
        best: dict[int, tuple[float, int, int]] = {}
        nulls: defaultdict[int, float] = defaultdict(lambda: np.inf)
        for prediction in predictions:
            question = samples.notes.windows[prediction.index].question
            null, span = prediction.value
            nulls[question] = min(nulls[question], null)
            if span is not None and (question not in best or span[0] > best[question][0]):
                best[question] = span
        found = []
        for number, example in enumerate(samples.notes.examples):
            score, start, end = best.get(number, (-np.inf, 0, 0))
            is_null = self.has_unanswerable and nulls[number] >= score
            found.append("" if is_null else context_of(example)[start:end])
        return found

    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[str]]:
        """Returns the first sentence, and where there are such questions, that none has an answer; see `Task`."""
        first: dict[str, Sequence[str]] = {
            "first sentence": [context_of(example).partition(". ")[0] for example in held_out]
        }
        return first | ({"no answer": [""] * len(held_out)} if self.has_unanswerable else {})

    def groups(self, examples: Sequence[Example]) -> Groups:
        """Returns the questions on each context: what is hard about it is hard for all of them."""
        return Groups.by([context_of(example) for example in examples], "contexts")

    def examples_of(self, predictions: Sequence[Prediction], samples: Samples) -> NDArray[np.int64]:
        """Returns the questions of windows; see `Task`."""
        return np.array([samples.notes.windows[prediction.index].question for prediction in predictions], np.int64)

    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[str]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns both scores of each question; see `Task`."""
        answers = [[text for text, _ in answers_of(example)] for example in examples]
        scores = {name: squad.scores_of_each(answers, given) for name, given in values.items()}
        named = {name: {f"held_out_{metric}": each for metric, each in found.items()} for name, found in scores.items()}
        own = named.pop(None)
        samples = SampleSums.means(own, {name: of for name, of in named.items() if name is not None}, unit=groups.unit)
        return [samples.of_groups(groups.numbers, groups.unit)]

    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the answers."""
        return [{"prediction": text} for text in self.texts(predictions, samples)]

    def state_dict(self) -> dict[str, Any]:
        """Returns whether "no answer" may be predicted."""
        return {"has_unanswerable": self.has_unanswerable}

    @staticmethod
    def _outputs(engine: Engine, batch: Batch) -> Tensor:
        outputs_BTC: Tensor = outputs_of(engine, batch)
        positions_T = torch.arange(outputs_BTC.shape[1], device=outputs_BTC.device)
        return outputs_BTC.masked_fill((positions_T >= batch.lengths[:, None])[..., None], -1e4)

    @staticmethod
    def _losses(outputs_BTC: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs_BTC, batch.spans, reduction="none").mean(dim=1)

    def _best(self, outputs_TC: NDArray[np.float64], window: Window) -> tuple[float, tuple[float, int, int] | None]:
        """Returns the score of no answer, and (score, first character, end) of the best span."""
        starts_T, ends_T = outputs_TC[: len(window.spans)].T
        is_inside = window.spans[:, 0] >= 0
        start_order, end_order = (
            np.argsort(np.where(is_inside, scores, -np.inf), kind="stable")[::-1][:_NUM_BEST]
            for scores in (starts_T, ends_T)
        )
        best: tuple[float, int, int] | None = None
        for start in start_order.tolist():
            for end in end_order.tolist():
                if not (is_inside[start] and is_inside[end] and start <= end < start + self._max_answer_length):
                    continue
                score = float(starts_T[start] + ends_T[end])
                if best is None or score > best[0]:
                    best = score, int(window.spans[start, 0]), int(window.spans[end, 1])
        return float(starts_T[0] + ends_T[0]), best


def context_of(example: Example) -> str:
    """Returns the context of a question. Raises DataError for an example without one."""
    if not isinstance(example.pair, str):
        raise DataError(f"{example.where}: a question without a context; set data.pair=COLUMN to that of the context")
    return example.pair


def answers_of(example: Example) -> list[tuple[str, int]]:
    """Returns (text, first character) of the answers; none: there is no answer in the context.

    Args:
        example: its label is a list of these or of mappings with `text` and `answer_start`, or a mapping of two lists.

    Raises:
        DataError: for another label, and for an answer that is not at its place in the context.
    """
    label, context = example.label, context_of(example)
    if isinstance(label, dict):
        texts, starts = label.get("text"), label.get("answer_start")
        label = None
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            label = [*zip(texts, starts, strict=True)]
    elif isinstance(label, list):
        label = [(one.get("text"), one.get("answer_start")) if isinstance(one, dict) else one for one in label]
    if not isinstance(label, list) or not all(map(_is_answer, label)):
        raise DataError(
            f"{example.where}: the answers must be a list of texts with their answer_start, or a mapping of the lists "
            f"text and answer_start, as SQuAD has them: set data.label=COLUMN"
        )
    for text, start in label:
        if context[start : start + len(text)] != text:
            raise DataError(
                f"{example.where}: the answer {text!r} is not at character {start} of the context, which has "
                f"{context[start : start + len(text)]!r} there; correct answer_start"
            )
    return [(text, start) for text, start in label]


def _is_answer(given: Any) -> bool:
    return (
        isinstance(given, tuple | list)
        and len(given) == 2
        and isinstance(given[0], str)
        and isinstance(given[1], int)
        and given[1] >= 0
    )


def _place(inside: NDArray[np.int64], answer: list[tuple[str, int]]) -> tuple[int, int]:
    """The first and the last token of the answer; (0, 0) where it is not whole in the window."""
    if not answer:
        return 0, 0
    first, end = answer[0][1], answer[0][1] + len(answer[0][0])
    touched = np.nonzero((inside[:, 0] >= 0) & (inside[:, 0] < end) & (inside[:, 1] > first))[0]
    if not len(touched) or inside[touched[0], 0] > first or inside[touched[-1], 1] < end:
        return 0, 0
    return int(touched[0]), int(touched[-1])


def _measured(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
    answers = [[text for text, _ in answers_of(example)] for example in examples]
    return {f"held_out_{name}": value for name, value in squad.scores(answers, texts).items()}
