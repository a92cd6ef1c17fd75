"""Layers and operations, each with its reference in plain PyTorch."""

from trainkit.ops.dropout import Dropout, dropout

__all__ = ["Dropout", "dropout"]
