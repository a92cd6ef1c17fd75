"""How good a search is for the steps that it trains, and what it costs beside many finished trials.

    python benchmarks/sweep_search.py            # about twenty minutes of two idle cores
    python benchmarks/sweep_search.py --seeds 1 --trials 9 --finished 100 1000

Successive halving beside a random search that trains every trial to its end, of the same configurations by the seed: a
small BERT, evaluated 27 times. Then, without training, the seconds of the calls that a driver makes for one trial, of
a study with many finished ones in its journal.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from benchmarks.sweep_trial import BERT, METRIC
from trainkit.sweep import Settings, front, samplers, storage, study, trial

ROOT = Path(__file__).resolve().parent.parent
NUM_EVALUATIONS, STEPS_EACH = 27, 10
SEARCHED = (
    *BERT,
    f"recipe.num_steps={NUM_EVALUATIONS * STEPS_EACH}",
    f"evaluate_every={STEPS_EACH}",
    "data.held_out_samples=128",
)
SPACE = {"optimizer.lr": "log(1e-4,1e-1)", "recipe.mask_share": "0.15,0.3"}
RANDOM, HALVING = "random search", "successive halving"
PRUNERS = {RANDOM: "none", HALVING: "halving"}
GOAL_OF_STEPS = 1 / 3
NUM_TIMED = 10
LIMIT_S = 7200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=27, help="of each search")
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1_000, 10_000], metavar="N", help="trials")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    facts = {**machine(), "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        costs = [cost(Path(folder) / f"{s}-{n}", s, n) for s in ("tpe", "random") for n in options.finished]
        searches = compared(Path(folder), options.seeds, options.trials)
    write("sweep-search", facts, [searches, {"costs": costs, "timed": NUM_TIMED}], options.output)


# -- how good it is ----------------------------------------------------------------------------------------------------


def compared(folder: Path, num_seeds: int, trials: int) -> dict[str, Any]:
    """Both searches with each seed, in turns."""
    seeds = []
    for seed in range(num_seeds):
        found = {}
        for name in [*PRUNERS][:: 1 if seed % 2 == 0 else -1]:
            found[name] = searched(folder / f"{PRUNERS[name]}-{seed}", PRUNERS[name], seed, trials)
            print(f"seed {seed}: {name}: {found[name]}", flush=True)
        steps = found[HALVING]["steps"] / found[RANDOM]["steps"]
        worse = found[HALVING]["best"] - found[RANDOM]["best"]
        seeds.append({"seed": seed, **{name: found[name] for name in PRUNERS}, "steps_ratio": steps, "worse": worse})
    return {
        "configuration": [*SEARCHED],
        "space": SPACE,
        "metric": METRIC,
        "trials": trials,
        "goal_of_steps": GOAL_OF_STEPS,
        "steps_ratio": statistics.mean(each["steps_ratio"] for each in seeds),
        "worse": statistics.mean(each["worse"] for each in seeds),
        "seeds": seeds,
    }


def searched(directory: Path, pruner: str, seed: int, trials: int) -> dict[str, Any]:
    """What `trainkit sweep` found, and for how many steps."""
    command = [sys.executable, "-m", "trainkit.cli", "sweep", *SEARCHED, *(f"{k}={v}" for k, v in SPACE.items())]
    command += ["--trials", str(trials), "--sampler", "random", "--pruner", pruner, "--seed", str(seed)]
    command += ["--slots", "cpu:1", "--to", str(directory)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    wall_s = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    opened = study.read(directory)
    found = opened.trials()
    best = front(found, opened.signs)[0]
    opened.close()
    assert best.values is not None
    return {
        "best": best.values[0],
        "steps": sum(max(trial.reported, default=0) for trial in found) * STEPS_EACH,
        "wall_s": wall_s,
        "states": dict(Counter(trial.state for trial in found)),
        "starts": sum(trial.record.num_starts for trial in found),
    }


# -- what it costs -----------------------------------------------------------------------------------------------------


def cost(directory: Path, sampler: str, num_finished: int) -> dict[str, Any]:
    """Median seconds of the calls for one trial, of a study with so many finished trials."""
    settings = Settings(space=SPACE, sampler=sampler, trials=num_finished + NUM_TIMED)
    study.require_free(directory, settings)
    opened = study.begin(directory, settings, metrics=[METRIC], storage=None, driver="filler")
    fill(opened, num_finished)
    opened.close()
    begin = time.perf_counter()
    opened = study.begin(directory, settings, metrics=[METRIC], storage=None, driver="timed")
    opened.trials()
    spent: dict[str, list[float]] = {"take": [], "report": [], "finish": []}
    opening_s = time.perf_counter() - begin
    for number in range(NUM_TIMED):
        taken = _timed(spent["take"], opened.take)
        assert taken is not None
        value = 6.0 + number / 100
        _timed(spent["report"], lambda t=taken, v=value: opened.report(t.number, 1, v, of=1))  # type: ignore[misc]
        _timed(spent["finish"], lambda t=taken, v=value: opened.finish(t, [v], seconds=1.0))  # type: ignore[misc]
    opened.close()
    medians = {f"{name}_s": statistics.median(seconds) for name, seconds in spent.items()}
    found = {"sampler": sampler, "finished": num_finished, **medians, "opening_s": opening_s}
    print(found, flush=True)
    return found


def _timed(into: list[float], call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    found = call()
    into.append(time.perf_counter() - begin)
    return found


def fill(opened: study.Study, num: int) -> None:
    """Writes trials that have finished, without training any."""
    import optuna
    from optuna.storages import JournalStorage, journal
    from optuna.trial import TrialState, create_trial

    spaces = samplers.distributions(opened.varied)
    draw = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    record = {trial.KEY: dataclasses.asdict(trial.Record(phase="running", num_starts=1, seconds=1.0))}
    kept = JournalStorage(journal.JournalFileBackend(str(opened.directory / storage.JOURNAL)))
    written = optuna.load_study(study_name=study.NAME, storage=kept)
    for number in range(num):
        params, value = draw.ask(spaces).params, 6.0 + (number * 7919 % 1000) / 1000
        written.add_trial(
            create_trial(
                state=TrialState.COMPLETE, value=value, params=params, distributions=spaces, user_attrs=record,
                intermediate_values={1: value},
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
