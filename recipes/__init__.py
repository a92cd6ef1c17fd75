"""Whole training runs, each a package: networks, data, the training itself, and a README with the numbers reached."""
