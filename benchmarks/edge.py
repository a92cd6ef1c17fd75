"""A bundle for small devices beside PyTorch: speed, size, memory and accuracy, on one machine.

    python benchmarks/edge.py                      # about four minutes of one core
    python benchmarks/edge.py --threads 2 --turns 5

MiniLM (6 layers x 384) is fine-tuned to tell from which of five packages the summary of a docstring is (the texts of
benchmarks/finetuning.py) and exported in fp32 and both kinds of int8. In each turn PyTorch in eager mode and
onnxruntime with each bundle predict the same texts, one at a time, in an order that changes. The memory is that of a
process of its own that predicts one text: `run.py` of a bundle, and `predict` of the recipe.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.finetuning import COMMON, SETTINGS, docstrings, minilm
from benchmarks.overhead import in_words, machine, spread, write
from trainkit import load_recipe
from trainkit.export import predictor
from trainkit_recipes.bert.finetuning.onnx_model import WithOutputs, inputs_of

ROOT = Path(__file__).resolve().parent.parent
EAGER = "PyTorch, eager"
KINDS: Mapping[str, list[str]] = {
    "fp32": [],
    "int8 dynamic": ["--int8", "dynamic"],
    "int8 static": ["--int8", "static"],
}
NUM_TEXTS, LONG = 60, 128
Predict = Callable[[dict[str, Tensor]], Tensor]


def trained(folder: Path, num_epochs: float) -> Path:
    for split, rows in zip(("train", "held_out"), docstrings(), strict=True):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    data = [f"data.path={folder / 'train.csv'}", f"data.held_out_path={folder / 'held_out.csv'}"]
    longer = [setting for setting in SETTINGS if not setting.startswith("recipe.max_length")]
    settings = [*COMMON, *longer, f"recipe.max_length={LONG}", "optimizer.lr=1e-4", f"recipe.num_epochs={num_epochs}"]
    trainkit("train", *settings, *data, f"recipe.weights={minilm()}", f"run_dir={folder / 'run'}")
    return folder / "run"


def trainkit(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "trainkit.cli", *arguments], check=True, cwd=ROOT)


def compared(run: Path, folder: Path, bundles: Mapping[str, Path], num_turns: int) -> dict[str, Any]:
    """Times and outputs, for short texts and for long ones."""
    recipe: Any = load_recipe(run)
    module = WithOutputs(recipe.model.module.eval(), recipe.tokenizer.vocab_size)
    contenders: dict[str, Predict] = {EAGER: lambda inputs: module(*inputs.values())}
    for kind, bundle in bundles.items():
        predict = predictor(bundle / "model.onnx")
        contenders[f"onnxruntime, {kind}"] = partial(first_of, predict)
    samples, found = recipe.datasets.held_out, {}
    texts = [torch.from_numpy(samples.texts[number].numbers).long() for number in range(NUM_TEXTS)]
    mean_length = sum(map(len, texts)) / NUM_TEXTS
    long = [torch.cat(texts)[start : start + LONG] for start in range(0, 8 * LONG, LONG)]
    for name, given in ((f"{mean_length:.0f} tokens, the mean", texts), (f"{LONG} tokens", long)):
        inputs = [inputs_of(text[None], torch.tensor([len(text)]), None, has_segments=True) for text in given]
        found[name] = turns(contenders, inputs, num_turns)
    recipe.runtime.close()
    return found


def first_of(predict: Callable[[dict[str, Tensor]], list[Tensor]], inputs: dict[str, Tensor]) -> Tensor:
    return predict(inputs)[0]


@torch.no_grad()
def turns(contenders: Mapping[str, Predict], inputs: list[dict[str, Tensor]], num_turns: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    outputs = {name: torch.cat([predict(given) for given in inputs]) for name, predict in contenders.items()}
    for turn in range(num_turns):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for given in inputs:
                contenders[name](given)
            times[name].append((time.perf_counter() - start) * 1000 / len(inputs))
    eager = outputs[EAGER]
    return {
        name: {
            "ms_a_text": spread(times[name]),
            "times_as_fast": spread([own / theirs for own, theirs in zip(times[EAGER], times[name], strict=True)]),
            "largest_difference": float((outputs[name] - eager).abs().max()),
            "largest_output": float(eager.abs().max()),
        }
        for name in contenders
    }


def process(command: list[str], text: str) -> dict[str, float]:
    """Seconds and MB, the largest at any time, of a process that predicts one text."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        child.stdin.write(text)
        child.stdin.close()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, command
    return {"seconds": time.perf_counter() - start, "memory_mb": usage.ru_maxrss * 1024 / 1e6}


def measure(folder: Path, num_threads: int, num_turns: int, num_epochs: float) -> dict[str, Any]:
    run, bundles = trained(folder, num_epochs), {}
    for kind, options in KINDS.items():
        bundles[kind] = folder / kind.replace(" ", "_")
        limit = ["--max-drop", "1"] if options else []
        trainkit("export", str(run), "--to", "edge", str(bundles[kind]), *options, *limit)
    manifests = {kind: json.loads((bundle / "bundle.json").read_text()) for kind, bundle in bundles.items()}
    predict = [sys.executable, "-m", "trainkit_recipes.bert.finetuning.predict", str(run), "a text"]
    processes = {EAGER: process(predict, "")}
    for kind, bundle in bundles.items():
        command = [sys.executable, str(bundle / "run.py"), "--threads", str(num_threads)]
        processes[f"onnxruntime, {kind}"] = process(command, "a text\n")
    return {
        "num_threads": num_threads,
        "num_turns": num_turns,
        "texts": compared(run, folder, bundles, num_turns),
        "processes": processes,
        "bundle_mb": {
            kind: sum(file.stat().st_size for file in bundle.iterdir() if file.is_file()) / 1e6
            for kind, bundle in bundles.items()
        },
        "accuracy": {
            "fp32": manifests["int8 dynamic"]["measured"]["fp32"],
            **{kind: manifests[kind]["measured"]["int8"] for kind in KINDS if manifests[kind]["measured"]},
        },
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['num_threads']} threads; {result['num_turns']} turns; median (quartiles)"]
    for length, contenders in result["texts"].items():
        lines.append(f"  {length}:")
        for name, one in contenders.items():
            times = f"{in_words(one['ms_a_text'], 2)} ms, {in_words(one['times_as_fast'], 2)} times as fast"
            lines.append(f"    {name:<26}{times}; differs by {one['largest_difference']:.2g}")
    for name, one in result["processes"].items():
        lines.append(f"  one text, {name:<26}{one['seconds']:.2f} s, {one['memory_mb']:.0f} MB")
    sizes = ", ".join(f"{kind} {value:.1f} MB" for kind, value in result["bundle_mb"].items())
    accuracy = ", ".join(f"{kind} {value:.4f}" for kind, value in result["accuracy"].items())
    return "\n".join([*lines, f"  bundles: {sizes}", f"  accuracy: {accuracy}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--turns", type=int, default=15, metavar="N")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.threads, arguments.turns, arguments.epochs)
    print(table(result))
    write("edge", facts, [result], arguments.output)


if __name__ == "__main__":
    main()
