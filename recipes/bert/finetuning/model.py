"""FineTuned: an encoder with the head of a task.

Shape suffixes: B samples, T tokens, N tokens without padding, D hidden size, C outputs.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from trainkit.ops import Dropout, pad
from trainkit_recipes.bert.documents import Documents
from trainkit_recipes.bert.model import Bert

Pooling = Literal["first", "mean"]


class FineTuned(nn.Module):
    """An encoder, and a linear head on every token or on the pooled sequence.

    With pooling `first` it computes what Hugging Face's BertForSequenceClassification does, without pooling what its
    BertForTokenClassification and BertForQuestionAnswering do.

    Args:
        encoder: with a pooler for `first`.
        num_outputs: of the head; 0: there is no head.
        pooling: `first`: the encoder's pooler on the first token, without a head that token itself; `mean`: the mean of
            the tokens; None: none.
        centre: what is added to the outputs.
        scale: what the head's outputs are multiplied by.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self, encoder: Bert, num_outputs: int, pooling: Pooling | None, *, centre: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.dropout = Dropout(encoder.architecture.dropout)
        size = encoder.architecture.hidden_size
        self.head = nn.Linear(size, num_outputs) if num_outputs else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=encoder.architecture.init_std)
            nn.init.zeros_(self.head.bias)
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor, positions_B: Tensor, firsts_B: Tensor | None = None
    ) -> Tensor:
        """Computes the outputs. On CUDA it waits for the device.

        Args:
            tokens_BT: int64.
            lengths_B: int64, tokens of each sample; the rest is padding, which is not computed.
            positions_B: int64, those of the samples, which decide what is dropped.
            firsts_B: int64, how many tokens are of segment 0; None: all.

        Returns:
            [B, C] with a pooling, [B, T, C] without; of a model without a head, [B, D].
        """
        num_samples, length = tokens_BT.shape
        order_B = lengths_B.argsort(stable=True)
        documents = Documents.of(lengths_B[order_B].tolist(), positions_B.to(tokens_BT.device)[order_B])
        samples_N = order_B.repeat_interleave(lengths_B[order_B])
        places_N = samples_N * length + documents.positions_N
        segments_N = None
        if firsts_B is not None and self.encoder.architecture.num_segments > 1:
            segments_N = (documents.positions_N >= firsts_B[samples_N]).long()
        tokens_N = tokens_BT.flatten()[places_N]
        if self.pooling == "first":
            rows_B = documents.bounds[:-1].long()[order_B.argsort()]
            hidden_BD = self.encoder(tokens_N, None, segments_N, documents, rows_B)
            hidden = hidden_BD if self.head is None else self.encoder.pool(hidden_BD[:, None])
        else:
            hidden_ND = self.encoder(tokens_N, None, segments_N, documents)
            hidden = self._pooled(pad(hidden_ND, places_N, num_samples, length), lengths_B)
        outputs = hidden if self.head is None else self.head(self.dropout(hidden))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs if self.head is None else outputs * self.scale + self.centre

    def _pooled(self, hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        if self.pooling is None:
            return hidden_BTD
        return hidden_BTD.sum(dim=1) / lengths_B[:, None].to(hidden_BTD.dtype)  # padding is zero
