"""BERT beside transformers' model in a plain loop, in Hugging Face's Trainer and in Lightning Fabric.

    python benchmarks/bert_peers.py                                # everything; about an hour of one core
    python benchmarks/bert_peers.py --no-compiled --turns 5 --steps-a-turn 2       # a quarter of an hour
    pip install transformers accelerate datasets lightning         # without lightning, Fabric is not measured

One text, one vocabulary, one set of weights (4 layers x 256), and fp32 on one thread. Before anything is timed, all
contenders must compute the same loss on the same masked tokens. Then they train alternately in one process, so that
other load affects all of them; CPU time is the main figure. Ours is the recipe on an Engine, its loader and masking
included, as theirs have a DataLoader and their collator; what trainkit's Trainer adds is measured by overhead.py.
    windows     full windows of 128 tokens, with dropout 0.1 and without
    documents   one document a sample, at most 512 tokens; they pad to the longest of a batch, and once more with
                batches of similar lengths; ours unpadded, and padded in the same way
    finetuning  classification of such documents
    memory      peak resident memory above that before the model, in a process each
    start       from the command to the end of the first step, the text tokenized already, in a process each
    tokenizing  a corpus from a .jsonl file, with all cores, beside datasets.map; and four times that corpus
    gpu         BERT-large on a GPU: utilization and the precisions. It has not been run yet.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import Stopwatch, in_words, machine, spread, write
from benchmarks.peer_bed import LENGTH, LONGEST, Bed, own_classifier_loop, own_loop
from benchmarks.peer_loops import Inputs, Loop, Peer, installed, trainer

OURS, OURS_PADDED = "trainkit", "trainkit, padded"
PLAIN, HF, GROUPED = "transformers, plain loop", "HF Trainer", "HF Trainer, similar lengths"
SIMILAR = {"train_sampling_strategy": "group_by_length"}
SAME = 1e-5  # of a loss


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    bed: Bed
    num_turns: int
    steps_a_turn: int
    compiled: bool


Result = dict[str, Any]


# -- steps -------------------------------------------------------------------------------------------------------------


def windows(options: Options) -> Iterator[Result]:
    batch_size = 32
    for dropout in (0.1, 0.0):
        own, inputs = own_loop(options.bed.own(LENGTH, "joined", batch_size, dropout))
        peer = options.bed.peer(LENGTH, "joined", batch_size, dropout)
        loops, missing = theirs(peer, options.compiled)
        title = f"full windows, {batch_size} x {LENGTH} tokens, dropout {dropout}"
        yield steps(options, title, {OURS: own, **loops}, inputs, missing, {PLAIN: 2.2})


def documents(options: Options) -> Iterator[Result]:
    batch_size = 32
    padded, inputs = own_loop(options.bed.own(LONGEST, "padded", batch_size, 0.1))
    peer = options.bed.peer(LONGEST, "padded", batch_size, 0.1)
    mean = sum(len(sample["input_ids"]) for sample in peer.samples) / len(peer.samples)
    num_windows = max(1, round(batch_size * mean / LONGEST))
    unpadded, inputs_unpadded = own_loop(options.bed.own(LONGEST, "apart", num_windows, 0.1))
    loops, missing = theirs(peer, options.compiled)
    similar = options.bed.peer(LONGEST, "padded", batch_size, 0.1, **SIMILAR)
    if HF in loops:
        loops[GROUPED] = trainer(similar, False)
    require_same_loss({OURS: unpadded, PLAIN: loops[PLAIN]}, inputs_unpadded)
    title = f"documents of {mean:.0f} tokens on average, at most {LONGEST}, {batch_size} a batch, dropout 0.1"
    goals = {HF: 3.5, OURS_PADDED: 1.9}
    every = {OURS: unpadded, OURS_PADDED: padded, **loops}
    yield steps(options, title, every, inputs, missing, goals, {OURS: inputs_unpadded})


def finetuning(options: Options) -> Iterator[Result]:
    batch_size = 16
    recipe = options.bed.own_classifier(batch_size)
    own, inputs = own_classifier_loop(recipe)
    loops, missing = theirs(options.bed.peer_classifier(recipe, batch_size), options.compiled)
    if HF in loops:
        loops[GROUPED] = trainer(options.bed.peer_classifier(recipe, batch_size, **SIMILAR), False)
    title = f"fine-tuning, classes of documents of at most {LONGEST} tokens, {batch_size} a batch, dropout 0.1"
    yield steps(options, title, {OURS: own, **loops}, inputs, missing, {HF: 1.4})


def theirs(peer: Peer, compiled: bool) -> tuple[dict[str, Loop], dict[str, str]]:
    found, missing = installed()
    loops = {name: make(peer, False) for name, make in found.items()}
    return loops | (
        {f"{name}, compiled": make(peer, True) for name, make in found.items()} if compiled else {}
    ), missing


def steps(
    options: Options,
    title: str,
    loops: dict[str, Loop],
    inputs: Inputs,
    missing: dict[str, str],
    goals: Mapping[str, float],
    own_inputs: Mapping[str, Inputs] | None = None,
) -> Result:
    """Times loops; those with inputs of their own were compared on them."""
    own_inputs = own_inputs or {}
    before = require_same_loss({name: loop for name, loop in loops.items() if name not in own_inputs}, inputs)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    names = list(loops)
    for turn in range(1 + options.num_turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            watch = Stopwatch(1)
            num_tokens = sum(next(loops[name].steps) for _ in range(options.steps_a_turn))
            took = watch.read()
            turns[name].append((took.wall_us / num_tokens, took.cpu_us / num_tokens))
        show(f"{title}: turn {turn} of {options.num_turns}", turn == options.num_turns)
    ours = turns[OURS][1:]  # the first turn compiles, and makes the optimizer's state
    contenders = {}
    for name, every in turns.items():
        pairs = list(zip(every[1:], ours, strict=True))
        contenders[name] = {
            "us_a_token": spread([wall for (wall, _), _ in pairs]),
            "cpu_us_a_token": spread([cpu for (_, cpu), _ in pairs]),
            "over_ours": spread([one[0] / other[0] for one, other in pairs]),
            "over_ours_in_cpu_time": spread([one[1] / other[1] for one, other in pairs]),
        }
    after = {name: loop.loss(own_inputs.get(name, inputs)) for name, loop in loops.items()}
    size = {"num_turns": options.num_turns, "steps_a_turn": options.steps_a_turn}
    losses = {"loss_before": before, "losses_after": after}
    return {"title": title, **size, "goals": dict(goals), "contenders": contenders, "missing": missing, **losses}


def require_same_loss(loops: Mapping[str, Loop], inputs: Inputs) -> float:
    """The loss of the weights as they are."""
    losses = {name: loop.loss(inputs) for name, loop in loops.items()}
    expected = losses[PLAIN]
    if wrong := {name: loss for name, loss in losses.items() if not abs(loss - expected) <= SAME * abs(expected)}:
        raise RuntimeError(f"the contenders do not compute the same loss: {wrong}, and {PLAIN} {expected}")
    return expected


# -- processes ---------------------------------------------------------------------------------------------------------


def memory(options: Options) -> Iterator[Result]:
    from benchmarks import peer_processes

    for form in ("windows", "documents"):
        found = peer_processes.memory(options.bed, form, options.num_turns)
        yield {"title": f"peak memory, {form}", "unit": "MiB", "goals": {HF: 0.6}, **ratios(found)}


def start(options: Options) -> Iterator[Result]:
    from benchmarks import peer_processes

    found = peer_processes.start(options.bed, options.num_turns)
    for name, unit in (("start_cpu_s", "CPU seconds"), ("start_s", "seconds")):
        values = {kind: [getattr(run, name) for run in runs] for kind, runs in found.items()}
        yield {"title": "from the command to the first step", "unit": unit, "goals": {HF: 0.7}, **ratios(values)}


def tokenizing(options: Options) -> Iterator[Result]:
    from benchmarks import peer_processes

    found = peer_processes.tokenizing(options.bed, options.num_turns)
    for name, unit, goals in (
        ("seconds", "seconds", {peer_processes.MAP: 1.0}),
        ("cpu_seconds", "CPU seconds", {}),
        ("peak_mib", "peak MiB of the first process", {}),
    ):
        values = {kind: [run[name] for run in runs] for kind, runs in found.items()}
        yield {"title": "tokenizing a corpus with all cores", "unit": unit, "goals": goals, **ratios(values)}


def ratios(found: Mapping[str, list[float]]) -> Result:
    """What ours takes over what the others take."""
    ours = found[OURS]
    return {
        "contenders": {
            name: {
                "value": spread(values),
                "ours_over_it": spread([own / other for own, other in zip(ours, values, strict=True)]),
            }
            for name, values in found.items()
        }
    }


def gpu(_: Options) -> Iterator[Result]:
    from benchmarks import bert_gpu

    return bert_gpu.results()


SECTIONS: Mapping[str, Callable[[Options], Iterator[Result]]] = {
    "windows": windows,
    "documents": documents,
    "finetuning": finetuning,
    "memory": memory,
    "start": start,
    "tokenizing": tokenizing,
    "gpu": gpu,
}


# -- output ------------------------------------------------------------------------------------------------------------


def show(line: str, is_last: bool) -> None:
    print(f"\r{line} ", end="\n" if is_last else "", file=sys.stderr, flush=True)


def table(result: Result) -> str:
    if "precisions" in result:
        return "\n".join([result["title"], *(f"  {name}: {found}" for name, found in result["precisions"].items())])
    lines = [f"{result['title']}{', ' + result['unit'] if 'unit' in result else ''}; median (quartiles)"]
    lines.append("".join([f"  {'':<34}", *(f"{column:<28}" for column in result["contenders"][OURS])]).rstrip())
    for name, figures in result["contenders"].items():
        goal = f"goal {result['goals'][name]}" if name in result["goals"] else ""
        cells = "".join(f"{in_words(values, 2):<28}" for values in figures.values())
        lines.append(f"  {name:<34}{cells}{goal}".rstrip())
    return "\n".join([*lines, *(f"  {name}: {why}" for name, why in result.get("missing", {}).items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS], default=[*SECTIONS][:-1])
    parser.add_argument("--turns", type=int, default=9, help="of every contender, after one that warms up; at least 2")
    parser.add_argument("--steps-a-turn", type=int, default=4)
    parser.add_argument("--no-compiled", action="store_true", help="leaves torch.compile out, which takes minutes")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the vocabulary; BERT's own has 30522")
    parser.add_argument("--text", type=Path, help="a file or folder of text; the default is the built-in documentation")
    parser.add_argument("--folder", type=Path, help="kept for the next time; the default is removed at the end")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    if arguments.turns < 2:
        parser.error(f"--turns {arguments.turns}: must be at least 2")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    torch.set_num_threads(1)
    facts, results = {**machine(), "vocab_size": arguments.vocab_size}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        bed = Bed(folder, arguments.text, arguments.vocab_size)
        options = Options(bed, arguments.turns, arguments.steps_a_turn, not arguments.no_compiled)
        for name in arguments.sections:
            for result in SECTIONS[name](options):
                results.append({"section": name, **result})
                print(table(result), flush=True)
    write("bert-peers", facts, results, arguments.output)


if __name__ == "__main__":
    main()
