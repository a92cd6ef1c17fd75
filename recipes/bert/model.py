"""BERT (Devlin et al., arXiv 1810.04805), exactly, and a modern variant behind the same switches.

Shape suffixes: B samples, T tokens, D hidden size, H heads, E head size, K masked tokens a sample, V vocabulary
(padded), R twice the largest relative distance plus one.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError, require_at_least
from trainkit.ops import ActivatedLinear, Dropout, LayerNorm

_VOCAB_MULTIPLE = 64  # matrix units like it
_NEVER = -1e4  # logit of a padded vocabulary entry: a probability of zero, and finite in fp16


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a BERT; the defaults are bert-base's.

    positions: `learned` embeddings; `rotary` (arXiv 2104.09864); or `relative`, a learned bias on the attention scores
        for each head and distance up to `max_distance`, which begins by favouring the neighbours.
    norm: `post`, after the residual sum, as in BERT; or `pre`, which needs no long warm-up.
    max_length: longest sequence.  num_segments: sentence kinds with an embedding each; 0 for none.
    pooler: for what is built on a trained encoder; masked language modelling does not use it.
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
                raise ConfigError(f"recipe.model.{name}={getattr(self, name)}: allowed is 0 or more, and below 1")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"recipe.model.num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; "
                f"set one to fit the other"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(f"recipe.model.positions=rotary needs an even head size, not {self.head_size}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


BASE = Architecture()
LARGE = replace(BASE, hidden_size=1024, num_layers=24, num_heads=16, feed_forward_size=4096)
TINY = replace(BASE, hidden_size=128, num_layers=2, num_heads=2, feed_forward_size=512)


class Bert(nn.Module):
    """The encoder: tokens_BT (int64) to hidden states_BTD."""

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
        """attended_BT: bool, False for padding, which no token then attends to; None when there is none."""
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
        """What the first token says of the whole sequence, [B, D]; only with `pooler`."""
        assert self.pooler is not None, "this architecture has no pooler"
        return torch.tanh(self.pooler(hidden_BTD[:, 0]))


class Embeddings(nn.Module):
    """The sum of what a token, its place and its segment say."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.token = nn.Embedding(padded_vocab_size(vocab_size), size)
        self.position = nn.Embedding(architecture.max_length, size) if architecture.positions == "learned" else None
        self.segment = nn.Embedding(architecture.num_segments, size) if architecture.num_segments else None
        self.norm = _norm(architecture)
        self.dropout = Dropout(architecture.dropout)

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
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
        if self.is_pre:
            attended_BTD = self.attention(self.attention_norm(x_BTD), attended_BT, angles_TE)
            normed_BTD, x_BTD = self.feed_forward_norm(attended_BTD, x_BTD, self.dropout)
            return x_BTD + self.feed_forward_dropout(self.feed_forward(normed_BTD))
        x_BTD, _ = self.attention_norm(self.attention(x_BTD, attended_BT, angles_TE), x_BTD, self.dropout)
        normed_BTD, _ = self.feed_forward_norm(self.feed_forward(x_BTD), x_BTD, self.feed_forward_dropout)
        return normed_BTD


class FeedForward(nn.Module):
    """Up, GELU, down."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.up = ActivatedLinear(architecture.hidden_size, architecture.feed_forward_size, "gelu")
        self.down = nn.Linear(architecture.feed_forward_size, architecture.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.up(x_BTD))


class Attention(nn.Module):
    """Every token looks at every token of its sample that is not padding."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.num_heads, self.head_size = architecture.num_heads, architecture.head_size
        self.qkv = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.relative = RelativeBias(architecture) if architecture.positions == "relative" else None
        self.dropout = Dropout(architecture.attention_dropout)

    def forward(self, x_BTD: Tensor, attended_BT: Tensor | None, angles_TE: Tensor | None) -> Tensor:
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
        """What is added to the scores, broadcastable to BHTT: a float tensor, or a bool one where False shuts out."""
        mask_B11T = None if attended_BT is None else attended_BT[:, None, None, :]
        if self.relative is None:
            return mask_B11T
        bias_HTT = self.relative(length).to(dtype)
        return bias_HTT[None] if mask_B11T is None else bias_HTT.masked_fill(~mask_B11T, float("-inf"))

    def _explicitly(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, bias: Tensor | None) -> Tensor:
        # The fused kernels draw their dropout from a generator; ours is keyed by the sample.
        scores_BHTT = q_BHTE @ k_BHTE.transpose(-1, -2) * self.head_size**-0.5
        if bias is not None:
            is_mask = bias.dtype == torch.bool
            scores_BHTT = scores_BHTT.masked_fill(~bias, float("-inf")) if is_mask else scores_BHTT + bias
        return self.dropout(scores_BHTT.softmax(dim=-1)) @ v_BHTE


class RelativeBias(nn.Module):
    """A learned number for each head and each distance from a query to a key, added to the attention score.

    Distances beyond `max_distance` share the last number. Head h begins with its peak on one offset (-1, +1, -2, +2,
    ...) and falls off on both sides: small encoders spend most of a short training on finding their neighbours.
    """

    _SLOPE = 1.0

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.max_distance = architecture.max_distance
        self.table_HR = nn.Parameter(torch.empty(architecture.num_heads, 2 * self.max_distance + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The initial bias, which is not random."""
        num_heads = len(self.table_HR)
        distances_R = torch.arange(-self.max_distance, self.max_distance + 1)
        steps_H = torch.arange(num_heads) // 2 + 1
        offsets_H = torch.where(torch.arange(num_heads) % 2 == 0, -steps_H, steps_H)
        self.table_HR.copy_(-self._SLOPE * (distances_R[None] - offsets_H[:, None]).abs().clamp(max=8))

    def forward(self, length: int) -> Tensor:
        """bias_HTT: row the query, column the key."""
        places_T = torch.arange(length, device=self.table_HR.device)
        distances_TT = places_T[None, :] - places_T[:, None]
        return self.table_HR[:, distances_TT.clamp(-self.max_distance, self.max_distance) + self.max_distance]


class Head(nn.Module):
    """Hidden states to logits; the decoder is the token embedding."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.dense = ActivatedLinear(architecture.hidden_size, architecture.hidden_size, "gelu")
        self.norm = _norm(architecture)
        self.bias = nn.Parameter(torch.zeros(padded_vocab_size(vocab_size)))

    def forward(self, hidden: Tensor, embedding_VD: Tensor) -> Tensor:
        return F.linear(self.norm(self.dense(hidden)), embedding_VD, self.bias)


class MaskedLanguageModel(nn.Module):
    """BERT with its head for guessing masked tokens.

    The vocabulary is padded to a multiple of 64; the added entries have a probability of zero.
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
        """logits_BKV at the positions `chosen_BK` (int64) of each sample, or logits_BTV at all of them.

        The head is the dearest part of a small model; with `chosen_BK` it runs on those positions only.
        """
        hidden = self.encoder(tokens_BT, attended_BT, segments_BT)
        if chosen_BK is not None:
            rows_B1 = torch.arange(len(hidden), device=hidden.device)[:, None]
            hidden = hidden[rows_B1, chosen_BK]
        return self.head(hidden, self.encoder.embeddings.token.weight)


def padded_vocab_size(vocab_size: int) -> int:
    """The next multiple of 64.

    >>> padded_vocab_size(30522)
    30528
    """
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def rotate(x_BHTE: Tensor, angles_TE: Tensor) -> Tensor:
    """Rotary positions: turns each pair (x[e], x[e + E/2]) by an angle proportional to its place."""
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
