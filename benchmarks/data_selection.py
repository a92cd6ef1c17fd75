"""Does selecting documents help? Held-out loss of a small BERT on a corpus with planted junk, before and after.

A corpus of the documentation of Python, NumPy and PyTorch is joined by copies of documents with one word changed,
boilerplate, documentation in German and French (--foreign), remains of HTML and broken characters. Each arm trains on
what `trainkit data select` keeps of it by some rules, with the same vocabulary, seeds and number of steps, and is
evaluated on documents of the same kind that no arm has seen.

    python benchmarks/data_selection.py --foreign german.txt french.txt
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from trainkit.data import Text, WordPiece

TRAIN = (
    *("experiment=bert_quickstart", "recipe.model.num_layers=2", "recipe.model.hidden_size=128"),
    *("recipe.model.num_heads=2", "schedule.warmup=50", "recipe.sentences=[]", "tracking=none", "on_leak=ignore"),
)
CLEAN = ("--drop-damaged", "--drop-exact", "--drop-near", "--max-boilerplate", "0.5", "--languages", "en")
VOCAB_SIZE, HELD_OUT, NUM_WORDS = 4096, 0.1, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foreign", type=Path, nargs="*", default=[], help="files of text in other languages")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--num-documents", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options, facts = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        planted = _plant(root, options.num_documents, options.foreign)
        result = {"question": "held-out loss by selection", "num_steps": options.num_steps, "documents": planted}
        arms: list[dict[str, object]] = []
        for name, rules in _arms(root):
            arms.append(_arm(root, name, rules, options))
            write("data-selection", facts, [{**result, "arms": arms}], options.output)  # also where the next one fails


def _arms(root: Path) -> list[tuple[str, list[str] | None]]:
    """Each arm's name and rules; None: the corpus as it is. The first one's run is the model of the others."""
    loss = ["--loss-of", str(root / "run-as it is-0"), "--loss-between"]
    return [
        ("as it is", None),
        ("junk dropped", [*CLEAN]),
        ("junk dropped, loss 0.1 to 0.9", [*CLEAN, *loss, "0.1", "0.9"]),
        ("junk dropped, diverse 0.8", [*CLEAN, "--diverse", "0.8"]),
        ("a random 80 % of junk dropped", [*CLEAN, "--function", "benchmarks.data_selection:is_chosen", "--trust"]),
    ]


def is_chosen(text: str) -> bool:
    """An even choice of 80 % of the documents."""
    return random.Random(text).random() < 0.8


def _plant(root: Path, num: int, foreign: list[Path]) -> dict[str, int]:
    """Writes corpus.jsonl, held_out.jsonl and vocab.txt; returns the documents of each kind."""
    random_ = random.Random(0)
    sides = Text(path=None, held_out=0.01).sides()
    assert sides is not None
    texts = list(dict.fromkeys(entry.text or "" for entry in sides.train()))
    random_.shuffle(texts)
    texts = [text for text in texts if len(text) >= 100][:num]
    num_held_out = int(HELD_OUT * len(texts))
    held_out, train = texts[:num_held_out], texts[num_held_out:]
    junk = {
        "near-copies": [
            _changed(text, random_) for text in random_.choices(train[: len(train) // 20], k=len(train) // 3)
        ],
        "boilerplate": [_boilerplate(number, random_) for number in range(len(train) // 6)],
        "HTML and broken characters": [_damaged(text, random_) for text in random_.sample(train, len(train) // 8)],
    }
    for path in foreign:
        junk[path.stem] = [line for line in path.read_text().split("\n\n") if len(line) >= 100][: len(train) // 8]
    mixed = [*train, *(text for texts in junk.values() for text in texts)]
    random_.shuffle(mixed)
    for name, chosen in (("corpus", mixed), ("held_out", held_out)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    (root / "vocab.txt").write_text("\n".join(WordPiece.learn(train, VOCAB_SIZE).lines()) + "\n")
    return {"clean": len(train), **{name: len(texts) for name, texts in junk.items()}, "held out": len(held_out)}


def _changed(text: str, random_: random.Random) -> str:
    words = text.split(" ")
    words[random_.randrange(len(words))] = random_.choice(["other", "another", "new", "same"])
    return " ".join(words)


def _boilerplate(number: int, random_: random.Random) -> str:
    lines = [
        "Copyright the authors of this page, and all rights are reserved by them.",
        "This page was generated by a program; do not edit it by hand.",
        "Report bugs to the mailing list, where questions are answered as well.",
        "See the full documentation on the website of the project for more about this.",
        "Permission is granted to copy and to distribute this document under the licence.",
    ]
    random_.shuffle(lines)
    return f"Page {number} of the index. {' '.join(lines[:4])}"


def _damaged(text: str, random_: random.Random) -> str:
    words = text.split(" ")
    for place in range(0, len(words), 4):
        words[place] = random_.choice(["<td class='x'>{}</td>", "&nbsp;{}", "{}\ufffd\ufffd"]).format(words[place])
    return " ".join(words)


def _arm(root: Path, name: str, rules: list[str] | None, options: argparse.Namespace) -> dict[str, object]:
    path, kept = root / "corpus.jsonl", None
    if rules is not None:
        path = root / f"selected-{name}"
        command = ["data", "select", str(root / "corpus.jsonl"), "--to", str(path), "--json", *rules]
        selection = json.loads(_trainkit(command, root))
        kept = {"steps": selection["steps"], "before": selection["before"], "after": selection["after"]}
    losses = []
    for seed in options.seeds:
        run = root / f"run-{name}-{seed}"
        steps = [f"{key}={options.num_steps}" for key in ("recipe.num_steps", "evaluate_every", "save_every")]
        data = [f"data.path='{path}'", f"data.vocab_file={root / 'vocab.txt'}", f"run_dir='{run}'", f"seed={seed}"]
        _trainkit(["train", *TRAIN, *steps, *data], root)
        shown = _trainkit(["evaluate", str(run), f"data.path={root / 'held_out.jsonl'}", "data.held_out=0.5"], root)
        found = re.search(r"held_out_loss\D+([\d.]+)", shown)
        assert found is not None, shown
        losses.append(float(found[1]))
        print(name, seed, losses[-1], flush=True)
    return {
        "name": name,
        "rules": rules and [one.replace(f"{root}/", "") for one in rules],
        "kept": kept,
        "losses": losses,
    }


def _trainkit(arguments: list[str], root: Path) -> str:
    environment = {**os.environ, "TRAINKIT_CACHE": str(root / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "trainkit.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


if __name__ == "__main__":
    main()
