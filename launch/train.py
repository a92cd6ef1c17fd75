"""Trains what a configuration describes: `torchrun --nproc-per-node=2 launch/train.py recipe=bert data.path=~/texts`.

The same as `trainkit train`, from a checkout, under torchrun or plain python.
"""

import argparse
import os
import sys
from pathlib import Path


def has_failed_before() -> bool:
    """Whether torchrun starts this again (--max-restarts) after an error that would come again, and has been told.

    trainkit.distributed.agent writes the file, beside the logs of torchrun's agent. To import that would take longer
    than everything else that there is to do.
    """
    logs = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    return len(logs) > 3 and (logs[2] / "trainkit.failed").is_file()


def main() -> int:
    """The exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough
    from trainkit.cli.main import HELP_TRAIN, add_train_arguments, guarded, parse, run_train

    parser = argparse.ArgumentParser(
        description="Train what a configuration describes, on this process, on N, or on all that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(parser)
    parser.set_defaults(command=[str(Path(__file__).resolve())])
    arguments = parse(parser)
    return guarded(lambda: run_train(arguments), from_here=True)


if __name__ == "__main__":
    sys.exit(2 if has_failed_before() else main())
