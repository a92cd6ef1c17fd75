"""The report of a long run: how long it takes to write, and to open in a browser.

    python benchmarks/report_page.py --steps 1000000

Needs chromium (apt-get install chromium) and playwright.
"""

import argparse
import json
import math
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write

GOAL_S = 2.0
NUM_OPENED = 5
SPIKE = 654_321


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100_000, 1_000_000], help="lines of training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    facts, results = machine(), []
    for steps in arguments.steps:
        with tempfile.TemporaryDirectory() as name:
            run_dir = Path(name) / "run"
            log(run_dir, steps)
            results.append({"question": f"{steps:,} steps, each logged", **measured(run_dir), "goal_s": GOAL_S})
        print(results[-1])
    write("report-page", facts, results, arguments.output)


def log(run_dir: Path, steps: int) -> None:
    """A metrics.jsonl with ten numbers a line, and a line of evaluation after every thousandth part."""
    run_dir.mkdir()
    draw = random.Random(0)
    with (run_dir / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = 1e3 if step == min(SPIKE, steps // 2) else 3 + 5 * math.exp(-step / 50_000) + draw.gauss(0, 0.2)
            values = {"loss": loss, "grad_norm": draw.gauss(1, 0.1), "lr": 1e-3, "skipped": 0.0, "position": 32 * step}
            speed = {"samples_per_s": 312.3, "eta_s": 0.1 * (steps - step), "data_wait": 0.02, "comm_wait": 0.1}
            line = {"step": step, "time": 1.8e9 + step / 10, "kind": "training", **values, **speed}
            file.write(json.dumps(line) + "\n")
            if step % (steps // 1000) == 0:
                evaluation = {"step": step, "time": line["time"], "kind": "evaluation", "held_out_loss": 3.1}
                file.write(json.dumps(evaluation) + "\n")


def measured(run_dir: Path) -> dict[str, Any]:
    """Seconds of `trainkit report`, and of a browser until all charts are drawn."""
    command = [sys.executable, "-m", "trainkit.cli", "report", str(run_dir)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    page = run_dir / "report.html"
    opened = sorted(opening(page) for _ in range(NUM_OPENED))
    return {
        "gb_of_metrics": (run_dir / "metrics.jsonl").stat().st_size / 1e9,
        "report_s": seconds,
        "report_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "report_peak_gb": after.ru_maxrss * 1024 / 1e9,
        "page_mb": page.stat().st_size / 1e6,
        "spike_is_in_the_page": '"v":[' in page.read_text() and ",1000," in page.read_text(),
        "opened_s": opened[NUM_OPENED // 2],
        "opened_worst_s": opened[-1],
    }


def opening(page: Path) -> float:
    """Seconds from the navigation until the page has drawn its last chart."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1280, "height": 900})
        begin = time.monotonic()
        window.goto(page.as_uri(), wait_until="load")
        num_charts = int(window.evaluate("document.documentElement.dataset.charts"))
        window.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds = time.monotonic() - begin
        assert num_charts == window.locator("canvas").count() > 3
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
