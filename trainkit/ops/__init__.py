"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.activation import Activation, activation
from trainkit.ops.bias_activation import bias_activation_dropout
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.extension import load_extension
from trainkit.ops.layer_norm import dropout_residual_layer_norm
from trainkit.ops.masked_linear import MaskedLinear

__all__ = [
    "Activation",
    "Dropout",
    "MaskedLinear",
    "activation",
    "bias_activation_dropout",
    "dropout",
    "dropout_residual_layer_norm",
    "load_extension",
]
