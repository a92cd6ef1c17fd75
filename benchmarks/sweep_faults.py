"""A sweep whose processes are killed at random: is every trial there, once, and is the best value true?

    python benchmarks/sweep_faults.py --trials 200 --kills 20 --drivers 3

Starts `trainkit sweep`, kills its workers and trials with SIGKILL at random times, and its driver, which is started
again each time. Then counts the trials, and trains the best configuration alone.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from trainkit.sweep import front, read

ROOT = Path(__file__).resolve().parent.parent
TRIALS = "trials"
OF_TRIALS = ["experiment=toy_short", "deterministic=true", "recipe.num_steps=48"]
SPACE = ["optimizer.lr=log(1e-3,1e-1)", "recipe.batch_size=4,8"]
CONF = ["--config-dir", str(ROOT / "tests" / "user" / "conf")]
LIMIT_S = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20, help="of workers and trials")
    parser.add_argument("--servers", type=int, default=1, help="kills of the process that forks workers")
    parser.add_argument("--drivers", type=int, default=3, help="kills of the driver")
    parser.add_argument("--seed", type=int, default=0, help="of the times and the victims")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = storm(
            Path(name) / "sweep",
            options.trials,
            options.kills,
            options.drivers,
            servers=options.servers,
            seed=options.seed,
        )
    write("sweep-faults", machine(), [found], options.output)


def storm(directory: Path, trials: int, kills: int, drivers: int, *, servers: int = 1, seed: int = 0) -> dict[str, Any]:
    """What a sweep of `trials` ends with, after `kills` of workers or trials, and those of the driver and the server.

    One is killed after every so many trials, at a random moment.
    """
    draw = random.Random(seed)
    command = [sys.executable, "-m", "trainkit.cli", "sweep", *CONF, *OF_TRIALS, *SPACE]
    command += ["--trials", str(trials), "--to", str(directory), "--sampler", "random"]
    start, num_killed = time.perf_counter(), Counter[str]()
    log = directory.parent / "driver.log"
    driver = _started(command, log)
    victims = ["driver"] * drivers + ["worker"] * (kills // 2) + ["trial"] * (kills - kills // 2)
    draw.shuffle(victims)
    victims += ["server"] * servers  # last: workers that it leaves are not found
    for number, victim in enumerate(victims):
        _wait_until(lambda n=number: _num_started(directory) >= (n + 1) * trials // (len(victims) + 1), driver)
        time.sleep(draw.random() / 2)
        if victim == "driver":
            driver.kill()
            driver.wait()
            driver = _started(command, log)
        else:
            _wait_until(lambda v=victim, d=driver: _kill_one(d.pid, v, draw), driver)  # there may be none for a moment
        if driver.poll() is not None:
            break
        num_killed[victim] += 1
    _wait_until(lambda: driver.poll() is not None, driver)
    seconds = time.perf_counter() - start
    assert driver.returncode == 0, log.read_text()[-3000:]
    opened = read(directory)
    found = opened.trials()
    best = front(found, opened.signs)[0]
    alone = directory.parent / "alone"
    again = [*CONF, *OF_TRIALS, *opened.overrides(best), f"run_dir={alone}", "tracking.jsonl=true"]
    subprocess.run([sys.executable, "-m", "trainkit.cli", "train", *again], check=True, env=_environment())
    assert best.values is not None
    return {
        "trials": len(found),
        "numbers_are_a_range": [trial.number for trial in found] == list(range(trials)),
        "states": dict(Counter(trial.state for trial in found)),
        "killed": dict(num_killed),
        "starts": sum(trial.record.num_starts for trial in found),
        "seconds": seconds,
        "best": best.values[0],
        "alone": json.loads((alone / "result.json").read_text())["metrics"][opened.metrics[0]],
        "run_directories": len([*(directory / TRIALS).iterdir()]),
    }


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def _started(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=_environment())


def _num_started(directory: Path) -> int:
    return len([*(directory / TRIALS).glob("*")])


def _wait_until(condition: Any, driver: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + LIMIT_S
    while not condition() and driver.poll() is None:
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def _kill_one(driver: int, victim: str, draw: random.Random) -> bool:
    """Kills a server, a worker, or the process of a trial; False where there was none."""
    servers = [child for child in _children(driver) if _children(child)]
    workers = [child for server in servers for child in _children(server)]
    trials = [child for worker in workers for child in _children(worker)]
    found = {"server": servers, "worker": workers, "trial": trials}[victim]
    if not found:
        return False
    try:
        os.kill(draw.choice(found), signal.SIGKILL)
    except ProcessLookupError:  # it has ended
        return False
    return True


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main()
