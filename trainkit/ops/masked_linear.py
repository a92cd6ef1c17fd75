"""MaskedLinear: a linear layer in which masked weights are always 0, with the mask stored as bits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainkit.errors import ConfigError
from trainkit.ops.bits import pack_bits, unpack_bits

_SPARSE_DTYPES = (torch.float16, torch.bfloat16)
_SPARSE_ROWS, _SPARSE_COLUMNS = 32, 64


class MaskedLinear(nn.Linear):
    """Computes x @ (weight * mask).T + bias; masked weights have a gradient of 0.

    `mask_bits`, uint8 [ceil(out_features * in_features / 8)], is a buffer as made by `trainkit.ops.bits.pack_bits`;
    initially nothing is masked. Parameters have the names of those of nn.Linear, whose state dict can be loaded without
    a change of the mask. It is not faster than nn.Linear; `to_sparse_2_4` is.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether there is a bias.
        device: of the parameters.
        dtype: of the parameters.

    Example:
        >>> layer = MaskedLinear(4, 2)
        >>> layer.mask = torch.tensor([[True, False, True, False]] * 2)
        >>> layer.sparsity
        0.5
    """

    mask_bits: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("mask_bits", pack_bits(torch.ones_like(self.weight, dtype=torch.bool)))

    @classmethod
    def from_linear(cls, layer: nn.Linear, mask: Tensor | None = None) -> "MaskedLinear":
        """Makes a masked layer with the same parameters, not copies, as `layer`.

        Args:
            layer: the linear layer.
            mask: bool [out_features, in_features]; None: nothing is masked.

        Returns:
            The masked layer.
        """
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made.mask_bits = pack_bits(torch.ones_like(layer.weight, dtype=torch.bool))
        if mask is not None:
            made.mask = mask
        return made.train(layer.training)

    @property
    def mask(self) -> Tensor:
        """The mask, bool [out_features, in_features]; False where the weight is 0."""
        shape = (self.out_features, self.in_features)
        return unpack_bits(self.mask_bits, self.out_features * self.in_features).view(shape)

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        """Sets the mask. Raises ConfigError for another shape or dtype."""
        if mask.dtype != torch.bool or mask.shape != (self.out_features, self.in_features):
            raise ConfigError(
                f"mask: {mask.dtype} {[*mask.shape]} must be torch.bool [{self.out_features}, {self.in_features}]"
            )
        # In place: an optimizer may refer to it.
        self.mask_bits.copy_(pack_bits(mask))

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are masked."""
        return 1.0 - float(self.mask.float().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [..., in_features] to [..., out_features]."""
        # A masked weight that is not finite must count as 0 too.
        return linear(x, self.weight.masked_fill(~self.mask, 0.0), self.bias)

    def extra_repr(self) -> str:
        """Returns the sizes and the sparsity, for `repr`."""
        return f"{super().extra_repr()}, sparsity={self.sparsity:.4g}"

    def to_sparse_2_4(self) -> nn.Linear:
        """Makes an nn.Linear for inference, with the weight as torch's semi-structured sparse tensor.

        Two of four adjacent weights in every row must be masked, as by `trainkit.prune` with structure="2:4".

        Returns:
            The layer, in eval mode.

        Raises:
            ConfigError: naming the requirement that is not met: a CUDA device of compute capability 8.0, float16 or
                bfloat16, sizes that are multiples of 32 and 64, and such a mask.
        """
        self._check_sparse()
        dense = self.weight.detach().masked_fill(~self.mask, 0.0)
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        made.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(dense), requires_grad=False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach(), requires_grad=False)
        return made.eval()

    def _check_sparse(self) -> None:
        shape = f"[{self.out_features}, {self.in_features}]"
        problem = None
        if self.out_features % _SPARSE_ROWS or self.in_features % _SPARSE_COLUMNS:
            problem = f"the weight is {shape}, and must be multiples of [{_SPARSE_ROWS}, {_SPARSE_COLUMNS}]"
        elif int(self.mask.view(-1, 4).sum(1).max()) > 2:
            problem = "the mask keeps more than two of four neighbours; prune with structure='2:4'"
        elif self.weight.dtype not in _SPARSE_DTYPES:
            problem = f"the weight is {self.weight.dtype}, and must be float16 or bfloat16; call layer.half() first"
        elif self.weight.device.type != "cuda":
            problem = f"the weight is on the {self.weight.device.type}, and torch multiplies 2:4 weights on CUDA only"
        elif torch.cuda.get_device_capability(self.weight.device) < (8, 0):
            problem = "the GPU is older than compute capability 8.0"
        if problem is not None:
            raise ConfigError(f"to_sparse_2_4: {problem}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}mask_bits"
        if key in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        state_dict[key] = self.mask_bits
        super()._load_from_state_dict(state_dict, prefix, *args)
        del state_dict[key]
