"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.activation import Activation, activation
from trainkit.ops.bias_activation import ActivatedLinear, bias_activation_dropout
from trainkit.ops.cross_entropy import cross_entropy
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.extension import load_extension
from trainkit.ops.layer_norm import LayerNorm, dropout_residual_layer_norm
from trainkit.ops.masked_linear import MaskedLinear
from trainkit.ops.packing import pad, unpad
from trainkit.ops.switch import Ops

__all__ = [
    "ActivatedLinear",
    "Activation",
    "Dropout",
    "LayerNorm",
    "MaskedLinear",
    "Ops",
    "activation",
    "bias_activation_dropout",
    "cross_entropy",
    "dropout",
    "dropout_residual_layer_norm",
    "load_extension",
    "pad",
    "unpad",
]
