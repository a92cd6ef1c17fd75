"""A progressive GAN on 500 pictures with adaptive discriminator augmentation and without: distance to held-out ones.

    python benchmarks/gan_small_data.py --pictures few --emoji google/64    # makes the folder
    python benchmarks/gan_small_data.py --pictures few --runs runs/few      # an hour of one core; two calls share it:
    python benchmarks/gan_small_data.py --pictures few --runs runs/few --kinds none &
    python benchmarks/gan_small_data.py --pictures few --runs runs/few --kinds ada

The folder holds 1,000 pictures of npm's emoji-datasource-google 16.0.0, none of them with a skin tone; half of them are
held out, by a hash. Runs that have ended are not trained again, and an interrupted one goes on. `curves.png` in --runs
shows both distances and D's scores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("none", "ada")
GOAL = 0.7  # distance with augmentation over that without
BATCH_SIZE = 16
SETTINGS = (
    "experiment=small_pictures",
    "strategy=single",
    "device=cpu",
    "data.held_out=0.5",
    f"recipe.batch_size={BATCH_SIZE}",
    "recipe.fade_images={8: 1600, 16: 1600}",
    "recipe.ema_decay=0.995",
    "recipe.loss.name=logistic",
    "recipe.loss.penalty=0.005",  # Karras et al. choose 0.0002 * pixels / batch size, which is 0.003
    "recipe.loss.penalty_every=16",
    "recipe.evaluation.at_end=[copying]",
    "evaluate_every=500",
    "save_every=2000",
    "keep_last=1",
    "keep_best=false",
    "tracking.wandb=null",
)
OF_ADA = ("recipe.augment.speed_images=30000",)
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
NUM_PICTURES = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of 1,000 pictures")
    parser.add_argument("--emoji", type=Path, help="a folder of PNG files: makes the folder")
    parser.add_argument("--runs", type=Path, help="a folder for the runs: trains")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=200_000, help="at 16x16, shown in each run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="train these only")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    if options.emoji is not None:
        _choose(options.emoji, options.pictures)
    if options.runs is None:
        return
    options.runs.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for kind in options.kinds:
            _train(options, kind, seed)
    results = [one for seed in range(options.seeds) if (one := result(options.runs, seed)) is not None]
    if not results:
        return
    figure(results).savefig(options.runs / "curves.png")
    for one in results:
        print(f"seed {one['seed']}: {one['ratio']:.2f} of the distance without augmentation (goal {GOAL:g})")
    facts = {**machine(), "threads": 1}
    del facts["load_average"]  # runs begin at different times
    write("gan-small-data", facts, results, options.output)


def result(runs: Path, seed: int) -> dict[str, Any] | None:
    """Both curves of a seed up to the last step that both have; None before there is one."""
    curves = {kind: evaluations(runs / f"{kind}-{seed}") for kind in KINDS}
    steps = sorted(set(curves["none"]) & set(curves["ada"]))
    if not steps:
        return None
    rows: list[dict[str, Any]] = [
        {"images": step * BATCH_SIZE, **{kind: curves[kind][step] for kind in KINDS}} for step in steps
    ]
    last = rows[-1]
    return {
        "seed": seed,
        "settings": list(SETTINGS),
        "settings_of_ada": list(OF_ADA),
        "images": last["images"],
        "distance": {kind: last[kind]["swd"] for kind in KINDS},
        "lowest": {kind: min(row[kind]["swd"] for row in rows) for kind in KINDS},
        "ratio": last["ada"]["swd"] / last["none"]["swd"],
        "copied": {kind: _copied(runs / f"{kind}-{seed}") for kind in KINDS},
        "goal": GOAL,
        "curves": rows,
    }


def evaluations(run_dir: Path) -> dict[int, dict[str, float]]:
    """Distances and scores by step at the full resolution, of a run's metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    kept = ("swd", "d_train_score", "d_held_out_score", "d_fake_score", "augment_probability")
    return {
        line["step"]: {name: line[name] for name in kept if name in line}
        for line in lines
        if line["kind"] == "evaluation"
    }


def _copied(run_dir: Path) -> float | None:
    """The share of samples nearer to a training picture than 99 in 100 held-out ones; None before the end of a run."""
    path = run_dir / "measured.json"
    values = json.loads(path.read_text())["values"]["trained generator"] if path.is_file() else {}
    return values.get("copied")


def figure(results: Sequence[dict[str, Any]]) -> Any:
    """Draws distances of all seeds, and D's scores without and with augmentation of the first: a matplotlib figure."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(15, 4), dpi=110, layout="constrained")
    axes = drawn.subplots(1, 3)
    colours = {"none": "C3", "ada": "C0"}
    for one, style in zip(results, ("-", "--", ":", "-.") * len(results), strict=False):
        for kind, colour in colours.items():
            label = f"data.augment={kind}, seed {one['seed']}"
            _line(axes[0], one, kind, "swd", color=colour, linestyle=style, label=label)
    axes[0].set_title("distance of generated to held-out pictures")
    axes[0].set_ylim(bottom=0)
    for panel, kind in zip(axes[1:], KINDS, strict=True):
        for name, label in (
            ("d_train_score", "training"),
            ("d_held_out_score", "held-out"),
            ("d_fake_score", "generated"),
        ):
            _line(panel, results[0], kind, name, label=label)
        panel.set_title(f"mean scores of D, data.augment={kind}, seed {results[0]['seed']}")
    for panel in axes:
        panel.set_xlabel("thousand images shown")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, frameon=False)
    return drawn


def _line(axes: Any, one: Mapping[str, Any], kind: str, name: str, **style: Any) -> None:
    axes.plot([row["images"] / 1000 for row in one["curves"]], [row[kind][name] for row in one["curves"]], **style)


def _choose(emoji: Path, folder: Path) -> None:
    """Copies every second or so of the pictures, in the order of their names."""
    names = sorted(path.name for path in emoji.glob("*.png") if not any(tone in path.name for tone in SKIN_TONES))
    folder.mkdir(parents=True)
    for index in range(NUM_PICTURES):
        name = names[index * len(names) // NUM_PICTURES]
        shutil.copyfile(emoji / name, folder / name)


def _train(options: argparse.Namespace, kind: str, seed: int) -> None:
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *SETTINGS]
    command += [f"data.path={options.pictures.resolve()}", f"data.augment={kind}", f"seed={seed}"]
    command += [f"recipe.stable_images={{4: 1600, 8: 4000, 16: {options.images}}}"]
    command += [f"run_dir={(options.runs / f'{kind}-{seed}').resolve()}", *(OF_ADA if kind == "ada" else ())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
