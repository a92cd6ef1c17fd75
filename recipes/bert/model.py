"""BERT (Devlin et al., arXiv 1810.04805), and a modern variant by the same settings.

Shape suffixes: B samples, T tokens, D hidden size, H heads, E head size, K masked tokens per sample, V vocabulary
(padded), R twice the largest relative distance plus one.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError, require_at_least
from trainkit.ops import ActivatedLinear, Dropout, LayerNorm

_VOCAB_MULTIPLE = 64  # a size that tensor cores compute fastest
_NEVER = -1e4  # logit of a padding entry of the vocabulary: a probability of zero, and finite in fp16


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a BERT; the defaults are those of bert-base.

    Args:
        hidden_size: elements of a hidden state.
        num_layers: of the encoder.
        num_heads: of attention; must divide `hidden_size`.
        feed_forward_size: elements between the two matrices of a feed-forward network.
        max_length: the longest sequence, in tokens.
        num_segments: kinds of sentences with an embedding each; 0: none.
        positions: `learned` embeddings; `rotary` (arXiv 2104.09864); or `relative`, a learned bias on the attention
            scores for each head and distance up to `max_distance`, which initially favours the neighbours.
        norm: `post`, after the residual sum, as in BERT; or `pre`, which needs no long warm-up.
        max_distance: see `positions`, in tokens.
        dropout: probability, of hidden states.
        attention_dropout: probability, of attention.
        norm_eps: added to the variance in LayerNorm.
        init_std: standard deviation of initial weights.
        pooler: whether there is one, for models built on a trained encoder; masked language modelling does not use it.

    Raises:
        ConfigError: for values out of range or that do not match.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feed_forward_size: int = 3072
    max_length: int = 512
    num_segments: int = 2
    positions: Literal["learned", "rotary", "relative"] = "learned"
    norm: Literal["post", "pre"] = "post"
    max_distance: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    init_std: float = 0.02
    pooler: bool = False

    def __post_init__(self) -> None:
        counts = ("hidden_size", "num_layers", "num_heads", "feed_forward_size", "max_length", "max_distance")
        require_at_least(1, "recipe.model.", **{name: getattr(self, name) for name in counts})
        amounts = ("num_segments", "norm_eps", "init_std")
        require_at_least(0, "recipe.model.", **{name: getattr(self, name) for name in amounts})
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"recipe.model.{name}={getattr(self, name)}: must be 0 or more, and below 1")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"recipe.model.num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; "
                f"set one to fit the other"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(f"recipe.model.positions=rotary needs an even head size, not {self.head_size}")

    @property
    def head_size(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_heads


BASE = Architecture()
LARGE = replace(BASE, hidden_size=1024, num_layers=24, num_heads=16, feed_forward_size=4096)
TINY = replace(BASE, hidden_size=128, num_layers=2, num_heads=2, feed_forward_size=512)


class Bert(nn.Module):
    """The encoder.

    Args:
        architecture: its shape.
        vocab_size: number of tokens.
    """

    angles_TE: Tensor | None

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.embeddings = Embeddings(architecture, vocab_size)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.num_layers))
        self.norm = _norm(architecture) if architecture.norm == "pre" else nn.Identity()
        self.pooler = nn.Linear(architecture.hidden_size, architecture.hidden_size) if architecture.pooler else None
        angles_TE = _angles(architecture) if architecture.positions == "rotary" else None
        self.register_buffer("angles_TE", angles_TE, persistent=False)

    def forward(
        self, tokens_BT: Tensor, attended_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> Tensor:
        """Encodes tokens.

        Args:
            tokens_BT: int64.
            attended_BT: bool, False for padding, which no token attends to; None: there is none.
            segments_BT: int64; None: all are 0.

        Returns:
            hidden_BTD.

        Raises:
            ConfigError: for a sequence longer than `max_length`.
        """
        length = tokens_BT.shape[1]
        if length > self.architecture.max_length:
            raise ConfigError(
                f"a sequence of {length} tokens: recipe.model.max_length={self.architecture.max_length}; "
                f"raise it or lower data.sequence_length"
            )
        x_BTD = self.embeddings(tokens_BT, segments_BT)
        angles_TE = None if self.angles_TE is None else self.angles_TE[:length]
        for layer in self.layers:
            x_BTD = layer(x_BTD, attended_BT, angles_TE)
        return self.norm(x_BTD)

    def pool(self, hidden_BTD: Tensor) -> Tensor:
        """Returns the representation of the whole sequence, [B, D], from its first token; only with `pooler`."""
        assert self.pooler is not None, "this architecture has no pooler"
        return torch.tanh(self.pooler(hidden_BTD[:, 0]))


class Embeddings(nn.Module):
    """The sum of the embeddings of a token, its position and its segment."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.token = nn.Embedding(padded_vocab_size(vocab_size), size)
        self.position = nn.Embedding(architecture.max_length, size) if architecture.positions == "learned" else None
        self.segment = nn.Embedding(architecture.num_segments, size) if architecture.num_segments else None
        self.norm = _norm(architecture)
        self.dropout = Dropout(architecture.dropout)

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Returns the embeddings [B, T, D] of int64 tokens and segments."""
        x_BTD = self.token(tokens_BT)
        if self.segment is not None:
            x_BTD = x_BTD + (self.segment.weight[0] if segments_BT is None else self.segment(segments_BT))
        if self.position is not None:
            x_BTD = x_BTD + self.position.weight[: tokens_BT.shape[1]]
        return self.dropout(self.norm(x_BTD))


class Layer(nn.Module):
    """Attention and a feed-forward network, each with a residual sum."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.is_pre = architecture.norm == "pre"
        self.attention = Attention(architecture)
        self.attention_norm = _norm(architecture)
        self.feed_forward = FeedForward(architecture)
        self.feed_forward_norm = _norm(architecture)
        self.dropout = Dropout(architecture.dropout)
        self.feed_forward_dropout = Dropout(architecture.dropout)

    def forward(self, x_BTD: Tensor, attended_BT: Tensor | None, angles_TE: Tensor | None) -> Tensor:
        """Maps hidden states [B, T, D] to the next ones."""
        if self.is_pre:
            attended_BTD = self.attention(self.attention_norm(x_BTD), attended_BT, angles_TE)
            normed_BTD, x_BTD = self.feed_forward_norm(attended_BTD, x_BTD, self.dropout)
            return x_BTD + self.feed_forward_dropout(self.feed_forward(normed_BTD))
        x_BTD, _ = self.attention_norm(self.attention(x_BTD, attended_BT, angles_TE), x_BTD, self.dropout)
        normed_BTD, _ = self.feed_forward_norm(self.feed_forward(x_BTD), x_BTD, self.feed_forward_dropout)
        return normed_BTD


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.up = ActivatedLinear(architecture.hidden_size, architecture.feed_forward_size, "gelu")
        self.down = nn.Linear(architecture.feed_forward_size, architecture.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps hidden states [B, T, D] to [B, T, D]."""
        return self.down(self.up(x_BTD))


class Attention(nn.Module):
    """Self-attention: every token attends to every token of its sample that is not padding."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.num_heads, self.head_size = architecture.num_heads, architecture.head_size
        self.qkv = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.relative = RelativeBias(architecture) if architecture.positions == "relative" else None
        self.dropout = Dropout(architecture.attention_dropout)

    def forward(self, x_BTD: Tensor, attended_BT: Tensor | None, angles_TE: Tensor | None) -> Tensor:
        """Maps hidden states [B, T, D] to [B, T, D]."""
        num_samples, length, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(num_samples, length, 3, self.num_heads, self.head_size)
        q_BHTE, k_BHTE, v_BHTE = qkv.permute(2, 0, 3, 1, 4)
        if angles_TE is not None:
            q_BHTE, k_BHTE = rotate(q_BHTE, angles_TE), rotate(k_BHTE, angles_TE)
        bias = self._bias(length, attended_BT, q_BHTE.dtype)
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


class Head(nn.Module):
    """Maps hidden states to logits; the decoder is the token embedding."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.dense = ActivatedLinear(architecture.hidden_size, architecture.hidden_size, "gelu")
        self.norm = _norm(architecture)
        self.bias = nn.Parameter(torch.zeros(padded_vocab_size(vocab_size)))

    def forward(self, hidden: Tensor, embedding_VD: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
        return F.linear(self.norm(self.dense(hidden)), embedding_VD, self.bias)


class MaskedLanguageModel(nn.Module):
    """BERT with its head for predicting masked tokens.

    The vocabulary is padded to a multiple of 64; the padding entries have a probability of zero.

    Args:
        architecture: the shape of the encoder.
        vocab_size: number of tokens.
    """

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.encoder = Bert(architecture, vocab_size)
        self.head = Head(architecture, vocab_size)
        self.apply(lambda module: _initialise(module, architecture.init_std))
        with torch.no_grad():
            self.head.bias[vocab_size:] = _NEVER

    def forward(
        self,
        tokens_BT: Tensor,
        chosen_BK: Tensor | None = None,
        attended_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        """Computes logits.

        The head takes most of the time of a small model; with `chosen_BK` it runs on those positions only.

        Args:
            tokens_BT: int64.
            chosen_BK: int64, the positions to predict; None: all.
            attended_BT: bool, False for padding; None: there is none.
            segments_BT: int64; None: all are 0.

        Returns:
            logits_BKV at `chosen_BK`, or logits_BTV.
        """
        hidden = self.encoder(tokens_BT, attended_BT, segments_BT)
        if chosen_BK is not None:
            rows_B1 = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows_B1, chosen_BK]
        return self.head(hidden, self.encoder.embeddings.token.weight)


def padded_vocab_size(vocab_size: int) -> int:
    """Returns the next multiple of 64.

    Example:
        >>> padded_vocab_size(30522)
        30528
    """
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


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


def _angles(architecture: Architecture) -> Tensor:
    size = architecture.head_size
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(architecture.max_length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles, angles), dim=-1)


def _norm(architecture: Architecture) -> LayerNorm:
    return LayerNorm(architecture.hidden_size, eps=architecture.norm_eps)


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
