"""Metrics of generated images, one per file; the same values on any number of ranks."""
