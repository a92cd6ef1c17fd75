"""The processes that make a run again: `python -m trainkit.cli.again SPECIFICATION`."""

import sys
from pathlib import Path

from trainkit.cli.main import guarded
from trainkit.job import train
from trainkit.json_text import read_json


def main(path: str) -> None:
    """Trains as a specification says: `config`, as `compose` returns it, and `stop_after`, in steps or None.

    Args:
        path: of the JSON file.
    """
    specification = read_json(Path(path))
    train(specification["config"], stop_after=specification["stop_after"])


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1]), from_here=True))
