"""Documents: how rows without padding are divided into documents that do not see one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from trainkit.ops import pad, unpad

_LONGEST = 1 << 20  # positions of a document in the numbers of its rows


@dataclass(frozen=True)
class Documents:
    """The documents in rows [N, ...], one after the other, the shortest first.

    What a model computes of a document, dropout included, is a function of the document, its number and its tokens; of
    other documents it shares only the shapes, so that another number of rows may round differently.

    Args:
        lengths: rows of each document, ascending.
        positions_N: int64, the place of each row in its document, from 0.
        rows_N: int64, a number for each row that decides what is dropped there.
        attended_BL: bool, False for rows that are padding, where the documents have been padded to one length; None:
            there is no padding.
    """

    lengths: tuple[int, ...]
    positions_N: Tensor
    rows_N: Tensor
    attended_BL: Tensor | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], numbers_P: Tensor | None = None, attended_BL: Tensor | None = None
    ) -> "Documents":
        """Makes the division of documents, of which each has a number.

        Args:
            lengths: rows of each document, ascending.
            numbers_P: int64, a number for each document, below 2^43, which decides what is dropped; None: 0, 1, 2 ...
            attended_BL: see `Documents`.

        Returns:
            The division, on the device of `numbers_P`.
        """
        assert list(lengths) == sorted(lengths)
        numbers_P = torch.arange(len(lengths)) if numbers_P is None else numbers_P
        lengths_P = torch.tensor(lengths, dtype=torch.int64, device=numbers_P.device)
        num_rows = sum(lengths)
        first_N = torch.repeat_interleave(lengths_P.cumsum(0) - lengths_P, lengths_P, output_size=num_rows)
        positions_N = torch.arange(num_rows, device=numbers_P.device) - first_N
        numbers_N = torch.repeat_interleave(numbers_P, lengths_P, output_size=num_rows)
        return cls(tuple(lengths), positions_N, numbers_N * _LONGEST + positions_N, attended_BL)

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """(first row, number of documents, length) of the documents of each length."""
        groups, first = [], 0
        for length, members in groupby(self.lengths):
            count = len(list(members))
            groups.append((first, count, length))
            first += count * length
        return groups

    @cached_property
    def longest(self) -> int:
        """Rows of the longest document; 0 without any."""
        return self.lengths[-1] if self.lengths else 0

    @cached_property
    def bounds(self) -> Tensor:
        """int32 [documents + 1], the first row of each document, and the number of rows."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32, device=self.positions_N.device)
        return lengths.cumsum(0, dtype=torch.int32)


@dataclass(frozen=True)
class Unpadded:
    """The documents of windows, as rows and one by one.

    Args:
        documents: how the rows are divided.
        tokens_N: int64, the rows.
        numbers_P: int64, the number of each document.
        places_N: int64, where each row is in [P, L] of the documents one by one.
        length: L.
    """

    documents: Documents
    tokens_N: Tensor
    numbers_P: Tensor
    places_N: Tensor
    length: int

    @classmethod
    def of(cls, tokens_BT: Tensor, documents_BT: Tensor, first_number: int | Tensor = 0) -> "Unpadded":
        """Takes the documents out of windows. On CUDA it waits for the device.

        Args:
            tokens_BT: int64.
            documents_BT: int64, the number of each token's document, negative for padding. Tokens of a document are
                consecutive.
            first_number: added to the numbers; int64 [B]: of the documents in each window.

        Returns:
            The documents, the shortest first.
        """
        length = tokens_BT.shape[1]
        if isinstance(first_number, Tensor):
            first_number = first_number.to(tokens_BT.device)[:, None]
        given_N, places_N = unpad(documents_BT, documents_BT >= 0)
        numbers_N = (documents_BT + first_number).flatten()[places_N]
        windows_N = places_N // length
        is_first_N = torch.ones_like(given_N, dtype=torch.bool)
        is_first_N[1:] = (given_N[1:] != given_N[:-1]) | (windows_N[1:] != windows_N[:-1])
        firsts_P = is_first_N.nonzero().squeeze(1)
        lengths_P = torch.diff(firsts_P, append=firsts_P.new_tensor([len(given_N)]))
        lengths_P, order_P = lengths_P.sort(stable=True)
        firsts_P = firsts_P[order_P]
        documents = Documents.of(lengths_P.tolist(), numbers_N[firsts_P])
        count_P = torch.arange(len(lengths_P), device=tokens_BT.device)
        document_N = torch.repeat_interleave(count_P, lengths_P, output_size=len(given_N))
        rows_N = places_N[firsts_P[document_N] + documents.positions_N]
        return cls(
            documents,
            tokens_BT.flatten()[rows_N],
            numbers_N[firsts_P],
            document_N * length + documents.positions_N,
            length,
        )

    def one_by_one(self, padding: int) -> Tensor:
        """Returns tokens_PL, each document in a row that `padding` fills up."""
        num_documents = len(self.documents.lengths)
        tokens_PL = pad(self.tokens_N - padding, self.places_N, num_documents, self.length)
        return tokens_PL + padding

    def rows(self, tokens_PL: Tensor) -> Tensor:
        """Returns the tokens of documents one by one, as rows: the inverse of `one_by_one`."""
        return tokens_PL.flatten()[self.places_N]

    def chosen(self, chosen_PK: Tensor) -> Tensor:
        """Returns the rows of positions in the documents, int64 [P, K]; positions beyond a document's end are its last.

        Args:
            chosen_PK: int64.
        """
        firsts_P1 = self.documents.bounds[:-1, None].long()
        last_P1 = torch.diff(self.documents.bounds)[:, None].long() - 1
        return firsts_P1 + chosen_PK.minimum(last_P1)
