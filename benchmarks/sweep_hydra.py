"""A search by Hydra's multirun as its users write it; sweep_peers.py starts it in an environment of its own.

Needs hydra-core, hydra-joblib-launcher and hydra-optuna-sweeper, which needs optuna < 3.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare checkout is enough


@hydra.main(version_base="1.3", config_path=None)
def main(config: Any) -> float:
    """One trial: returns what is minimized."""
    from benchmarks.sweep_trial import METRIC, note, overrides, train

    run_dir = Path(config.runs) / f"{os.getpid()}-{time.time_ns()}"
    given = overrides(config.optimizer.lr, config.recipe.mask_share, str(run_dir))
    begin = time.perf_counter()
    if config.in_process:
        train(given)
    else:
        subprocess.run([sys.executable, "launch/train.py", *given], cwd=ROOT, check=True, capture_output=True)
    value = json.loads((run_dir / "result.json").read_text())["metrics"][METRIC]
    note(busy_s=time.perf_counter() - begin)
    return float(value)


if __name__ == "__main__":
    main()
