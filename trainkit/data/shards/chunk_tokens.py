"""The tokens of a chunk of documents, by the side that each is on."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.packing import dtype_for
from trainkit.data.split import DROPPED, HELD_OUT, TRAIN
from trainkit.data.tokenizer import WordPiece

ARRAYS = ("train", "held_out", "train.ends", "held_out.ends")
_NAMES = {TRAIN: "train", HELD_OUT: "held_out"}
_ENCODED_AT_ONCE = 1024  # documents


def token_dtype(tokenizer: WordPiece) -> np.dtype[Any]:
    """Returns the dtype of tokens in shards."""
    return dtype_for(tokenizer.vocab_size).newbyteorder("<")


def tokens_of(texts: Iterable[tuple[int, str]], tokenizer: WordPiece) -> dict[str, NDArray[Any]]:
    """Tokenizes documents.

    Args:
        texts: (side, text) of each; those that are dropped are in no array.
        tokenizer: of the shards.

    Returns:
        `ARRAYS`: of each side the tokens, each document with [SEP] after it, and int64 the places of these.
    """
    dtype = token_dtype(tokenizer)
    ends: dict[int, list[int]] = {side: [] for side in _NAMES}
    done: dict[int, list[NDArray[Any]]] = {side: [] for side in _NAMES}
    before = dict.fromkeys(_NAMES, 0)
    kept = ((side, text) for side, text in texts if side != DROPPED)
    while group := list(islice(kept, _ENCODED_AT_ONCE)):
        own: dict[int, list[int]] = {side: [] for side in _NAMES}
        for (side, _), encoded in zip(group, tokenizer.encode_batch([text for _, text in group]), strict=True):
            own[side] += encoded
            ends[side].append(before[side] + len(own[side]))
            own[side].append(tokenizer.end)
        for side, tokens in own.items():
            done[side].append(np.array(tokens, dtype))
            before[side] += len(tokens)
    arrays: dict[str, NDArray[Any]] = {}
    for side, name in _NAMES.items():
        arrays[name] = np.concatenate([np.empty(0, dtype), *done[side]])
        arrays[f"{name}.ends"] = np.array(ends[side], np.int64)
    return arrays
