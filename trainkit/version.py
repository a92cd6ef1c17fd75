"""The version of trainkit, which also stands in checkpoints and packages."""

__version__ = "0.1.0"
