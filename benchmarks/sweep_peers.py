"""Many short trials by `trainkit sweep`, by Hydra's multirun and by Ray Tune: how much of the time is their own work?

    python benchmarks/sweep_peers.py                # 60 trials each; about twenty minutes of two idle cores
    python benchmarks/sweep_peers.py --trials 6

Each trial trains a small BERT for some seconds, in one of two slots of one core. All contenders have the same trials'
configuration, and search by TPE. A trial notes the seconds of its steps, from its first to the end of its last, and of
its evaluation; its overhead is what it occupied a slot for beyond them: wall seconds of the whole command x slots /
trials - those seconds. It holds the start of the command, the making of data and model, the checkpoint and the files
of the run. The peers are installed once, in environments below --environments that see the packages of this one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, spread, write
from benchmarks.sweep_trial import FIXED, LEARNING_RATES, MASK_SHARES, NOTES, QUIET, overrides

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 2
OURS, PROCESSES, JOBLIB = "trainkit sweep", "Hydra, a process for each trial", "Hydra, in joblib's processes"
RAY, RAY_REUSING = "Ray Tune", "Ray Tune, reuse_actors"
PACKAGES = {
    "hydra": ("hydra-core", "hydra-joblib-launcher", "hydra-optuna-sweeper"),
    "ray": ("ray[tune]", "optuna"),
}
ENVIRONMENT_OF = {PROCESSES: "hydra", JOBLIB: "hydra", RAY: "ray", RAY_REUSING: "ray"}
GOALS = {
    "overhead of trainkit sweep, s a trial, at most": 0.15,
    "overhead of Hydra by processes over ours, at least": 10.0,
    "trials an hour over Ray Tune's, at least": 1.3,
    "slots of trainkit sweep busy, at least": 0.95,
}
NOTED = ("steps_s", "steps_cpu_s", "evaluation_s", "evaluation_cpu_s", "value", "busy_s")
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Ran:
    """What one command did.

    Args:
        wall_s: of all of it.
        cpu_s: of its processes that were waited for.
        busy_s: of each trial, in which it had its slot.
        notes: what each trial has noted, by name.
    """

    wall_s: float
    cpu_s: float
    busy_s: list[float]
    notes: Mapping[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="of each contender in a round")
    parser.add_argument("--rounds", type=int, default=1, help="in which all contenders have their turn")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders, by the start of their names")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "environments", metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    facts = {**machine(), "threads": 1}
    names = [OURS, PROCESSES, JOBLIB, RAY, RAY_REUSING]
    names = [name for name in names if not options.only or name.startswith(tuple(options.only))]
    pythons = {name: environment(options.environments, ENVIRONMENT_OF[name]) for name in names if name != OURS}
    ran: dict[str, list[Ran]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="tk") as folder:
        warm(Path(folder))
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                here = Path(folder) / f"{number}-{names.index(name)}"
                here.mkdir()
                ran[name].append(run(command(name, pythons.get(name), options.trials, here), here))
                print(f"{name}: {options.trials} trials in {ran[name][-1].wall_s:.1f} s", flush=True)
    result = summarise(ran, options.trials)
    result["versions"] = {kind: versions(pythons[name]) for name, kind in ENVIRONMENT_OF.items() if name in pythons}
    print(json.dumps(result, indent=2))
    write("sweep-peers", facts, [result], options.output)


# -- environments ------------------------------------------------------------------------------------------------------


def environment(folder: Path, kind: str) -> Path:
    """The Python of an environment with the packages of a peer, before those of this one; it is made where missing."""
    path = folder.resolve() / kind
    python = path / "bin" / "python"
    if not (path / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
        packages = _printed(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
        here = [line for line in sys.path if line.endswith("-packages")]  # torch is not fetched again
        Path(packages, "of_this_environment.pth").write_text("".join(f"{line}\n" for line in here))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[kind]], check=True)
        (path / "complete").touch()
    return python


def versions(python: Path) -> dict[str, str]:
    names = ["hydra-core", "hydra-joblib-launcher", "hydra-optuna-sweeper", "ray", "optuna"]
    found = _printed(
        python,
        "import json\nfrom importlib import metadata\nfound = {}\n"
        f"for name in {names}:\n    try:\n        found[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError:\n        pass\nprint(json.dumps(found))",
    )
    parsed: dict[str, str] = json.loads(found)
    return parsed


def _printed(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


# -- contenders --------------------------------------------------------------------------------------------------------


def command(name: str, python: Path | None, trials: int, folder: Path) -> list[str]:
    """What a user types for `trials` of them."""
    low, high = LEARNING_RATES
    shares = ",".join(map(str, MASK_SHARES))
    if name == OURS:
        space = [f"optimizer.lr=log({low},{high})", f"recipe.mask_share={shares}"]
        more = ["--trials", str(trials), "--slots", "cpu:1", "--to", str(folder / "sweep")]
        return [sys.executable, "-m", "trainkit.cli", "sweep", *FIXED, *space, *more]
    if ENVIRONMENT_OF[name] == "ray":
        reuses = str(name == RAY_REUSING).lower()
        return [str(python), "benchmarks/sweep_ray.py", str(trials), str(SLOTS), reuses, str(folder)]
    return [
        str(python), "benchmarks/sweep_hydra.py", "--multirun", "hydra/sweeper=optuna", "hydra/launcher=joblib",
        f"hydra.launcher.n_jobs={SLOTS}", f"hydra.sweeper.n_jobs={SLOTS}", f"hydra.sweeper.n_trials={trials}",
        f"+optimizer.lr=tag(log,interval({low},{high}))", f"+recipe.mask_share=choice({shares})",
        f"+in_process={name == JOBLIB}", f"+runs={folder}", f"hydra.sweep.dir={folder / 'hydra'}",
        "hydra.sweeper.sampler.seed=0",
    ]  # fmt: skip


def warm(folder: Path) -> None:
    """Trains once, so that nobody has to split the text and compile bytecode."""
    given = overrides(LEARNING_RATES[0], MASK_SHARES[0], str(folder / "warm"))
    run([sys.executable, "launch/train.py", *given], folder)


def run(words: list[str], folder: Path) -> Ran:
    """Runs a command from its start to its end."""
    notes, log = folder / "notes", folder / "log"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", NOTES: str(notes)}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("wb") as file:
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, **own}, stdout=file, stderr=file, timeout=LIMIT_S, check=False
        )
    wall_s, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{log.read_text()[-5000:]}")
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    noted = {key: [line[key] for line in lines if key in line] for key in NOTED}
    busy_s = noted["busy_s"] or _busy_of_ours(folder / "sweep")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(wall_s, cpu_s, busy_s, noted)


def _busy_of_ours(directory: Path) -> list[float]:
    """From the fork of each trial to its end, as the sweep itself has written."""
    if not directory.exists():
        return []
    from trainkit.sweep import study

    opened = study.read(directory)
    found = [trial.record.seconds for trial in opened.trials()]
    opened.close()
    return found


# -- figures -----------------------------------------------------------------------------------------------------------


def summarise(ran: Mapping[str, list[Ran]], trials: int) -> dict[str, Any]:
    contenders = {
        name: figures(rounds, trials, has_all_cpu=name in (PROCESSES, JOBLIB))  # the others' servers keep theirs
        for name, rounds in ran.items()
    }
    found: dict[str, float] = {}
    if OURS in contenders:
        ours = contenders[OURS]
        first, hydra, ray, busy = GOALS
        found = {first: ours["overhead_s"], busy: ours["slots_busy"]}
        if PROCESSES in contenders:
            found[hydra] = contenders[PROCESSES]["overhead_s"] / ours["overhead_s"]
        if RAY in contenders:
            found[ray] = ours["trials_an_hour"] / contenders[RAY]["trials_an_hour"]
    return {
        "trials": trials,
        "slots": SLOTS,
        "rounds": max(map(len, ran.values())),
        "configuration": [*FIXED, *QUIET],
        "contenders": contenders,
        "goals": {name: {"goal": goal, "found": found.get(name)} for name, goal in GOALS.items()},
    }


def figures(rounds: list[Ran], trials: int, *, has_all_cpu: bool) -> dict[str, Any]:
    """Of a contender, in seconds by the clock, and in those of its processes where all of them were waited for."""
    num = trials * len(rounds)
    noted = {key: [value for one in rounds for value in one.notes[key]] for key in NOTED}
    if len(noted["value"]) != num:
        raise RuntimeError(f"{len(noted['value'])} trials of {num} have ended")
    mean = {key: statistics.mean(values) for key, values in noted.items() if values}
    wall_s = sum(one.wall_s for one in rounds)
    a_trial_s, cpu_s = wall_s * SLOTS / num, sum(one.cpu_s for one in rounds) / num
    found = {
        "wall_s": wall_s,
        "trials_an_hour": num / wall_s * 3600,
        "slot_s_a_trial": a_trial_s,
        "steps_s": {"mean": mean["steps_s"], **spread(noted["steps_s"])},
        "evaluation_s": {"mean": mean["evaluation_s"], **spread(noted["evaluation_s"])},
        "overhead_s": a_trial_s - mean["steps_s"],
        "overhead_beyond_evaluation_s": a_trial_s - mean["steps_s"] - mean["evaluation_s"],
        "slots_busy": sum(sum(one.busy_s) for one in rounds) / (wall_s * SLOTS),
        "best": min(noted["value"]),
    }
    if has_all_cpu:
        beyond = cpu_s - mean["steps_cpu_s"] - mean["evaluation_cpu_s"]
        found |= {"cpu_s_a_trial": cpu_s, "overhead_beyond_evaluation_cpu_s": beyond}
    return found


if __name__ == "__main__":
    main()
