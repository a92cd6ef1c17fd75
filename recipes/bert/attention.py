"""Attention: within a sample, or within each of the documents in rows without padding.

Shape suffixes: B samples, T tokens, N rows, L tokens of a document, D hidden size, H heads, E head size, R twice the
largest relative distance plus one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.ops import Dropout, dropout
from trainkit_recipes.bert.architecture import Architecture
from trainkit_recipes.bert.documents import Documents


class Attention(nn.Module):
    """Self-attention: every token attends to every token of its sample, or document, that is not padding."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.num_heads, self.head_size = architecture.num_heads, architecture.head_size
        self.qkv = nn.Linear(size, 3 * size, bias=architecture.bias)
        self.output = nn.Linear(size, size, bias=architecture.bias)
        self.relative = _bias_of_positions(architecture)
        self.dropout = Dropout(architecture.attention_dropout)

    def forward(
        self,
        x: Tensor,
        attended_BT: Tensor | None,
        angles_TE: Tensor | None,
        documents: Documents | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Maps hidden states [B, T, D] to [B, T, D], or rows [N, D] of documents to [N, D]; or to those at `chosen`.

        Args:
            x: hidden states.
            attended_BT: bool, False for padding; not with documents.
            angles_TE: of rotary positions, of each row where there are documents.
            documents: how rows are divided.
            chosen: int64 [B, K], positions of the queries, or with documents [M], rows; None: all. Without documents
                not where positions are a bias on the scores, whose rows would differ between samples.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_size))
        if documents is not None:
            out_ND = self._by_document(qkv, angles_TE, documents).flatten(1)
            return self.output(out_ND if chosen is None else out_ND[chosen])
        q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4)
        if angles_TE is not None:
            q_BHTE, k_BHTE = rotate(q_BHTE, angles_TE), rotate(k_BHTE, angles_TE)
        if chosen is not None:
            assert self.relative is None
            q_BHTE = at(q_BHTE.transpose(1, 2), chosen).transpose(1, 2)
        bias = self._bias(x.shape[1], attended_BT, q_BHTE.dtype)
        if self.training and self.dropout.p > 0:
            out_BHTE = self._explicitly(q_BHTE, k_BHTE, v_BHTE, bias)
        else:
            out_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=bias)
        return self.output(out_BHTE.transpose(1, 2).flatten(2))

    def _bias(self, length: int, attended_BT: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Returns the mask or bias of the scores, broadcastable to BHTT: floats to add, or bools, False masking out."""
        mask_B11T = None if attended_BT is None else attended_BT[:, None, None, :]
        if self.relative is None:
            return mask_B11T
        bias_HTT = self.relative(length).to(dtype)
        return bias_HTT[None] if mask_B11T is None else bias_HTT.masked_fill(~mask_B11T, float("-inf"))

    def _explicitly(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, bias: Tensor | None) -> Tensor:
        # The fused kernels draw their dropout from a generator; this one depends on the sample.
        scores_BHTT = q_BHTE @ k_BHTE.transpose(-1, -2) * self.head_size**-0.5
        if bias is not None:
            is_mask = bias.dtype == torch.bool
            scores_BHTT = scores_BHTT.masked_fill(~bias, float("-inf")) if is_mask else scores_BHTT + bias
        return self.dropout(scores_BHTT.softmax(dim=-1)) @ v_BHTE

    # -- documents -----------------------------------------------------------------------------------------------------

    def _by_document(self, qkv_N3HE: Tensor, angles_NE: Tensor | None, documents: Documents) -> Tensor:
        """Returns out_NHE."""
        if angles_NE is not None:
            qk_N2HE = rotate(qkv_N3HE[:, :2], angles_NE[:, None, None])
            qkv_N3HE = torch.cat((qk_N2HE, qkv_N3HE[:, 2:]), dim=1)
        draw = self.dropout.draw(qkv_N3HE, documents.rows_N)
        bias_HLL = None if self.relative is None else self.relative(documents.longest).to(qkv_N3HE.dtype)
        if draw or (bias_HLL is not None and bias_HLL.requires_grad):
            return _explicitly_by_document(qkv_N3HE, bias_HLL, documents, draw)
        if bias_HLL is None and documents.attended_BL is None and _has_varlen(qkv_N3HE):
            return _varlen(qkv_N3HE, documents)
        return _fused_by_document(qkv_N3HE, bias_HLL, documents)


def _has_varlen(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def _varlen(qkv_N3HE: Tensor, documents: Documents) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q_NHE, k_NHE, v_NHE = qkv_N3HE.unbind(1)
    bounds, longest = documents.bounds, documents.longest
    out_NHE = varlen_attn(q_NHE, k_NHE, v_NHE, bounds, bounds, longest, longest)
    assert isinstance(out_NHE, Tensor)
    return out_NHE


def _fused_by_document(qkv_N3HE: Tensor, bias_HLL: Tensor | None, documents: Documents) -> Tensor:
    """One call of PyTorch's fused attention for the documents of each length."""
    groups = documents.groups
    parts = []
    for part, (_, count, length) in zip(qkv_N3HE.split([n * length for _, n, length in groups]), groups, strict=True):
        q_BHLE, k_BHLE, v_BHLE = _of_group(part, count, length)
        mask = _mask_of_group(bias_HLL, documents.attended_BL, length)
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, attn_mask=mask)
        parts.append(out_BHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if parts else qkv_N3HE[:, 0]


class _ByDocument(torch.autograd.Function):
    """Attention with dropout, or a learned bias, for the documents of each length.

    The backward pass computes the scores again: they are the larger part of what a layer would keep.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_N3HE: Tensor, bias_HLL: Tensor | None, documents: Documents, draw: dict[str, Any]
    ) -> Tensor:
        ctx.documents, ctx.draw = documents, draw
        ctx.save_for_backward(qkv_N3HE, bias_HLL)
        out_NHE = torch.empty_like(qkv_N3HE[:, 0])
        for first, count, length in documents.groups:
            q, k, v = _of_group(qkv_N3HE[first : first + count * length], count, length)
            shares_BHLL = _shares(q, k, _mask_of_group(bias_HLL, documents.attended_BL, length))
            dropped_BHLL = _dropped(shares_BHLL, documents.rows_N[first : first + count * length], draw)
            out_BLHE = out_NHE[first : first + count * length].unflatten(0, (count, length))
            out_BLHE.copy_((dropped_BHLL @ v).transpose(1, 2))
        return out_NHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NHE,) = grads
        qkv_N3HE, bias_HLL = ctx.saved_tensors
        documents, draw = ctx.documents, ctx.draw
        dqkv_N3HE = torch.empty_like(qkv_N3HE)
        dbias_HLL = None
        if bias_HLL is not None and ctx.needs_input_grad[1]:
            dbias_HLL = torch.zeros_like(bias_HLL, dtype=torch.promote_types(bias_HLL.dtype, torch.float32))
        scale = qkv_N3HE.shape[-1] ** -0.5
        for first, count, length in documents.groups:
            rows = slice(first, first + count * length)
            q, k, v = _of_group(qkv_N3HE[rows], count, length)
            shares_BHLL = _shares(q, k, _mask_of_group(bias_HLL, documents.attended_BL, length))
            grad_BHLE = grad_NHE[rows].unflatten(0, (count, length)).transpose(1, 2)
            dq, dk, dv = _of_group(dqkv_N3HE[rows], count, length)
            dv.copy_(_dropped(shares_BHLL, documents.rows_N[rows], draw).transpose(-1, -2) @ grad_BHLE)
            dshares_BHLL = _dropped(grad_BHLE @ v.transpose(-1, -2), documents.rows_N[rows], draw)
            dscores_BHLL = torch._softmax_backward_data(dshares_BHLL, shares_BHLL, -1, shares_BHLL.dtype)
            dq.copy_((dscores_BHLL @ k).mul_(scale))
            dk.copy_((dscores_BHLL.transpose(-1, -2) @ q).mul_(scale))
            if dbias_HLL is not None:
                dbias_HLL[:, :length, :length] += dscores_BHLL.sum(0, dtype=dbias_HLL.dtype)
        return dqkv_N3HE, None if dbias_HLL is None else dbias_HLL.to(bias_HLL.dtype), None, None


def _explicitly_by_document(
    qkv_N3HE: Tensor, bias_HLL: Tensor | None, documents: Documents, draw: dict[str, Any]
) -> Tensor:
    out_NHE: Tensor = _ByDocument.apply(qkv_N3HE, bias_HLL, documents, draw)  # type: ignore[no-untyped-call]
    return out_NHE


def _of_group(rows_N3HE: Tensor, count: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns views q, k, v [B, H, L, E] of the rows of documents of one length."""
    q, k, v = rows_N3HE.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _mask_of_group(bias_HLL: Tensor | None, attended_BL: Tensor | None, length: int) -> Tensor | None:
    mask_B11L = None if attended_BL is None else attended_BL[:, None, None, :]
    if bias_HLL is None:
        return mask_B11L
    bias_1HLL = bias_HLL[None, :, :length, :length]
    return bias_1HLL if mask_B11L is None else bias_1HLL.masked_fill(~mask_B11L, -math.inf)


def _shares(q_BHLE: Tensor, k_BHLE: Tensor, mask: Tensor | None) -> Tensor:
    scores_BHLL = (q_BHLE * q_BHLE.shape[-1] ** -0.5) @ k_BHLE.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        scores_BHLL = scores_BHLL.masked_fill_(~mask, -math.inf)
    elif mask is not None:
        scores_BHLL += mask
    return scores_BHLL.softmax(-1, dtype=torch.promote_types(scores_BHLL.dtype, torch.float32)).to(q_BHLE.dtype)


def _dropped(shares_BHLL: Tensor, rows_N: Tensor, draw: dict[str, Any]) -> Tensor:
    """Drops shares by the number of the query, the head and the place of the key, which padding does not change."""
    if not draw:
        return shares_BHLL
    count, num_heads, length, _ = shares_BHLL.shape
    heads_H1 = torch.arange(num_heads, device=rows_N.device)[:, None]
    numbers_BHL = rows_N.view(count, 1, length) * num_heads + heads_H1
    of_queries = {**draw, "positions": numbers_BHL.flatten()}
    return dropout(shares_BHLL.flatten(0, 2), **of_queries).view_as(shares_BHLL)


# -- positions ---------------------------------------------------------------------------------------------------------


def _bias_of_positions(architecture: Architecture) -> "RelativeBias | Alibi | None":
    if architecture.positions == "relative":
        return RelativeBias(architecture)
    return Alibi(architecture.num_heads) if architecture.positions == "alibi" else None


class Alibi(nn.Module):
    """ALiBi (arXiv 2108.12409), symmetric as in MosaicBERT: a penalty on the distance, of another slope in each head.

    The model cannot tell left from right by it: a text that is read backwards has the same hidden states, backwards.

    Args:
        num_heads: of the attention.
    """

    slopes_H: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes_H", torch.tensor(alibi_slopes(num_heads)), persistent=False)

    def forward(self, length: int) -> Tensor:
        """Returns bias_HTT: queries in rows, keys in columns."""
        positions_T = torch.arange(length, device=self.slopes_H.device)
        distances_TT = (positions_T[None, :] - positions_T[:, None]).abs()
        return -self.slopes_H[:, None, None] * distances_TT


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns the slopes of the paper: a geometric series; every second one of the next is added for other numbers.

    Example:
        >>> alibi_slopes(4), alibi_slopes(3)
        ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2.0 ** (-4 * (head + 1) / power) for head in range(0, 2 * (num_heads - power), 2)]


