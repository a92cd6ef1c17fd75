"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.cross_entropy import cross_entropy
from trainkit.ops.dropout import Dropout, dropout
from trainkit.ops.packing import pad, unpad

__all__ = ["Dropout", "cross_entropy", "dropout", "pad", "unpad"]
