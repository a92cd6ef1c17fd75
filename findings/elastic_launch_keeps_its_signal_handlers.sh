#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.launcher.api.elastic_launch, which launches processes from Python (a notebook, a sweep).
#
# A script launches a job, which ends well, and goes on. A good guess: Ctrl-C then raises KeyboardInterrupt, as before.
# Seen: the agent's handlers of SIGINT, SIGTERM, SIGHUP and SIGQUIT stay in place after the launch has returned. Ctrl-C
# raises torch's SignalException, which is an Exception: a loop with `except Exception`, such as a sweep that goes on with
# the next trial, goes on, and cannot be interrupted any more; SIGTERM ends no process that catches Exception, either.
# trainkit.launch puts the handlers back: trainkit/distributed/processes.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >sweep.py <<'P'
import os
import signal
import time

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def interrupted():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except Exception as error:
        return f"an Exception: {type(error).__name__}"
    except KeyboardInterrupt:
        return "KeyboardInterrupt"


print("before:", interrupted())
config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=1, run_id="a", rdzv_backend="c10d", rdzv_endpoint="localhost:0"
)
elastic_launch(config, "true")()
print("after:", interrupted())
P
OMP_NUM_THREADS=1 timeout 120 venv/bin/python sweep.py 2>/dev/null | tee seen
diff seen - <<'T'
before: KeyboardInterrupt
after: an Exception: SignalException
T
