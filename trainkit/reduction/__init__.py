"""Gradients summed over ranks along a plan."""
