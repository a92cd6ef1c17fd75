"""Commands: thin, they parse, call and print."""
