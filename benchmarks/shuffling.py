"""How well orders of samples shuffle, and what they cost, beside those of other libraries.

    python benchmarks/shuffling.py                   # trainkit's alone
    pip install --no-deps --target /tmp/peers mosaicml-streaming==0.13.0 webdataset==1.0.2 litdata==0.2.76 \\
        lightning-utilities boto3 botocore s3transfer jmespath tifffile obstore
    python benchmarks/shuffling.py --peers /tmp/peers

No data are read: an epoch of 500 shards of 1,000 samples is an array of indices, and the peers' own code makes theirs.
Each statistic has a known value for a perfect shuffle, by which it is divided, so that 1 is perfect:

- distance: of two samples that are neighbours in the data, how many positions apart they come, in the median;
  N (1 - 1 / sqrt 2), as the difference of two places that are uniform has a triangular distribution.
- documents: of 20 consecutive samples each, how many different ones are in a batch; the hypergeometric expectation.
- labels: data are sorted by 100 labels; chi-squared of the counts of labels in a batch, against their shares;
  its expectation without replacement is (C - 1)(N - b)/(N - 1). Above 1, batches are unlike each other.

The costs are counted, but for the two times: of an index, the median of the rounds, and of the first index in the
middle of the 100th epoch, which a resume waits for. `kept` is the number of shards that a cache must hold so that an
epoch fetches each no more than 1.2 times (the one used longest ago leaves first); `fetches` is how often it does so
with 17. A library that reads shards in order and mixes samples in a buffer fetches each once, and keeps the samples.
"""

import argparse
import math
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from benchmarks.shuffling_peers import Contender, Made, peers
from trainkit.data import Shuffle

NUM_SHARDS, SHARD, BATCH, DOCUMENT, NUM_LABELS, CACHED = 500, 1000, 256, 20, 100, 17
AT_MOST = 1.2  # fetches of a shard
SLOW_S = 10.0
NUM = NUM_SHARDS * SHARD
EPOCH = 99
Indices = NDArray[np.int64]


class Shards:
    """What an order needs to know of the data."""

    block_sizes = np.full(NUM_SHARDS, SHARD)


def own(shuffle: Shuffle) -> Made:
    order, chunk = shuffle.order(NUM, 0, Shards()), 1 << 14

    def whole() -> Indices:
        begins = range(EPOCH * NUM, (EPOCH + 1) * NUM, chunk)
        return np.concatenate([order.indices(np.arange(b, min(b + chunk, (EPOCH + 1) * NUM))) for b in begins])

    return Made(whole, lambda: order.indices(np.array([EPOCH * NUM + NUM // 2])))


def contenders() -> dict[str, Contender]:
    found = {"global": Contender(partial(own, Shuffle()))}
    for num_open in (4, 16, 64):
        found[f"blocks, {num_open} open"] = Contender(partial(own, Shuffle("blocks", num_open)))
    return found


def distance(order: Indices) -> float:
    positions = np.argsort(order)
    return float(np.median(np.abs(np.diff(positions))) / (NUM * (1 - math.sqrt(0.5))))


def documents(order: Indices) -> float:
    batches = order[: NUM // BATCH * BATCH].reshape(-1, BATCH) // DOCUMENT
    found = np.mean([len(np.unique(batch)) for batch in batches])
    # Of a document of m samples none is in a batch of b with the probability C(N - m, b) / C(N, b).
    none = math.exp(sum(math.log((NUM - BATCH - i) / (NUM - i)) for i in range(DOCUMENT)))
    return float(found / (NUM // DOCUMENT * (1 - none)))


def labels(order: Indices) -> float:
    batches = order[: NUM // BATCH * BATCH].reshape(-1, BATCH) // (NUM // NUM_LABELS)
    counts = np.stack([np.bincount(batch, minlength=NUM_LABELS) for batch in batches])
    expected = BATCH / NUM_LABELS
    chi_squared = ((counts - expected) ** 2 / expected).sum(axis=1).mean()
    return float(chi_squared / ((NUM_LABELS - 1) * (NUM - BATCH) / (NUM - 1)))


def fetches(order: Indices, kept: int) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    count = 0
    for shard in (order // SHARD).tolist():
        if shard in cache:
            cache.move_to_end(shard)
            continue
        count += 1
        cache[shard] = None
        if len(cache) > kept:
            cache.popitem(last=False)
    return count / NUM_SHARDS


def fewest_kept(order: Indices) -> int:
    """The smallest cache that is enough, by bisection: a larger one never fetches more."""
    low, high = 1, NUM_SHARDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fetches(order, middle) <= AT_MOST else (middle + 1, high)
    return low


def shards_a_batch(order: Indices) -> float:
    batches = order[: NUM // BATCH * BATCH].reshape(-1, BATCH) // SHARD
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measured(contender: Contender) -> dict[str, Any]:
    order = contender.make().whole()
    assert np.array_equal(np.sort(order), np.arange(NUM)), "each sample once"
    quality = {"distance": distance(order), "documents": documents(order), "labels": labels(order)}
    held = contender.num_held
    kept = fewest_kept(order) if held is None else held / SHARD
    cost = {"kept": kept, "fetches": fetches(order, CACHED) if held is None else 1.0}
    return {**quality, "shards_a_batch": shards_a_batch(order), **cost}


def timed(contenders: Mapping[str, Contender], num_rounds: int) -> dict[str, dict[str, Any]]:
    """ns an index and ms of a resume, medians; the contenders take turns."""
    taken: dict[str, list[tuple[float, float | None]]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, contender in contenders.items():
            if any(epoch_s > SLOW_S for epoch_s, _ in taken[name]):
                continue  # one round of it says enough
            made = contender.make()
            resume_s = None if made.middle is None else seconds(made.middle)
            taken[name].append((seconds(contender.make().whole), resume_s))
    found: dict[str, dict[str, Any]] = {}
    for name, rounds in taken.items():
        resumes = [resume_s for _, resume_s in rounds if resume_s is not None]
        found[name] = {"ns_per_index": statistics.median(epoch_s for epoch_s, _ in rounds) / NUM * 1e9}
        found[name]["resume_ms"] = statistics.median(resumes) * 1e3 if resumes else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where pip installed the other libraries")
    parser.add_argument("--rounds", type=int, default=3, help="in which times are taken (default: 3)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    facts, results = machine(), []
    others: Mapping[str, Contender] = (
        {} if arguments.peers is None else peers(arguments.peers, NUM_SHARDS, SHARD, EPOCH)
    )
    both = {**contenders(), **others}
    times = timed(both, arguments.rounds)
    for name, contender in both.items():
        results.append({"order": name, **measured(contender), **times[name]})
        shown = results[-1].items()
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown))
    write("shuffling", facts, results, arguments.output)


if __name__ == "__main__":
    main()
