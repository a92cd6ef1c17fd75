"""Enlarge: a data set with generated samples, and whether they help."""
