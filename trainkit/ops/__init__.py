"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.activation import Activation, activation
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.extension import load_extension
from trainkit.ops.masked_linear import MaskedLinear

__all__ = ["Activation", "Dropout", "MaskedLinear", "activation", "dropout", "load_extension"]
