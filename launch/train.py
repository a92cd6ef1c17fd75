"""Trains what a configuration describes: `torchrun --nproc-per-node=2 launch/train.py recipe=bert data.path=~/texts`.

The same as `trainkit train`, from a checkout, under torchrun or plain python.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from trainkit.cli.main import HELP_TRAIN, add_train_arguments, guarded, run_train

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Train what a configuration describes, on this process or on all that torchrun started.",
        epilog=HELP_TRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(parser)
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: run_train(arguments)))
