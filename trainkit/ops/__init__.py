"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.switch import Ops

__all__ = ["Dropout", "Ops", "dropout"]
