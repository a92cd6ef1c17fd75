"""`trainkit launch`, in this process."""

from trainkit.cli.main import _parser, parse


def launch(*words: str) -> int:
    """What `trainkit launch` does with these words; raises what it prints as an error."""
    arguments = parse(_parser(), ["launch", *words])
    return arguments.run(arguments)
