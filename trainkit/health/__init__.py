"""Detection of faults in a run: values that are not finite, ranks that hang or are slow, and signals."""
