"""A search by Ray Tune with OptunaSearch; sweep_peers.py starts it in an environment of its own.

    python benchmarks/sweep_ray.py TRIALS SLOTS REUSES_ACTORS FOLDER

Needs ray[tune] and optuna.
"""

import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a bare checkout is enough


def trained(config: dict[str, Any]) -> None:
    """One trial."""
    import json
    import os

    from ray import tune

    from benchmarks.sweep_trial import METRIC, note, overrides, train

    begin = time.perf_counter()
    run_dir = Path(config["runs"]) / f"{os.getpid()}-{time.time_ns()}"
    given = overrides(config["lr"], config["mask_share"], str(run_dir))
    train(given)
    value = json.loads((run_dir / "result.json").read_text())["metrics"][METRIC]
    note(busy_s=time.perf_counter() - begin)
    tune.report({METRIC: value})


def main() -> None:
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from benchmarks.sweep_trial import LEARNING_RATES, MASK_SHARES, METRIC

    trials, slots, reuses, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "true", Path(sys.argv[4])
    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder / "ray"))
    space = {"lr": tune.loguniform(*LEARNING_RATES), "mask_share": tune.choice(MASK_SHARES), "runs": str(folder)}
    tuner = tune.Tuner(
        tune.with_resources(trained, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=trials,
            search_alg=OptunaSearch(seed=0),
            max_concurrent_trials=slots,
            reuse_actors=reuses,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "results"), verbose=0),
    )
    print(tuner.fit().get_best_result().metrics[METRIC])


if __name__ == "__main__":
    main()
