"""A run that looks after itself."""
