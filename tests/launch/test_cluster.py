"""What processes learn of one another, and why they could not meet, in one sentence."""

import os
import socket

import pytest
import torch

import trainkit
from trainkit.distributed.cluster import Cluster, _require_no_other_launcher, _why, current_cluster
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
        (OF_NCCL.format("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 60"), "share one GPU, cuda:1"),
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


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, "srun has started 4 processes .* this is SLURM_PROCID=2"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "mpirun has started 2 processes"),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, "mpiexec has started 3 processes"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # of a batch shell
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "RANK": "5", "WORLD_SIZE": "8"}, None),  # torchrun's
    ],
)
def test_processes_without_variables_do_not_train_alone(told, expected, monkeypatch):
    for name in (*told, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    if expected is None:
        _require_no_other_launcher(os.environ)
        return
    with pytest.raises(ClusterError, match=expected):
        trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert current_cluster() == Cluster()


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
