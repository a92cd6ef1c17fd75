"""BERT: masked language modelling."""
