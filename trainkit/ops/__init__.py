"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.activation import Activation, activation
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.extension import load_extension

__all__ = ["Activation", "Dropout", "activation", "dropout", "load_extension"]