class RelativeBias(nn.Module):
    """A learned bias on the attention score for each head and each distance from a query to a key.

    Distances beyond `max_distance` share the last value. Initially head h has its peak at one offset (-1, +1, -2, +2,
    ...) and falls on both sides: small encoders spend most of a short training on learning to find the neighbours.
    """

    _SLOPE = 1.0

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.max_distance = architecture.max_distance
        self.table_HR = nn.Parameter(torch.empty(architecture.num_heads, 2 * self.max_distance + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the initial bias, which is not random."""
        num_heads = len(self.table_HR)
        distances_R = torch.arange(-self.max_distance, self.max_distance + 1)
        steps_H = torch.arange(num_heads) // 2 + 1
        offsets_H = torch.where(torch.arange(num_heads) % 2 == 0, -steps_H, steps_H)
        self.table_HR.copy_(-self._SLOPE * (distances_R[None] - offsets_H[:, None]).abs().clamp(max=8))

    def forward(self, length: int) -> Tensor:
        """Returns bias_HTT: queries in rows, keys in columns."""
        positions_T = torch.arange(length, device=self.table_HR.device)
        distances_TT = positions_T[None, :] - positions_T[:, None]
        return self.table_HR[:, distances_TT.clamp(-self.max_distance, self.max_distance) + self.max_distance]


def at(x_BT: Tensor, chosen_BK: Tensor) -> Tensor:
    """Returns [B, K, ...], what is at positions of each sample.

    Args:
        x_BT: [B, T, ...].
        chosen_BK: int64.
    """
    return x_BT[torch.arange(len(x_BT), device=x_BT.device)[:, None], chosen_BK]


def rotate(x_BHTE: Tensor, angles_TE: Tensor) -> Tensor:
    """Applies rotary positions: rotates each pair (x[e], x[e + E/2]) by an angle proportional to its position.

    Args:
        x_BHTE: queries or keys.
        angles_TE: in radians.

    Returns:
        A tensor of the shape and dtype of x.
    """
    first, second = x_BHTE.chunk(2, dim=-1)
    cos_TE, sin_TE = angles_TE.cos().to(x_BHTE.dtype), angles_TE.sin().to(x_BHTE.dtype)
    return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE
