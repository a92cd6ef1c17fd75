"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.bias_activation import bias_activation_dropout
from trainkit.ops.cross_entropy import cross_entropy
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.layer_norm import dropout_residual_layer_norm
from trainkit.ops.packing import pad, unpad

__all__ = [
    "Dropout",
    "bias_activation_dropout",
    "cross_entropy",
    "dropout",
    "dropout_residual_layer_norm",
    "pad",
    "unpad",
]
