"""BERT (Devlin et al., arXiv 1810.04805), and a modern variant by the same settings.

Shape suffixes: B samples, T tokens, N rows without padding, D hidden size, E head size, K masked tokens per sample, V
vocabulary (padded).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit.errors import ConfigError
from trainkit.ops import ActivatedLinear, Dropout, LayerNorm
from trainkit_recipes.bert.architecture import BASE, LARGE, TINY, Architecture
from trainkit_recipes.bert.attention import Attention, at
from trainkit_recipes.bert.documents import Documents

__all__ = [
    "BASE",
    "LARGE",
    "TINY",
    "Architecture",
    "Bert",
    "Layer",
    "MaskedLanguageModel",
    "initialise",
    "padded_vocab_size",
]

_VOCAB_MULTIPLE = 64  # a size that tensor cores compute fastest
_NEVER = -1e4  # logit of a padding entry of the vocabulary: a probability of zero, and finite in fp16


class Bert(nn.Module):
    """The encoder.

    Args:
        architecture: its shape.
        vocab_size: number of tokens.
    """

    angles_TE: Tensor | None

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.architecture, self.vocab_size = architecture, vocab_size
        self.embeddings = Embeddings(architecture, vocab_size)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.num_layers))
        self.norm = _norm(architecture) if architecture.norm == "pre" else nn.Identity()
        size = architecture.hidden_size
        self.pooler = nn.Linear(size, size, bias=architecture.bias) if architecture.pooler else None
        angles_TE = _angles(architecture) if architecture.positions == "rotary" else None
        self.register_buffer("angles_TE", angles_TE, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        attended_BT: Tensor | None = None,
        segments: Tensor | None = None,
        documents: Documents | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Encodes tokens: of samples, or of documents in rows without padding, each of which sees itself only.

        With `chosen` the last layer computes queries, keys and values of all tokens, with documents attention, too, and
        the rest, most of its multiplications, for the chosen ones; except for windows with positions=relative or alibi.
        What is dropped there depends on the sample and the place in `chosen`, or with documents on the row.

        Args:
            tokens: int64 [B, T], or [N] with documents.
            attended_BT: bool, False for padding, which no token attends to; None: there is none. Not with documents.
            segments: int64, of the shape of `tokens`; None: all are 0.
            documents: how rows are divided; None: the tokens are those of samples.
            chosen: int64 [B, K], positions, or with documents of any shape, rows, whose hidden states are wanted; None:
                all.

        Returns:
            hidden_BTD, or hidden_ND; with `chosen`, of its shape and D.

        Raises:
            ConfigError: for a sequence or a document longer than `max_length`.
        """
        length = tokens.shape[1] if documents is None else documents.longest
        if length > self.architecture.max_length:
            raise ConfigError(
                f"a sequence of {length} tokens: recipe.model.max_length={self.architecture.max_length}; "
                f"raise it or lower data.sequence_length"
            )
        x = self.embeddings(tokens, segments, documents)
        angles = self.angles_TE
        if angles is not None:
            angles = angles[:length] if documents is None else angles[documents.positions_N]
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, attended_BT, angles, documents)
        if chosen is None:
            return self.norm(last(x, attended_BT, angles, documents))
        if documents is not None:
            return self.norm(last(x, attended_BT, angles, documents, chosen.flatten())).unflatten(0, chosen.shape)
        if self.architecture.positions in ("relative", "alibi"):
            return at(self.norm(last(x, attended_BT, angles)), chosen)
        return self.norm(last(x, attended_BT, angles, None, chosen))

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

    def forward(self, tokens: Tensor, segments: Tensor | None, documents: Documents | None = None) -> Tensor:
        """Returns the embeddings [B, T, D] or [N, D] of int64 tokens and segments, [B, T] or [N]."""
        x = self.token(tokens)
        if self.segment is not None:
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        if documents is None:
            if self.position is not None:
                x = x + self.position.weight[: tokens.shape[1]]
            return self.dropout(self.norm(x))
        if self.position is not None:
            x = x + self.position(documents.positions_N)
        return self.dropout(self.norm(x), documents.rows_N)


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

    def forward(
        self,
        x: Tensor,
        attended_BT: Tensor | None,
        angles: Tensor | None,
        documents: Documents | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Maps hidden states, [B, T, D] or [N, D], to the next ones; or to those at `chosen`, see `Attention`."""
        attended = self.attention(self.attention_norm(x) if self.is_pre else x, attended_BT, angles, documents, chosen)
        rows_N = None if documents is None else documents.rows_N
        if chosen is not None and rows_N is None:
            x = at(x, chosen)
        elif chosen is not None and rows_N is not None:
            x, rows_N = x[chosen], rows_N[chosen]
        if self.is_pre:
            normed, x = self.feed_forward_norm(attended, x, self.dropout, rows_N)
            return x + self.feed_forward_dropout(self.feed_forward(normed), rows_N)
        x, _ = self.attention_norm(attended, x, self.dropout, rows_N)
        normed, _ = self.feed_forward_norm(self.feed_forward(x), x, self.feed_forward_dropout, rows_N)
        return normed


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, or a GELU times a gate."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        hidden_size, size, bias = architecture.hidden_size, architecture.feed_forward_size, architecture.bias
        self.is_gated = architecture.feed_forward == "geglu"
        self.up = (
            nn.Linear(hidden_size, 2 * size, bias=bias)
            if self.is_gated
            else ActivatedLinear(hidden_size, size, "gelu", bias=bias)
        )
        self.down = nn.Linear(size, hidden_size, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps hidden states [B, T, D] to [B, T, D]."""
        if self.is_gated:
            activated, gate = self.up(x_BTD).chunk(2, dim=-1)
            return self.down(F.gelu(activated) * gate)
        return self.down(self.up(x_BTD))


class Head(nn.Module):
    """Maps hidden states to logits; the decoder is the token embedding, or its own."""

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__()
        hidden_size = architecture.hidden_size
        self.dense = ActivatedLinear(hidden_size, hidden_size, "gelu", bias=architecture.bias)
        self.norm = _norm(architecture)
        size = padded_vocab_size(vocab_size)
        self.bias = nn.Parameter(torch.zeros(size))
        is_tied = architecture.tied_decoder
        self.decoder = None if is_tied else nn.Linear(hidden_size, size, bias=False)

    def forward(self, hidden: Tensor, embedding_VD: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
        weight_VD = embedding_VD if self.decoder is None else self.decoder.weight
        return F.linear(self.norm(self.dense(hidden)), weight_VD, self.bias)


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
        self.apply(lambda module: initialise(module, architecture.init_std))
        with torch.no_grad():
            self.head.bias[vocab_size:] = _NEVER

    def forward(
        self,
        tokens: Tensor,
        chosen: Tensor | None = None,
        attended_BT: Tensor | None = None,
        segments: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Computes logits.

        The head takes most of the time of a small model; with `chosen` it runs on those positions only, and the last
        layer computes what they need.

        Args:
            tokens: int64 [B, T], or [N] with documents.
            chosen: int64 [B, K], the positions to predict, or of any shape with documents, the rows to predict; None:
                all.
            attended_BT: bool, False for padding; None: there is none.
            segments: int64, of the shape of `tokens`; None: all are 0.
            documents: of rows without padding, see `Bert`; None: the tokens are those of samples.

        Returns:
            Logits [..., V] at `chosen`, or at every token.
        """
        hidden = self.encoder(tokens, attended_BT, segments, documents, chosen)
        return self.head(hidden, self.encoder.embeddings.token.weight)


def padded_vocab_size(vocab_size: int) -> int:
    """Returns the next multiple of 64.

    Example:
        >>> padded_vocab_size(30522)
        30528
    """
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def _angles(architecture: Architecture) -> Tensor:
    size = architecture.head_size
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(architecture.max_length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles, angles), dim=-1)


def _norm(architecture: Architecture) -> LayerNorm:
    return LayerNorm(architecture.hidden_size, eps=architecture.norm_eps, bias=architecture.bias)


def initialise(module: nn.Module, std: float) -> None:
    """Draws the weights of a linear layer or an embedding from N(0, `std`); biases become 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
