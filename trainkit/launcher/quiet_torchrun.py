"""torchrun that ends with the exit code of the process that failed first, without 40 lines about it.

    python -m trainkit.launcher.quiet_torchrun --nproc-per-node=2 ... -m MODULE

What failed has said why itself, and the client of a launch needs the exit code.
"""

import logging
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs torchrun.

    Args:
        arguments: of torchrun; None: those of this process.

    Returns:
        The exit code: 0, that of the process that failed first, or 128 + n for signal n.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        codes = [failure.exitcode for _, failure in sorted(error.failures.items(), key=lambda item: item[1].timestamp)]
        code = next((code for code in codes if code != -signal.SIGTERM), codes[0])  # which the agent has sent
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
