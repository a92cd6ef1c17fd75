"""What of a batch is masked, one sample at a time, and how a model computes it: windows of text, or documents."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.bert.data import IGNORED, Masked, Masking
from trainkit_recipes.bert.documents import Documents, Unpadded

Model = Callable[..., Tensor]


class Samples(Protocol):
    """The samples of a batch."""

    @property
    def batch(self) -> Batch:
        """Its `tokens` [B, T] are to be masked, a sample in each row; its positions decide how."""
        ...

    def predict(self, model: Model, masked: Masked) -> tuple[Tensor, Tensor]:
        """Returns logits [..., V] and labels [...] of the masked tokens; unused slots may be among them."""
        ...

    def predict_slots(self, model: Model, masked: Masked) -> tuple[Masked, Tensor]:
        """Returns the masking, perhaps with fewer unused slots, and logits_BKV of its slots."""
        ...


def require_uncompiled(runtime: Runtime, key: str) -> None:
    """Requires that blocks are not compiled, where documents of other lengths come with every batch.

    Args:
        runtime: of the run.
        key: and value, which has the model compute documents.

    Raises:
        ConfigError: where they are.
    """
    if runtime.compile:
        raise ConfigError(
            f"compile=true with {key}: every batch has documents of other lengths, for which the layers would be "
            f"compiled again; set compile=false"
        )


def samples_of(batch: Batch, dataset: Any, pad: int) -> Samples:
    """Returns the samples of a batch: its windows, or the documents in them where they have numbers.

    Args:
        batch: with `tokens` int64 [B, T], and perhaps `segments` of the same shape, or `documents`, numbers as in
            `PackedDocuments`.
        dataset: that the batch is from; with documents it has their `num_documents`.
        pad: the token that is padding.

    Returns:
        The samples.

    Raises:
        DataError: for a data set that does not say how many documents it has.
    """
    if not isinstance(batch.data, dict) or "documents" not in batch.data:
        # Without a mask, attention can use its fastest kernels.
        is_padded = getattr(dataset, "is_padded", True)
        segments_BT = batch.data.get("segments") if isinstance(batch.data, dict) else None
        return Windows(batch, batch.tokens != pad if is_padded else None, segments_BT)
    num_documents = getattr(dataset, "num_documents", None)
    if num_documents is None:
        raise DataError(
            f'a {type(dataset).__name__} whose samples have "documents" needs the attribute num_documents: their '
            f"number in the whole data set, which tells the epochs apart"
        )
    epochs_B = batch.positions // len(dataset)
    if getattr(dataset, "form", "apart") == "padded":
        return Padded.of(batch, epochs_B * num_documents, dataset.sequence_length, pad)
    return Apart.of(batch, epochs_B * num_documents, pad)


def masked_by(masking: Masking, batch: Batch, runtime: Runtime, name: str) -> Masked:
    """Masks a batch, unless its data have a masking of their own.

    Args:
        masking: decides what is masked.
        batch: of samples.
        runtime: draws the random numbers.
        name: of the draw.
    """
    if "masked_positions" in batch.data:
        tokens_BT = batch.tokens.scatter(1, batch.masked_positions, batch.masked_inputs)
        return Masked(tokens_BT, batch.masked_positions, batch.masked_labels)
    return masking(batch.tokens, runtime.rand(batch, masking.num_draws(batch.tokens.shape[1]), name=name))


@dataclass(frozen=True)
class Windows:
    """Windows in which every token sees every other.

    Args:
        batch: the windows.
        attended_BT: bool, False for padding; None: there is none.
        segments_BT: int64, the kind of sentence of each token; None: all are 0.
    """

    batch: Batch
    attended_BT: Tensor | None
    segments_BT: Tensor | None = None

    def predict(self, model: Model, masked: Masked) -> tuple[Tensor, Tensor]:
        """Returns logits_BKV and labels_BK."""
        return self._logits(model, masked), masked.labels_BK

    def predict_slots(self, model: Model, masked: Masked) -> tuple[Masked, Tensor]:
        """Returns the masking and logits_BKV."""
        return masked, self._logits(model, masked)

    def predict_pairs(self, model: Callable[..., Any], masked: Masked) -> tuple[Tensor, Tensor]:
        """Returns logits_BKV, and those of the next sentence, [B, 2], of a `PreTrainingModel`."""
        logits, next_B2 = model(masked.tokens_BT, masked.chosen_BK, self.attended_BT, self.segments_BT, pairs=True)
        return logits, next_B2

    def _logits(self, model: Model, masked: Masked) -> Tensor:
        return model(masked.tokens_BT, masked.chosen_BK, self.attended_BT, self.segments_BT)


@dataclass(frozen=True)
class Apart:
    """Documents that do not see one another, computed without padding.

    Args:
        batch: the documents one by one, [P, T].
        unpadded: the documents as rows.
    """

    batch: Batch
    unpadded: Unpadded

    @classmethod
    def of(cls, batch: Batch, first_numbers_B: Tensor, pad: int) -> "Apart":
        """Takes the documents out of a batch of windows; `first_numbers_B` are added to their numbers."""
        unpadded = Unpadded.of(batch.tokens, batch.documents, first_numbers_B)
        return cls(_numbered(batch, unpadded.one_by_one(pad), unpadded.numbers_P), unpadded)

    def predict(self, model: Model, masked: Masked) -> tuple[Tensor, Tensor]:
        """Returns logits_KV and labels_K of the slots in use."""
        is_used_PK = masked.labels_BK != IGNORED
        chosen_K = self.unpadded.chosen(masked.chosen_BK)[is_used_PK]
        return self._logits(model, masked, chosen_K), masked.labels_BK[is_used_PK]

    def predict_slots(self, model: Model, masked: Masked) -> tuple[Masked, Tensor]:
        """Returns the masking and logits_PKV."""
        masked = _without_unused(masked)
        return masked, self._logits(model, masked, self.unpadded.chosen(masked.chosen_BK))

    def _logits(self, model: Model, masked: Masked, chosen: Tensor) -> Tensor:
        return model(self.unpadded.rows(masked.tokens_BT), chosen, documents=self.unpadded.documents)


@dataclass(frozen=True)
class Padded:
    """Documents in a row of a batch each, computed with their padding.

    Args:
        batch: the documents, [P, T].
        documents: how the rows [P * longest] are divided.
        longest: tokens of the longest document.
    """

    batch: Batch
    documents: Documents
    longest: int

    @classmethod
    def of(cls, batch: Batch, first_numbers_B: Tensor, length: int, pad: int) -> "Padded":
        """Numbers the documents of a batch; their masks are drawn for `length` tokens, whatever is the longest."""
        longest = batch.tokens.shape[1]
        numbers_P = batch.documents[:, 0] + first_numbers_B.to(batch.tokens.device)
        documents = Documents.of([longest] * len(numbers_P), numbers_P, batch.documents >= 0)
        tokens_PT = F.pad(batch.tokens, (0, length - longest), value=pad)
        return cls(_numbered(batch, tokens_PT, numbers_P), documents, longest)

    def predict(self, model: Model, masked: Masked) -> tuple[Tensor, Tensor]:
        """Returns logits_PKV and labels_PK."""
        masked, logits_PKV = self.predict_slots(model, masked)
        return logits_PKV, masked.labels_BK

    def predict_slots(self, model: Model, masked: Masked) -> tuple[Masked, Tensor]:
        """Returns the masking and logits_PKV."""
        masked = _without_unused(masked)
        firsts_P1 = torch.arange(len(masked.tokens_BT), device=masked.tokens_BT.device)[:, None] * self.longest
        chosen_PK = firsts_P1 + masked.chosen_BK.clamp(max=self.longest - 1)
        return masked, model(masked.tokens_BT[:, : self.longest].flatten(), chosen_PK, documents=self.documents)


def _numbered(batch: Batch, tokens_PT: Tensor, numbers_P: Tensor) -> Batch:
    """A batch whose samples are documents: what is drawn for one depends on its number."""
    numbers_P = numbers_P.cpu()
    return replace(batch, data={"tokens": tokens_PT}, positions=numbers_P, indices=numbers_P)


def _without_unused(masked: Masked) -> Masked:
    """Leaves out the slots that no sample uses."""
    is_used_K = (masked.labels_BK != IGNORED).any(dim=0)
    return replace(masked, chosen_BK=masked.chosen_BK[:, is_used_K], labels_BK=masked.labels_BK[:, is_used_K])
