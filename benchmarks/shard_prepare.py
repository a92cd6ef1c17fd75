"""How fast text becomes shards, in CPU time, beside `datasets` with the same tokenizer.

    python benchmarks/shard_prepare.py                   # 5 MB of the built-in text, 3 turns: some minutes
    python benchmarks/shard_prepare.py --mb 50

`trainkit data prepare` reads a .jsonl file, removes duplicates, holds documents out, tokenizes and writes shards;
`datasets` reads it (`load_dataset`) and tokenizes by `map`, by the tokenizers library itself and by a fast tokenizer of
transformers. Each runs in one process with one thread for the tokenizer; the turns alternate.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from benchmarks.overhead import machine, spread, write
from trainkit.data import Text, WordPiece, prepare

GOAL = 1.0
OURS = "trainkit data prepare"


def make_source(folder: Path, num_bytes: int) -> tuple[Path, Path, int]:
    """A file of rows, a vocabulary of them, and the bytes of their text."""
    texts, total, sides = list[str](), 0, Text().sides()
    assert sides is not None
    for entry in sides.train():
        if total > num_bytes:
            break
        assert entry.text is not None
        texts.append(entry.text)
        total += len(entry.text.encode())
    source, vocabulary = folder / "rows.jsonl", folder / "vocab.txt"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    learnt = WordPiece.learn(texts[:20_000], 8000)
    vocabulary.write_text("\n".join(learnt.lines()) + "\n")
    learnt.save(folder / "tokenizer.json")
    return source, vocabulary, total


def with_datasets(source: Path, folder: Path, encode: Callable[[list[str]], Any]) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder))
    rows.map(lambda batch: {"input_ids": encode(batch["text"])}, batched=True, remove_columns=["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=5, help="of text")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    facts = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, vocabulary, num_bytes = make_source(folder, given.mb * 1_000_000)
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        fast = PreTrainedTokenizerFast(tokenizer_object=raw)  # type: ignore[no-untyped-call]
        settings = {"vocab_file": str(vocabulary), "lowercase": True}
        ways: dict[str, Callable[[Path], object]] = {
            OURS: lambda to: prepare(source, to, num_workers=1, settings=settings, progress=False),
            "datasets, tokenizers": lambda to: with_datasets(
                source, to, lambda texts: [one.ids for one in raw.encode_batch_fast(texts, add_special_tokens=False)]
            ),
            "datasets, transformers": lambda to: with_datasets(
                source, to, lambda texts: fast(texts, add_special_tokens=False)["input_ids"]
            ),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.turns):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                print(f"turn {turn + 1} of {given.turns}: {name}", file=sys.stderr)
                to = folder / "to"
                start = time.process_time()
                ways[name](to)
                speeds[name].append(num_bytes / 1e6 / (time.process_time() - start))
                shutil.rmtree(to)
    ratios = {
        name: spread([ours / theirs for ours, theirs in zip(speeds[OURS], own, strict=True)])
        for name, own in speeds.items()
    }
    by_way = {name: {"mb_per_cpu_second": spread(own), "times_as_fast": ratios[name]} for name, own in speeds.items()}
    result = {"num_bytes": num_bytes, "num_turns": given.turns, "goal": GOAL, "ways": by_way}
    write("shard-prepare", facts, [result], given.output)


if __name__ == "__main__":
    main()
