"""Workers: batches pass unchanged and unpickled, errors and ends are told, and nothing is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainkit
from trainkit.data.slots import Slot
from trainkit.data.workers import NAME
from trainkit.errors import DataError, LoaderError

DTYPES = (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64, torch.complex64)


class Doubled:
    """A data set that Python reads, sample by sample."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 40:
            raise DataError("sample 40 is damaged")
        if index == 41:
            raise Unpicklable
        if index == 42:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(3, 2 * index)


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


def _batches(indices, num_workers=2, source=None):
    runtime = trainkit.Runtime(device="cpu")
    source = Doubled() if source is None else source
    return runtime.batches(source, batch_size=4, order=lambda seed, epoch: np.array(indices), num_workers=num_workers)


def _workers():
    return [process for process in multiprocessing.active_children() if process.name == NAME]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_keep_dtype_shape_and_values(dtype):
    slot = Slot()
    whole = torch.arange(24).to(dtype).view(4, 6)
    given_: dict[str, Any] = {
        "whole": whole,
        "columns": whole.T[::2],
        "none": whole[:0],
        "one": whole[0, 1],
        "name": ["a", None],
    }
    taken = slot.take(slot.put(given_))
    assert taken["name"] == ["a", None]
    for name in ("whole", "columns", "none", "one"):
        assert taken[name].dtype == dtype and torch.equal(taken[name], given_[name]), name


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), max_size=6))
def test_arrays_of_any_sizes_pass_through_one_slot(sizes):
    slot = Slot()
    first = slot.take(slot.put([np.arange(size, dtype=np.int16) for size in sizes]))
    slot.put([np.full(400, -1, np.int16)])  # written over what was taken
    assert [array.tolist() for array in first] == [list(range(size)) for size in sizes]


def test_what_is_pickled_does_not_grow_with_the_batch():
    few, many = (len(Slot().put({"x": torch.zeros(rows, 64), "y": np.zeros(rows)}).header) for rows in (300, 60_000))
    assert few == many < 600


def test_a_conjugate_passes_as_its_values():
    slot, values = Slot(), torch.tensor([1 + 2j]).conj()
    assert torch.equal(slot.take(slot.put(values)), torch.tensor([1 - 2j]))


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_processes_give_batches_in_order(num_workers):
    batches = _batches(range(40), num_workers)
    for number, batch in zip(range(25), batches, strict=False):
        assert batch.data[:, 0].tolist() == [2 * ((4 * number + index) % 40) for index in range(4)]
    batches.close()
    assert not _workers()


def test_columns_and_windows_are_fetched_by_threads():
    batches = _batches(range(20), source=torch.arange(20))
    found = [next(batches).data.tolist() for _ in range(7)]
    assert not _workers()
    assert [*chain(*found)] == [index % 20 for index in range(28)]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (40, DataError, "sample 40 is damaged"),
        (41, LoaderError, r"what was raised cannot be handed over \(not this one\)"),
        (42, LoaderError, r"a process that fetches data was ended by SIGKILL \(often because memory ran out\)"),
    ],
)
def test_what_ends_a_worker_is_raised_in_its_place(index, error, message):
    batches = _batches([0, 1, 2, 3, 4, 5, 6, index])
    assert next(batches).data[:, 0].tolist() == [0, 2, 4, 6]
    with pytest.raises(error, match=message) as raised:
        next(batches)
    if index != 42:
        assert "\n" not in str(raised.value)
        assert "in __getitem__" in raised.value.__notes__[0]
    assert not _workers()


KILLED = """
import multiprocessing, os, signal, numpy as np, trainkit

class Data:
    def __len__(self): return 64
    def __getitem__(self, index): return np.zeros(3)

batches = trainkit.Runtime(device="cpu").batches(Data(), batch_size=4, num_workers=3)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed():
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    workers = [int(line) for line in ended.stdout.splitlines()[-1].split()]
    assert len(workers) == 3
    until = time.monotonic() + 60
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < until, f"still there: {workers}"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
