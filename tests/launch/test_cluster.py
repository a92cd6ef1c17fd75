"""What processes learn of one another, and why they could not meet, in one sentence."""

import os
import socket

import pytest
import torch

from trainkit.distributed.cluster import Cluster, _why, current_cluster
from trainkit.errors import ClusterError
from trainkit.testing import run_ranks

OF_NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
{}
"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            OF_NCCL.format("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"),
            "shares cuda:1 with another rank",
        ),
        (OF_NCCL.format("Bootstrap : no socket interface found"), "Bootstrap : no socket interface found. Is GLOO"),
        ("connection refused\nmore", "connection refused. Is GLOO"),
        ("", "no reason was given. Is GLOO"),
    ],
)
def test_why(told, expected):
    assert expected in _why(told, torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, Cluster()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Cluster(1, 2, 0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Cluster(5, 8, 1, 4)),
        ({"RANK": "0"}, "RANK and WORLD_SIZE must both be set to numbers"),
        ({"RANK": "0", "WORLD_SIZE": "many"}, "RANK and WORLD_SIZE must both be set to numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "contradict each other"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "contradict each other"),
    ],
)
def test_the_variables_of_a_launcher(told, expected):
    if isinstance(expected, Cluster):
        assert Cluster.from_environment(told) == expected
        return
    with pytest.raises(ClusterError, match=expected):
        Cluster.from_environment(told)


def _clusters_of_a_group_made_by_hand(hosts):
    kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    name, rank = socket.gethostname, int(kept["RANK"])
    socket.gethostname = lambda: hosts[rank]
    try:
        return current_cluster()
    finally:
        socket.gethostname = name
        os.environ.update(kept)


def test_ranks_of_a_group_made_by_hand_are_counted_by_host():
    found = run_ranks(_clusters_of_a_group_made_by_hand, 4, "abab")
    assert found == [Cluster(0, 4, 0, 2), Cluster(1, 4, 0, 2), Cluster(2, 4, 1, 2), Cluster(3, 4, 1, 2)]
