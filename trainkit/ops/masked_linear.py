"""MaskedLinear: a linear layer of which some weights are always 0, with the mask kept as bits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainkit.errors import ConfigError
from trainkit.ops.bits import pack_bits, unpack_bits

_SPARSE_DTYPES = (torch.float16, torch.bfloat16)
_SPARSE_ROWS, _SPARSE_COLUMNS = 32, 64


class MaskedLinear(nn.Linear):
    """y = x @ (weight * mask).T + bias, of x [..., in_features]; masked weights get a gradient of 0.

    `mask_bits`, uint8 [ceil(out_features * in_features / 8)], is a buffer as `trainkit.ops.bits.pack_bits` makes it; at
    first nothing is masked. Parameters are named as in nn.Linear, whose state dict loads: the mask then stays as it is.
    The value is that of nn.Linear with masked weights; it is not faster. `to_sparse_2_4` is.
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
        """With the parameters of `layer` themselves, not copies, and a mask, bool [out_features, in_features]."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made.mask_bits = pack_bits(torch.ones_like(layer.weight, dtype=torch.bool))
        if mask is not None:
            made.mask = mask
        return made.train(layer.training)

    @property
    def mask(self) -> Tensor:
        """bool [out_features, in_features], False where the weight counts as 0."""
        shape = (self.out_features, self.in_features)
        return unpack_bits(self.mask_bits, self.out_features * self.in_features).view(shape)

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        """Raises ConfigError for another shape or dtype."""
        if mask.dtype != torch.bool or mask.shape != (self.out_features, self.in_features):
            raise ConfigError(
                f"mask: {mask.dtype} {[*mask.shape]}; needed is torch.bool [{self.out_features}, {self.in_features}]"
            )
        # In place: an optimizer may hold on to it.
        self.mask_bits.copy_(pack_bits(mask))

    @property
    def sparsity(self) -> float:
        """Share of the weights that are masked."""
        return 1.0 - float(self.mask.float().mean())

    def forward(self, x: Tensor) -> Tensor:
        # A masked weight that is not finite must count as 0 too.
        return linear(x, self.weight.masked_fill(~self.mask, 0.0), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sparsity={self.sparsity:.4g}"

    def to_sparse_2_4(self) -> nn.Linear:
        """An nn.Linear for inference, whose weight is kept and multiplied as torch's semi-structured sparse tensor.

        Two of four neighbours in every row of the weight must be masked: `trainkit.prune` with structure="2:4" makes
        such masks. Raises ConfigError that says what is missing: a CUDA device of compute capability 8.0, float16 or
        bfloat16, sizes that are multiples of 32 and 64.
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
            problem = f"the weight is {shape}, and needed are multiples of [{_SPARSE_ROWS}, {_SPARSE_COLUMNS}]"
        elif int(self.mask.view(-1, 4).sum(1).max()) > 2:
            problem = "the mask keeps more than two of four neighbours; prune with structure='2:4'"
        elif self.weight.dtype not in _SPARSE_DTYPES:
            problem = f"the weight is {self.weight.dtype}, and needed is float16 or bfloat16; call layer.half() first"
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
