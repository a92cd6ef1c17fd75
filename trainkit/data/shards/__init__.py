"""Shards: text and images, made ready to train on once, in files of one size that are read by range."""
