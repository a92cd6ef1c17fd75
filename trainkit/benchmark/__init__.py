"""Benchmark: the speed of models x precisions x processes on this machine, each cell in processes of its own."""
