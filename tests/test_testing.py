"""Functions on several ranks: their results, and every way in which a rank can fail."""

import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

import trainkit
from trainkit.testing import RankError, run_ranks


def test_results_in_the_order_of_the_ranks():
    assert run_ranks(_rank_of, 1, "only") == [("only", "0", "1")]
    assert run_ranks(_rank_of, 3, "each") == [("each", str(rank), "3") for rank in range(3)]


def _rank_of(word: str) -> tuple[str, str, str]:
    return word, os.environ["RANK"], os.environ["WORLD_SIZE"]


def test_a_local_function_with_tensors():
    scale = torch.tensor([1.0, 2.0])

    def summed() -> torch.Tensor:
        total = scale * (dist.get_rank() + 1)
        dist.all_reduce(total)
        return total

    for total in run_ranks(summed, 2):
        assert total.tolist() == [3.0, 6.0]


def test_processes_are_kept_until_a_rank_fails():
    first = run_ranks(os.getpid, 2)
    assert run_ranks(os.getpid, 2) == first
    with pytest.raises(RankError, match=r"rank 1 of 2:\n(?s:.*)ValueError: a fault of rank 1") as caught:
        run_ranks(_fail_on_rank_1, 2)
    assert caught.value.kind == "ValueError"
    assert not set(run_ranks(os.getpid, 2)) & set(first)


def _fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("a fault of rank 1")
    dist.barrier()


def test_a_process_that_ends_is_named():
    with pytest.raises(RankError, match="rank 0 of 1:\nits process ended, exit code 3"):
        run_ranks(os._exit, 1, 3)


def test_a_rank_that_does_not_return_is_named():
    with pytest.raises(TimeoutError, match=r"sleep: ranks \[0\] did not return within 0\.1 s"):
        run_ranks(time.sleep, 1, 60, timeout_s=0.1)


def test_a_result_that_cannot_be_copied_is_an_error():
    with pytest.raises(RankError, match="cannot pickle") as caught:
        run_ranks(threading.Lock, 1)
    assert caught.value.kind == "TypeError"


def test_a_runtime_that_is_left_open_is_closed():
    assert run_ranks(_leave_open, 2) == [None, None]
    assert run_ranks(_num_left, 2) == [0, 0]


_LEFT: list[trainkit.Runtime] = []


def _leave_open() -> None:
    _LEFT.append(trainkit.Runtime(strategy="ddp"))


def _num_left() -> int:
    from torch.distributed.distributed_c10d import _world

    return len(_world.pg_map) - 1
