"""Nearest neighbours between sets of vectors, in float64 and in blocks of bounded memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

_MOST_DISTANCES = 1 << 24  # in a block: 128 MB


def squared_distances(rows_NF: Tensor, others_MF: Tensor) -> Tensor:
    """Computes squared Euclidean distances [N, M] in float64; those of equal rows are 0 up to rounding."""
    rows, others = rows_NF.double(), others_MF.double()
    products = rows @ others.T
    return (rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * products).clamp(min=0)


def blocks(rows_NF: Tensor, others_MF: Tensor) -> Iterator[Tensor]:
    """Yields squared distances of some rows at a time to all others, [n, M], in order."""
    for part in rows_NF.split(max(1, _MOST_DISTANCES // max(1, len(others_MF)))):
        yield squared_distances(part, others_MF)


def tolerance(*sets: Tensor) -> float:
    """Returns by how much a squared distance that is computed here may differ from the true one."""
    largest = max(float(x.double().square().sum(1).max()) for x in sets if len(x))
    return 1e-12 * largest


class Nearest:
    """The k nearest vectors to each query among vectors that arrive in parts.

    Args:
        queries_QF: the queries.
        k: neighbours of each.
    """

    def __init__(self, queries_QF: Tensor, k: int) -> None:
        self.queries_QF, self.k = queries_QF, k
        device = queries_QF.device
        self.squared_Qk = torch.full((len(queries_QF), k), torch.inf, dtype=torch.float64, device=device)
        self.indices_Qk = torch.full((len(queries_QF), k), torch.iinfo(torch.int64).max, device=device)

    def see(self, vectors_MF: Tensor, indices_M: Tensor) -> None:
        """Takes further vectors, and the numbers that they are known by."""
        squared_QM = squared_distances(self.queries_QF, vectors_MF)
        indices_QM = indices_M.to(squared_QM.device).expand(len(squared_QM), -1)
        self._keep(torch.cat([self.squared_Qk, squared_QM], 1), torch.cat([self.indices_Qk, indices_QM], 1))

    def merge(self, others: "list[tuple[Tensor, Tensor]]") -> None:
        """Takes the place of itself and others: (squared_Qk, indices_Qk) of each rank."""
        device = self.queries_QF.device
        self._keep(*(torch.cat([x.to(device) for x in parts], 1) for parts in zip(*others, strict=True)))

    def _keep(self, squared: Tensor, indices: Tensor) -> None:
        """Keeps the nearest; of equally near ones those with the lowest numbers, on any number of ranks."""
        by_number = indices.argsort(dim=1, stable=True)
        squared, indices = squared.gather(1, by_number), indices.gather(1, by_number)
        order = squared.argsort(dim=1, stable=True)[:, : self.k]
        self.squared_Qk, self.indices_Qk = squared.gather(1, order), indices.gather(1, order)
