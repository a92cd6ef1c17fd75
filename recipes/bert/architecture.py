"""Architecture: the shape of a BERT."""

from dataclasses import dataclass, replace
from typing import Literal

from trainkit.errors import ConfigError, require_at_least


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a BERT; the defaults are those of bert-base.

    Args:
        hidden_size: elements of a hidden state.
        num_layers: of the encoder.
        num_heads: of attention; must divide `hidden_size`.
        feed_forward_size: elements between the two matrices of a feed-forward network.
        feed_forward: the activation between them: `gelu`, or `geglu`, a product with a gate (arXiv 2002.05202), whose
            first matrix has twice the rows: two thirds of the size have the same number of parameters.
        max_length: the longest sequence, in tokens.
        num_segments: kinds of sentences with an embedding each; 0: none.
        positions: `learned` embeddings; `rotary` (arXiv 2104.09864); `relative`, a learned bias on the attention
            scores for each head and distance up to `max_distance`, which initially favours the neighbours; or `alibi`,
            a fixed one that falls with the distance (arXiv 2108.12409).
        norm: `post`, after the residual sum, as in BERT; or `pre`, which needs no long warm-up.
        max_distance: see `positions`, in tokens.
        dropout: probability, of hidden states.
        attention_dropout: probability, of attention.
        norm_eps: added to the variance in LayerNorm.
        init_std: standard deviation of initial weights.
        pooler: whether there is one, for the next sentence and for models built on a trained encoder.
        bias: whether linear layers and norms of the encoder, and of the head before its decoder, have biases.
        tied_decoder: whether the decoder of the head is the token embedding; false: it has weights of its own.

    Raises:
        ConfigError: for values out of range or that do not match.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    feed_forward_size: int = 3072
    feed_forward: Literal["gelu", "geglu"] = "gelu"
    max_length: int = 512
    num_segments: int = 2
    positions: Literal["learned", "rotary", "relative", "alibi"] = "learned"
    norm: Literal["post", "pre"] = "post"
    max_distance: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    init_std: float = 0.02
    pooler: bool = False
    bias: bool = True
    tied_decoder: bool = True

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
