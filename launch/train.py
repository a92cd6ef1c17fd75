"""Trains a recipe by a configuration: `torchrun --nproc-per-node=2 launch/train.py recipe=bert data.path=~/texts`.

It is `trainkit train` for a checkout, under torchrun or python.
"""

import argparse
import os
import sys
from pathlib import Path


def has_failed_before() -> bool:
    """Whether torchrun restarts this process (--max-restarts) after an error that would recur and was printed.

    trainkit.distributed.agent writes the file next to the logs of torchrun's agent. It is not imported here, because
    that would take longer than the check.
    """
    logs = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    return len(logs) > 3 and (logs[2] / "trainkit.failed").is_file()


def main() -> int:
    """Trains; returns the exit code of `trainkit train`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a checkout that is not installed
    from trainkit.cli import HELP_TRAIN, add_train_arguments, guarded, parse, run_train

    parser = argparse.ArgumentParser(
        description="Train a recipe by a configuration, in this process, in N, or in those that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(parser)
    parser.set_defaults(command=[str(Path(__file__).resolve())])
    arguments = parse(parser)
    return guarded(lambda: run_train(arguments), from_here=True, temporary=1)


if __name__ == "__main__":
    sys.exit(2 if has_failed_before() else main())
