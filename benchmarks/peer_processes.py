"""What is measured in a process of its own: peak memory, the time to the first step, tokenization."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.peer_bed import LENGTH, LONGEST, Bed

OURS, PLAIN, HF = "trainkit", "transformers, plain loop", "HF Trainer"
MAP, FOUR_TIMES = "datasets.map", "trainkit, four times the corpus"
NUM_STEPS, BATCH_SIZE = 6, 32

# -- memory ------------------------------------------------------------------------------------------------------------


def memory(bed: Bed, form: str, num_runs: int) -> dict[str, list[float]]:
    """MiB of each contender, above what the process had before the model."""
    kinds = (OURS, PLAIN, HF)
    return _in_turns(kinds, num_runs, lambda kind, _: _child(bed, "memory", form, kind)["peak_mib"])


def _memory_of(bed: Bed, form: str, kind: str) -> Mapping[str, Any]:
    import torch

    from benchmarks.peer_bed import own_loop
    from benchmarks.peer_loops import LOOPS

    torch.set_num_threads(1)
    length = LENGTH if form == "windows" else LONGEST
    peer = bed.peer(length, "joined" if form == "windows" else "padded", BATCH_SIZE, 0.1)
    mean = sum(len(sample["input_ids"]) for sample in peer.samples) / len(peer.samples)
    if kind == OURS:
        num_windows = BATCH_SIZE if form == "windows" else max(1, round(BATCH_SIZE * mean / LONGEST))
        before = reset_peak()
        steps = own_loop(bed.own(length, "joined" if form == "windows" else "apart", num_windows, 0.1))[0].steps
    else:
        before = reset_peak()
        steps = LOOPS[kind][1](peer, False).steps
    for _ in range(NUM_STEPS):
        next(steps)
    return {"peak_mib": peak_mib() - before}


def reset_peak() -> float:
    """Forgets the peak so far; the MiB in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_mib() -> float:
    """The most resident memory since `reset_peak`, in MiB."""
    return _status("VmHWM")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


# -- the start ---------------------------------------------------------------------------------------------------------


def start(bed: Bed, num_runs: int) -> dict[str, list[Any]]:
    """The runs of each contender; the first fill the caches and are left out."""
    from benchmarks.start_and_end import ROOT, TIMED, run

    marks, cache = bed.folder / "marks", bed.folder / "hugging-face"
    own = [
        sys.executable, "launch/train.py", "recipe=bert", TIMED, f"data.path={bed.texts}", f"weights={bed.weights}",
        f"data.sequence_length={LENGTH}", f"data.cache_dir={bed.folder / 'cache'}", "data.held_out_samples=64",
        f"recipe.batch_size={BATCH_SIZE}", "recipe.num_steps=1", "schedule.warmup=0", "tracking.wandb=null",
        "device=cpu",
    ]  # fmt: skip
    theirs = [sys.executable, str(ROOT / "benchmarks/peer_script.py"), str(bed.weights), str(bed.texts), str(cache)]

    def timed(kind: str, number: int) -> Any:
        command = [*own, f"run_dir={bed.folder / f'run-{time.time_ns()}'}"] if kind == OURS else theirs
        return run(command, marks)

    found = _in_turns((OURS, HF), num_runs + 1, timed)
    return {kind: runs[1:] for kind, runs in found.items()}


# -- tokenizing --------------------------------------------------------------------------------------------------------


def tokenizing(bed: Bed, num_runs: int) -> dict[str, list[Mapping[str, float]]]:
    """Seconds, CPU seconds of all processes, and peak MiB of each contender, which starts without a cache."""
    four = bed.folder / "four.jsonl"
    if not four.exists():
        lines = bed.texts.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        copies = (json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(4) for text in texts)
        four.write_text("".join(copies), encoding="utf-8")  # equal texts would be left out

    def measured(kind: str, _: int) -> Mapping[str, float]:
        return _child(bed, "tokenizing", str(four if kind == FOUR_TIMES else bed.texts), kind)

    return _in_turns((OURS, MAP, FOUR_TIMES), num_runs, measured)


def _tokenizing_of(bed: Bed, texts: str, kind: str) -> Mapping[str, Any]:
    from benchmarks.peer_script import tokenized
    from trainkit.data import Text

    weights, cache = bed.weights, bed.folder / "empty-cache"
    shutil.rmtree(cache, ignore_errors=True)
    if kind == MAP:
        import datasets  # noqa: F401  # whoever tokenizes with it has imported it
    before, begun, used = reset_peak(), time.perf_counter(), _used_s()
    if kind == MAP:
        tokenized(weights, Path(texts), cache, os.cpu_count())
    else:
        Text(path=Path(texts), vocab_file=weights / "vocab.txt", cache_dir=cache).load(progress=False)
    seconds, cpu_seconds = time.perf_counter() - begun, _used_s() - used
    shutil.rmtree(cache, ignore_errors=True)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib() - before}


def _used_s() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


# -- processes ---------------------------------------------------------------------------------------------------------


def _in_turns(kinds: tuple[str, ...], num_runs: int, run: Callable[[str, int], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for number in range(num_runs):
        for kind in kinds:
            found[kind].append(run(kind, number))
    return found


def _child(bed: Bed, what: str, *arguments: str) -> dict[str, float]:
    given = [str(bed.folder), str(bed.vocab_size), what, *arguments]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{' '.join(given)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    folder, vocab_size, what, argument, kind = sys.argv[1:]
    bed = Bed(Path(folder), None, int(vocab_size))
    measured = {"memory": _memory_of, "tokenizing": _tokenizing_of}[what](bed, argument, kind)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
