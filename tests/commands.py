"""The commands of `trainkit`, and what their --help says."""

import argparse

from trainkit.cli.main import _parser


def every() -> dict[str, argparse.ArgumentParser]:
    """Each command and command of a command, by its words after `trainkit`; the first one has none."""
    return _below("", _parser())


def _below(words: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = {words: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, own in action.choices.items():
                found.update(_below(f"{words} {name}".strip(), own))
    return found
