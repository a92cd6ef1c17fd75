"""One module and the optimizer that updates it."""
