"""Formats: the sharded data of other tools, read where it lies."""
