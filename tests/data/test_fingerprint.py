"""Fingerprints: equal for the same data wherever it lies, and different for any other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from trainkit.data import Datasets, Text
from trainkit.data.fingerprint import fingerprint

WORDS = [f"word{number}" for number in range(40)]
ROWS = np.arange(300, dtype=np.float32).reshape(100, 3)


class Counted(Dataset[Any]):
    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        raise AssertionError("the samples of a data set may be random: nothing asks for them")


def sources() -> dict[str, object]:
    """No two of them hold the same."""
    x = torch.from_numpy(ROWS.copy())
    return {
        "tensor": x,
        "other shape": x.reshape(300),
        "other type": x.double(),
        "last changed": torch.cat([x[:-1], x[-1:] + 1]),
        "longer": torch.cat([x, x[:1]]),
        "bf16": x.bfloat16(),
        "complex": torch.complex(x, x).conj(),
        "bool": x > 5,
        "no samples": x[:0],
        "array": ROWS,
        "objects": np.array(WORDS, dtype=object),
        "pair": (x, x),
        "dict": {"x": x, "y": x},
        "other names": {"x": x, "z": x},
        "list": WORDS,
        "longer list": [*WORDS, "more"],
        "samples": [{"x": 1, "y": "a"}, {"x": 2, "y": None}],
        "other samples": [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}],
        "lone surrogate": ["\ud800"],
        "tensors": TensorDataset(x),
        "subset": Subset(TensorDataset(x), range(50)),
        "other subset": Subset(TensorDataset(x), range(50, 100)),
        "joined": ConcatDataset([TensorDataset(x), Counted(3)]),
        "unknown": Counted(100),
        "unknown, longer": Counted(101),
        "data sets": Datasets(train=x, held_out=x[:5]),
    }


def test_what_differs_has_another_fingerprint():
    found = {name: fingerprint(source) for name, source in sources().items()}
    assert all(len(text) == 32 and int(text, 16) >= 0 for text in found.values())
    assert len(set(found.values())) == len(found)


def test_equal_data_has_the_same_fingerprint_in_every_process():
    code = "from tests.data.test_fingerprint import *; print([fingerprint(s) for s in sources().values()])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    theirs = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert theirs.stdout.strip() == str([fingerprint(source) for source in sources().values()]), theirs.stderr


def test_a_source_may_say_its_own():
    class Named(Counted):
        fingerprint = "v1"

    class Computed(Counted):
        def fingerprint(self):
            return "v1"

    assert fingerprint(Named(1)) == fingerprint(Computed(2)) != fingerprint(Counted(1))


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def test_folders_and_files_are_known_by_names_and_content(tmp_path):
    folder = tmp_path / "a"
    write(folder, "b/one.txt", b"x" * 300_000)
    write(folder, "two.txt", b"y")
    before = fingerprint(folder)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    write(moved, ".hidden", b"z")
    assert fingerprint(moved) == before
    assert fingerprint(moved / "two.txt") == fingerprint(folder / "two.txt") != fingerprint(folder / "b" / "one.txt")
    for name, content in (("b/one.txt", b"x" * 299_999 + b"y"), ("two.txt", b"yy"), ("three.txt", b"")):
        known = fingerprint(moved)
        write(moved, name, content)
        assert fingerprint(moved) != known


@pytest.mark.parametrize("changed", [{"sequence_length": 32}, {"held_out": 0.3}, {"lowercase": False}])
def test_a_cache_gives_its_content_and_not_its_place(tmp_path, changed):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"{word} " * (number + 5) for number, word in enumerate(WORDS)))
    settings = {"path": path, "vocab_size": 200, "sequence_length": 16, "held_out": 0.1}
    first = fingerprint(Text(**settings, cache_dir=tmp_path / "one").load(progress=False))
    assert fingerprint(Text(**settings, cache_dir=tmp_path / "two").load(progress=False)) == first
    assert fingerprint(Text(**{**settings, **changed}, cache_dir=tmp_path / "one").load(progress=False)) != first
