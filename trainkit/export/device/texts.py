"""Task: what the model of this bundle says of a text. A tab divides a text from its pair."""

from __future__ import annotations

import json
from typing import Any, Callable

import numpy as np
from wordpiece import WordPiece

_NUM_PREDICTIONS = 3


class LineError(Exception):
    """What is wrong with one line of the input."""


class Task:
    """The task that bundle.json names, with its vocabulary and labels.

    Args:
        bundle: with the files.
    """

    def __init__(self, bundle: Any) -> None:
        self.name, settings = bundle.facts["task"], dict(bundle.facts["text"])
        self.max_length = settings.pop("max_length")
        self.inputs = [given["name"] for given in bundle.facts["inputs"]]
        tokens, characters = bundle.text("vocabulary.txt").split("\n"), json.loads(bundle.text("characters.json"))
        self.tokenizer = WordPiece(tokens, characters, **settings)
        self.labels = json.loads(bundle.text("labels.json"))
        self._answer = getattr(self, "_" + self.name)

    def answer(self, line: str, run: Callable[..., Any]) -> dict[str, Any]:
        """Returns what is printed for a line; `run` is that of an InferenceSession."""
        text, tab, pair = line.partition("\t")
        given = {"text": text, "pair": pair} if tab else {"text": text}

        def outputs(rows: list[tuple[list[int], int]]) -> Any:
            return run(None, self.arrays(rows))[0]

        try:
            found: dict[str, Any] = self._answer(text, pair if tab else None, outputs)
        except LineError as error:
            found = {"error": str(error)}
        return {**given, **found}

    def row(self, text: str, pair: str | None = None) -> tuple[list[int], int]:
        """Returns the tokens of a text or a pair, cut as in training, and how many of them are of segment 0."""
        first, second = self._pieces(text), [] if pair is None else self._pieces(pair)
        room = self.max_length - (2 if pair is None else 3)
        kept = room if pair is None else min(len(first), max(room - len(second), (room + 1) // 2))
        start, end = self.tokenizer.numbers["[CLS]"], self.tokenizer.numbers["[SEP]"]
        tokens = [start, *first[:kept], end]
        return tokens + ([] if pair is None else [*second[: room - kept], end]), len(tokens)

    def arrays(self, rows: list[tuple[list[int], int]]) -> dict[str, Any]:
        """Returns the model's inputs [rows, longest], by name."""
        shape = len(rows), max(len(tokens) for tokens, _ in rows)
        arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        arrays["input_ids"] += self.tokenizer.numbers["[PAD]"]
        for number, (tokens, first) in enumerate(rows):
            arrays["input_ids"][number, : len(tokens)] = tokens
            arrays["attention_mask"][number, : len(tokens)] = 1
            arrays["token_type_ids"][number, first : len(tokens)] = 1
        return {name: arrays[name] for name in self.inputs}

    def _pieces(self, text: str) -> list[int]:
        pieces: list[int] = self.tokenizer.encode(text)
        if not pieces:
            raise LineError("the text has no token of the vocabulary")
        return pieces

    def _classification(self, text: str, pair: str | None, outputs: Callable[..., Any]) -> dict[str, Any]:
        shares = _softmax(outputs([self.row(text, pair)])[0])
        each = {f"p({label})": round(float(share), 6) for label, share in zip(self.labels, shares)}
        return {"prediction": self.labels[int(shares.argmax())], **each}

    def _regression(self, text: str, pair: str | None, outputs: Callable[..., Any]) -> dict[str, Any]:
        return {"prediction": float(outputs([self.row(text, pair)])[0, 0])}

    def _sentence_embeddings(self, text: str, pair: str | None, outputs: Callable[..., Any]) -> dict[str, Any]:
        found = outputs([self.row(one) for one in (text, pair) if one is not None])
        found = found / np.maximum(np.sqrt((found * found).sum(axis=1, keepdims=True)), 1e-12)
        if pair is not None:
            return {"cosine": round(float(found[0] @ found[1]), 6)}
        return {"embedding": [round(float(value), 6) for value in found[0]]}

    def _token_classification(self, text: str, pair: str | None, outputs: Callable[..., Any]) -> dict[str, Any]:
        words = text.split() + ([] if pair is None else pair.split())
        if not words:
            raise LineError("the text has no word")
        encoded = [self.tokenizer.encode(word) or [self.tokenizer.numbers["[UNK]"]] for word in words]
        starts = np.cumsum([1] + [len(pieces) for pieces in encoded[:-1]])
        inside = [number for pieces in encoded for number in pieces][: self.max_length - 2]
        row = [self.tokenizer.numbers["[CLS]"], *inside, self.tokenizer.numbers["[SEP]"]]
        best = outputs([(row, len(row))])[0].argmax(axis=-1)
        otherwise = "O" if "O" in self.labels else self.labels[0]  # of words beyond the longest text
        tags = [self.labels[int(best[start])] if start < len(row) - 1 else otherwise for start in starts]
        return {"prediction": " ".join(tags)}

    def _masked_words(self, text: str, pair: str | None, outputs: Callable[..., Any]) -> dict[str, Any]:
        line, mask = text if pair is None else f"{text}\t{pair}", self.tokenizer.numbers["[MASK]"]
        pieces = self._pieces(line)
        if mask not in pieces or len(pieces) > self.max_length - 2:
            raise LineError(f"write [MASK] where a word is to be predicted, in {self.max_length - 2} tokens at most")
        tokens, first = [self.tokenizer.numbers["[CLS]"], *pieces, self.tokenizer.numbers["[SEP]"]], len(pieces) + 2
        places = [place for place, token in enumerate(tokens) if token == mask]
        predictions = []
        for shares in _softmax(outputs([(tokens, first)])[0][places]):
            best = np.argsort(-shares, kind="stable")[:_NUM_PREDICTIONS]
            predictions.append([[self.tokenizer.tokens[number], round(float(shares[number]), 6)] for number in best])
        return {"predictions": predictions}


def _softmax(outputs: Any) -> Any:
    shares = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)
