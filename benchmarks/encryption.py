"""What encryption costs: the time and the memory of an encrypted file, beside the same one in the clear.

    python benchmarks/encryption.py                    # 3 GB, 7 turns: about two minutes; 6.1 GB of disk
    python benchmarks/encryption.py --gigabytes 0.2 --turns 2

In each turn a safetensors file is written plainly and encrypted, both flushed to disk, as a checkpoint's are; then both
are read into memory that is there. The memory is that of a process of its own, the largest at any time, less what the
same process has before: for the file, and for one of an eighth of it. The tensors share their bytes, 256 MB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import in_words, machine, spread, write
from benchmarks.saving import seconds
from trainkit.checkpoint import write_one_file
from trainkit.encryption import AgeReader, Identity, Recipient

GOALS = {"write, over plainly": 1.3}
TENSOR_BYTES = 1 << 28


def tensors_of(num_bytes: int) -> dict[str, torch.Tensor]:
    base = torch.frombuffer(bytearray(TENSOR_BYTES), dtype=torch.float32)
    base.normal_(generator=torch.Generator().manual_seed(0))
    sizes = [TENSOR_BYTES] * (num_bytes // TENSOR_BYTES) + [num_bytes % TENSOR_BYTES // 4 * 4]
    return {f"tensor_{number}": base[: size // 4] for number, size in enumerate(sizes) if size}


def key(directory: Path) -> tuple[Path, Recipient]:
    """A new key file and its recipient, by the library that the tests compare with."""
    import pyrage

    identity, file = pyrage.x25519.Identity.generate(), directory / "key.txt"
    file.write_text(f"{identity}\n")
    return file, Recipient.parse(str(identity.to_public()))


def read_plainly(path: Path, buffer: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_encrypted(path: Path, buffer: memoryview, identities: list[Identity]) -> None:
    with AgeReader(path, identities) as file:
        for start in range(0, file.num_bytes, len(buffer)):
            file.read_into(start, buffer[: min(len(buffer), file.num_bytes - start)])


def measure(num_bytes: int, num_turns: int, directory: Path) -> dict[str, Any]:
    tensors, (file, recipient) = tensors_of(num_bytes), key(directory)
    plain, sealed, buffer = directory / "plain", directory / "sealed.age", memoryview(bytearray(TENSOR_BYTES))
    identities = Identity.read(file)
    steps = {
        "write plainly": lambda: write_one_file(plain, tensors),
        "write encrypted": lambda: write_one_file(sealed, tensors, [recipient]),
        "read plainly": lambda: read_plainly(plain, buffer),
        "read encrypted": lambda: read_encrypted(sealed, buffer, identities),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    in_cpu_time: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + num_turns):
        print(f"\rturn {turn} of {num_turns} ", end="\n" * (turn == num_turns), file=sys.stderr, flush=True)
        plain.unlink(missing_ok=True)
        sealed.unlink(missing_ok=True)
        names = list(steps)
        if turn % 2:  # the disk may be slower for what comes second
            names[:2] = names[1::-1]
        for name in names:
            os.sync()  # what other programs have written is no part of it
            start = time.process_time()
            times[name].append(seconds(steps[name]))
            in_cpu_time[name].append(time.process_time() - start)
    times, in_cpu_time = ({name: all_of[1:] for name, all_of in by_name.items()} for by_name in (times, in_cpu_time))
    return {
        "num_bytes": num_bytes,
        "num_turns": num_turns,
        "seconds": {name: spread(values) for name, values in times.items()},
        "cpu_seconds": {name: spread(values) for name, values in in_cpu_time.items()},
        "ratios": {
            f"{kind}, over plainly": {
                "of the medians": statistics.median(times[f"{kind} encrypted"])
                / statistics.median(times[f"{kind} plainly"]),
                "of the fastest": min(times[f"{kind} encrypted"]) / min(times[f"{kind} plainly"]),
            }
            for kind in ("write", "read")
        },
        "goals": GOALS,
        "memory_mb": {
            f"{kind}, {size / 1e9:.2g} GB": peak(kind, size, directory)
            for size in (num_bytes // 8, num_bytes)
            for kind in ("write", "read")  # what was written
        },
    }


def peak(kind: str, num_bytes: int, directory: Path) -> float:
    """MB by which a process that writes or reads an encrypted file grows."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        kind,
        "--gigabytes",
        str(num_bytes / 1e9),
        "--directory",
        str(directory),
    ]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_peak(kind: str, num_bytes: int, directory: Path) -> None:
    path, buffer, tensors = directory / "peak.age", memoryview(bytearray(TENSOR_BYTES)), tensors_of(num_bytes)
    if kind == "write":
        path.unlink(missing_ok=True)
        _, recipient = key(directory)
        before = most_mb()
        write_one_file(path, tensors, [recipient])
    else:
        identities, before = Identity.read(directory / "key.txt"), most_mb()
        read_encrypted(path, buffer, identities)
    print(most_mb() - before)


def most_mb() -> float:
    """The largest memory of this process so far, which is not inherited, unlike that of getrusage."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['num_bytes'] / 1e9:.3g} GB; {result['num_turns']} turns; median (quartiles)"]
    lines += [f"  {name:<30}{in_words(values, 3)} s" for name, values in result["seconds"].items()]
    lines += [f"  {name:<30}{in_words(values, 3)} s of CPU" for name, values in result["cpu_seconds"].items()]
    lines += [
        f"  {name:<30}{ratio['of the medians']:.2f}, of the fastest {ratio['of the fastest']:.2f}"
        for name, ratio in result["ratios"].items()
    ]
    lines += [f"  memory: {name:<22}{value:.0f} MB" for name, value in result["memory_mb"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, metavar="GB")
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="after one that warms up")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: the temporary directory's")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--peak", choices=("write", "read"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_bytes = int(arguments.gigabytes * 1e9)
    if arguments.peak is not None:
        print_peak(arguments.peak, num_bytes, arguments.directory)
        return
    facts = machine()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        result = measure(num_bytes, arguments.turns, Path(directory))
    print(table(result))
    write("encryption", facts, [result], arguments.output)


if __name__ == "__main__":
    main()
